// A host of the MOCK in mock_llama.cpp: generates three tokens a round, frees the context, and computes a graph of its own. Whatever the
// rounds throw, it catches and goes on. `mock_host [decode|accept|apply|compute|plain]...`
//
// Other verbs are what only some hosts do, see `special`. Those that begin or end a recording need the library linked.
#include <dlfcn.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

struct llama_batch { int32_t n_tokens; int32_t *token; float *embd; int32_t *pos; int32_t *n_seq_id; int32_t **seq_id; int8_t *logits; };
struct params { char bytes[200]; };
extern "C" {
extern int mock_throw, mock_step_us;
void mock_compute(void);
void mock_picture(void);
void *llama_model_load_from_file(const char *, params);
void *llama_init_from_model(void *, params);
void llama_free(void *);
int32_t llama_decode(void *, llama_batch);
float *llama_get_logits_ith(void *, int32_t);
void llama_sampler_apply(void *, void *);
void llama_sampler_accept(void *, int32_t);
void *llama_load_model_from_file(const char *, params);
void *llama_new_context_with_model(void *, params);
void llama_kv_self_clear(void *);
bool llama_kv_self_seq_rm(void *, int32_t, int32_t, int32_t);
size_t llama_state_seq_set_data(void *, const uint8_t *, size_t, int32_t);
int32_t llama_batch_ext_add_token(void *, int32_t, int32_t);
bool llama_batch_ext_set_output_logits(void *, int32_t, bool);
void llama_batch_ext_clear(void *);
int32_t llama_process(void *, int32_t, void *);
__attribute__((weak)) int32_t llama_resource_instrumentation_init(int32_t, const char *);
__attribute__((weak)) int32_t llama_resource_instrumentation_free(void);
}

static void *model;

static void decode(void *ctx, int32_t pos) {
    int32_t token = 1, one = 1, zero = 0, *seq = &zero;
    int8_t output = 1;
    llama_decode(ctx, llama_batch{1, &token, nullptr, &pos, &one, &seq, &output});
}

static void sample(void *ctx) {
    llama_get_logits_ith(ctx, -1);
    llama_sampler_apply(nullptr, nullptr);
    llama_sampler_accept(nullptr, 7);
}

static void flush() {
    auto *function = reinterpret_cast<int32_t (*)()>(dlsym(RTLD_DEFAULT, "llama_resource_instrumentation_flush"));
    if (function) { function(); }
}

// What tests/server/test_instructions.py has counted.
extern "C" __attribute__((noinline)) void counted_steps(void *ctx, int n) {
    for (int32_t pos = 0; pos < n; pos++) {
        decode(ctx, pos);
        sample(ctx);
    }
}

// True if it was such a verb; `value` is what follows its `=`.
static bool special(const std::string & verb, const char *value) {
    static int32_t next;
    static void *kept;
    const int n = std::atoi(value);
    if (verb == "freed-read" || verb == "freed-applied") {
        // The host has a copy of the logits, frees the context, and samples.
        void *ctx = llama_init_from_model(model, params{});
        decode(ctx, 0);
        llama_get_logits_ith(ctx, -1);
        if (verb == "freed-applied") { llama_sampler_apply(nullptr, nullptr); }
        llama_free(ctx);
        if (verb == "freed-read") { llama_sampler_apply(nullptr, nullptr); }
        llama_sampler_accept(nullptr, 7);
    } else if (verb == "context") {
        kept = llama_init_from_model(model, params{});
        next = 0;
    } else if (verb == "older-context") {
        kept = llama_new_context_with_model(llama_load_model_from_file("older.gguf", params{}), params{});
        next = 0;
    } else if (verb == "steps") {
        // So many tokens, ten milliseconds apart.
        for (int i = 0; i < n; i++) {
            decode(kept, next++);
            sample(kept);
            usleep(10000);
        }
    } else if (verb == "count") {
        // A few that are not counted build plans, then so many; the writer is at work before, and has nothing left behind them.
        mock_step_us = 25000;
        for (int i = 0; i < 8; i++) { decode(kept, next++); sample(kept); }
        flush();
        counted_steps(kept, n);
        flush();
        _exit(0);
    } else if (verb == "throw") {
        mock_throw = 4;
        try {
            decode(kept, next);
        } catch (const std::runtime_error & error) {
            std::printf("caught %s\n", error.what());
        }
        mock_throw = 0;
    } else if (verb == "older") {
        // Three prompts of one row each, three tokens each. The cache is emptied, cut, and left to be overwritten.
        for (int round = 0; round < 3; round++) {
            if (round == 1) { llama_kv_self_clear(kept); }
            if (round == 2) { llama_kv_self_seq_rm(kept, 0, 0, -1); }
            for (next = 0; next < 3; next++) {
                decode(kept, next);
                sample(kept);
            }
        }
    } else if (verb == "overwrite") {
        for (next = 0; next < 3; next++) {
            decode(kept, next);
            sample(kept);
        }
    } else if (verb == "pictures") {
        for (int i = 0; i < n; i++) { mock_picture(); }
    } else if (verb == "restore-all") {
        const uint8_t state[4] = {};
        llama_state_seq_set_data(kept, state, sizeof state, -1);
    } else if (verb == "fill") {
        // Rows of a batch, without positions.
        for (int i = 0; i < n; i++) { llama_batch_ext_set_output_logits(&next, llama_batch_ext_add_token(&next, 0, 5), true); }
    } else if (verb == "process") {
        llama_process(kept, 1, &next);
        sample(kept);
        llama_batch_ext_clear(&next);
    } else if (verb == "init") {
        std::printf("init %d\n", (int) llama_resource_instrumentation_init(2, value));
    } else if (verb == "free") {
        std::printf("free %d\n", (int) llama_resource_instrumentation_free());
    } else {
        return false;
    }
    return true;
}

static void generate(void *ctx) {
    int32_t token = 1, one = 1, zero = 0, *seq = &zero;
    int8_t output = 1;
    for (int32_t pos = 0; pos < 3; pos++) {
        llama_decode(ctx, llama_batch{1, &token, nullptr, &pos, &one, &seq, &output});
        llama_get_logits_ith(ctx, -1);
        llama_sampler_apply(nullptr, nullptr);
        llama_sampler_accept(nullptr, 7);
    }
}

int main(int argc, char **argv) {
    model = llama_model_load_from_file("mock.gguf", params{});
    for (int i = 1; i < argc; i++) {
        const std::string what = argv[i];
        const size_t equals = what.find('=');
        if (special(what.substr(0, equals), equals == what.npos ? "" : argv[i] + equals + 1)) {
            continue;
        }
        mock_throw = what == "decode" ? 1 : what == "accept" ? 2 : what == "apply" ? 3 : what == "compute" ? 4 : 0;
        void *ctx = llama_init_from_model(model, params{});
        try {
            generate(ctx);
            std::puts("nothing was thrown");
        } catch (const std::runtime_error & error) {
            std::printf("caught %s\n", error.what());
        }
        llama_free(ctx);
        mock_throw = 0;
        mock_compute();
    }
    std::puts("done");
}
