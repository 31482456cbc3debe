// A program on libllama that captures activations through llama_context_params.cb_eval alone: no preload, no hooks.
//
//     capture MODEL LOG N_TOKENS [NAME=VALUE...]     settings for llama_resource_instrumentation_set
//     capture MODEL - N_TOKENS                       records nothing itself: the same run for LD_PRELOAD
//
// Prints the generated token ids, and the account of the capture as the API gives it.

#include "llama.h"

#include "check.h"

#include <inttypes.h>
#include <string.h>

static void only_errors(enum ggml_log_level level, const char * text, void * user_data) {
    (void) user_data;
    if (level >= GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

static struct llama_resource_instrumentation_capture_statistics account(void) {
    struct llama_resource_instrumentation_capture_statistics s;
    IS(F(flush)(), OK);
    IS(F(get_capture_statistics)(&s, sizeof(s)), OK);
    CHECK(s.captured_tensors + s.skipped_tensors + s.dropped_tensors == s.seen_tensors);
    CHECK(s.captured_bytes + s.skipped_bytes + s.dropped_bytes == s.seen_bytes);
    return s;
}

int main(int argc, char ** argv) {
    CHECK(argc >= 4);
    const int n_tokens = atoi(argv[3]);
    const int own      = strcmp(argv[2], "-") != 0;
    llama_log_set(only_errors, NULL);

    struct llama_context_params params = llama_context_default_params();
    params.n_ctx     = 512;
    params.n_threads = params.n_threads_batch = 1;
    if (own) {
        for (int i = 4; i < argc; i++) {
            char * value = strchr(argv[i], '=');
            CHECK(value);
            *value++ = 0;
            IS(F(set)(argv[i], value), OK);
        }
        struct llama_resource_instrumentation_params init = F(default_params)();
        init.log_path = argv[2];
        init.hooks    = false;
        IS(F(init_with_params)(&init), OK);
        struct llama_resource_instrumentation_capture_statistics s;
        IS(F(get_capture_statistics)(&s, sizeof(s)), OK);
        CHECK(s.seen_tensors == 0 && s.file_bytes == 0); // it is on, and nothing has run
        params.cb_eval = llama_resource_eval_callback;
    }

    ggml_backend_load_all();
    struct llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    CHECK(model);
    struct llama_context * ctx = llama_init_from_model(model, params);
    CHECK(ctx);
    const struct llama_vocab * vocab = llama_model_get_vocab(model);

    // Long enough that a small budget cannot hold the first graph.
    char prompt[512] = "";
    for (int i = 0; i < 6; i++) {
        strcat(prompt, "There was a house by the water, and ");
    }
    llama_token tokens[512];
    const int n_prompt = llama_tokenize(vocab, prompt, (int32_t) strlen(prompt), tokens, 512, true, true);
    CHECK(n_prompt > 40);

    struct llama_sampler * greedy = llama_sampler_init_greedy();
    struct llama_batch     batch  = llama_batch_get_one(tokens, n_prompt);
    llama_token            token  = 0;
    uint64_t               seen   = 0;
    for (int i = 0; i < n_tokens; i++) {
        CHECK(llama_decode(ctx, batch) == 0);
        token = llama_sampler_sample(greedy, ctx, -1);
        printf("%d ", token);
        if (own) {
            char text[64];
            const int n = llama_token_to_piece(vocab, token, text, sizeof(text) - 1, 0, true);
            CHECK(n >= 0);
            text[n] = 0;
            // Without text, and without probability, every other time.
            IS(F(track_token)(0, n_prompt + i, token, i % 2 ? NULL : text, i % 2 ? -1.0f : 0.5f), OK);
            // A flush at any step brings everything up to it into the file.
            const struct llama_resource_instrumentation_capture_statistics s = account();
            CHECK(s.seen_tensors > seen && s.file_bytes > 0);
            seen = s.seen_tensors;
        }
        batch = llama_batch_get_one(&token, 1);
    }
    printf("\n");

    llama_sampler_free(greedy);
    if (own) {
        const struct llama_resource_instrumentation_capture_statistics s = account();
        printf("seen %" PRIu64 " %" PRIu64 " captured %" PRIu64 " %" PRIu64 " skipped %" PRIu64 " %" PRIu64 " dropped %" PRIu64
               " %" PRIu64 "\n", s.seen_tensors, s.seen_bytes, s.captured_tensors, s.captured_bytes, s.skipped_tensors,
               s.skipped_bytes, s.dropped_tensors, s.dropped_bytes);
        // Too late for this recording; said, and kept for the next.
        IS(F(set)("LLAMA_RESOURCE_TENSORS", "logits"), ALREADY);
    }
    llama_free(ctx);
    llama_model_free(model);
    if (own) {
        IS(F(free)(), OK);
    }
    return 0;
}
