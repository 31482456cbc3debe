// A program on libllama, linked with the library ahead of it, that records twice: six ubatches, then three.
//
//     two_recordings MODEL LOG1 LOG2

#include "llama.h"

#include "check.h"

#include <string.h>

static void only_errors(enum ggml_log_level level, const char * text, void * user_data) {
    (void) user_data;
    if (level >= GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

static void record(struct llama_model * model, const char * log, int n_steps) {
    IS(llama_resource_instrumentation_init(LLAMA_RESOURCE_INSTRUMENTATION_LEVEL_DETAILED, log), OK);
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx     = 256;
    params.n_threads = params.n_threads_batch = 1;
    struct llama_context * ctx = llama_init_from_model(model, params);
    CHECK(ctx);
    llama_token token = 1;
    for (int i = 0; i < n_steps; i++) {
        CHECK(llama_decode(ctx, llama_batch_get_one(&token, 1)) == 0);
        // What a step computes is what the next one gets, so that the recordings end with a token read.
        token = llama_get_logits_ith(ctx, -1)[0] > 0 ? 2 : 3;
    }
    llama_free(ctx);
    IS(F(free)(), OK);
}

int main(int argc, char ** argv) {
    CHECK(argc == 4);
    llama_log_set(only_errors, NULL);
    ggml_backend_load_all();
    struct llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    CHECK(model);
    record(model, argv[2], 6);
    record(model, argv[3], 3);
    llama_model_free(model);
    return 0;
}
