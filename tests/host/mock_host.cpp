// A host of the MOCK in mock_llama.cpp: generates three tokens a round, frees the context, and computes a graph of its own. Whatever the
// rounds throw, it catches and goes on. `mock_host [decode|accept|apply|compute|plain]...`
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>

struct llama_batch { int32_t n_tokens; int32_t *token; float *embd; int32_t *pos; int32_t *n_seq_id; int32_t **seq_id; int8_t *logits; };
struct params { char bytes[200]; };
extern "C" {
extern int mock_throw;
void mock_compute(void);
void *llama_model_load_from_file(const char *, params);
void *llama_init_from_model(void *, params);
void llama_free(void *);
int32_t llama_decode(void *, llama_batch);
float *llama_get_logits_ith(void *, int32_t);
void llama_sampler_apply(void *, void *);
void llama_sampler_accept(void *, int32_t);
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
    void *model = llama_model_load_from_file("mock.gguf", params{});
    for (int i = 1; i < argc; i++) {
        const std::string what = argv[i];
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
