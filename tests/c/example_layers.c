/* A C program on libllama with its own decode loop that marks its own layers: the layers that llama.cpp computes, seen through an eval
 * callback of the program's, around which it puts begin and end.
 *
 *     example_layers MODEL LOG N_TOKENS
 */

#include "llama.h"

#include "llama-resource-instrumentation.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct layers {
    int open; /* the layer that is begun, -1 for none */
};

static bool on_node(struct ggml_tensor * t, bool ask, void * user_data) {
    struct layers * l = user_data;
    const char * name = ggml_get_name(t);
    const bool is_embd  = strcmp(name, "embd") == 0;
    const bool is_block = strncmp(name, "l_out-", 6) == 0;
    if (ask) {
        return is_embd || is_block;
    }
    if (is_embd) {
        l->open = 0;
        LLAMA_RESOURCE_BEGIN_LAYER(0);
        LLAMA_RESOURCE_BEGIN_COMPONENT("block");
    } else if (l->open >= 0) {
        const struct ggml_tensor * inputs[2] = { t->src[0], t->src[1] };
        LLAMA_RESOURCE_LOG_COMPUTE_OPERATION("residual", "block", inputs, 2, t);
        LLAMA_RESOURCE_END_COMPONENT("block");
        LLAMA_RESOURCE_END_LAYER(l->open);
        l->open++;
        if (l->open < 30) {
            LLAMA_RESOURCE_BEGIN_LAYER(l->open);
            LLAMA_RESOURCE_BEGIN_COMPONENT("block");
        } else {
            l->open = -1;
        }
    }
    return true;
}

static void quiet(enum ggml_log_level level, const char * text, void * user_data) {
    (void) user_data;
    if (level >= GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

int main(int argc, char ** argv) {
    if (argc != 4) {
        return 2;
    }
    llama_log_set(quiet, NULL);
    struct llama_resource_instrumentation_params recording = llama_resource_instrumentation_default_params();
    recording.level    = LLAMA_RESOURCE_INSTRUMENTATION_LEVEL_DETAILED;
    recording.log_path = argv[2];
    recording.hooks    = false;
    if (llama_resource_instrumentation_init_with_params(&recording) < 0) {
        return 1;
    }
    ggml_backend_load_all();
    struct llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) {
        return 1;
    }
    struct layers layers = { -1 };
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx             = 256;
    params.n_threads         = 1;
    params.n_threads_batch   = 1;
    params.cb_eval           = on_node;
    params.cb_eval_user_data = &layers;
    struct llama_context * ctx = llama_init_from_model(model, params);
    const struct llama_vocab * vocab = llama_model_get_vocab(model);
    llama_token tokens[64];
    const char * prompt = "The capital of France is";
    int n = llama_tokenize(vocab, prompt, (int) strlen(prompt), tokens, 64, true, true);
    struct llama_sampler * greedy = llama_sampler_init_greedy();
    struct llama_batch batch = llama_batch_get_one(tokens, n);
    llama_token token = 0;
    LLAMA_RESOURCE_BEGIN_SESSION("example_layers");
    for (int i = 0; i < atoi(argv[3]); i++) {
        if (llama_decode(ctx, batch) != 0) {
            return 1;
        }
        token = llama_sampler_sample(greedy, ctx, -1);
        batch = llama_batch_get_one(&token, 1);
    }
    LLAMA_RESOURCE_END_SESSION();
    llama_sampler_free(greedy);
    llama_free(ctx);
    llama_model_free(model);
    return llama_resource_instrumentation_free() == LLAMA_RESOURCE_INSTRUMENTATION_STATUS_SUCCESS ? 0 : 1;
}
