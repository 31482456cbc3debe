// A C++ program on libllama with its own decode loop, recorded through llama_context_params.cb_eval - no preload, no hooks.
//
//     example_eval MODEL LOG N_TOKENS [quiet|hooks]
//
// With `quiet` it records nothing itself: the same run for LD_PRELOAD. With `hooks` it leaves the hooks on, which see the graphs if this
// library was linked ahead of libllama. Prints the generated token ids, which must be the same.

#include "llama.h"

#include "llama-resource-instrumentation.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

// The program's own eval callback, served beside ours: counts the results of the blocks.
struct counter {
    int asked = 0;
    int shown = 0;
};

static bool count_blocks(struct ggml_tensor * t, bool ask, void * user_data) {
    counter * c = static_cast<counter *>(user_data);
    if (ask) {
        const bool wanted = std::strncmp(ggml_get_name(t), "l_out-", 6) == 0;
        c->asked += wanted;
        return wanted;
    }
    c->shown++;
    return true;
}

int main(int argc, char ** argv) {
    if (argc < 4) {
        return 2;
    }
    const bool quiet    = argc > 4 && std::strcmp(argv[4], "quiet") == 0;
    const bool hooks    = argc > 4 && std::strcmp(argv[4], "hooks") == 0;
    const int  n_tokens = std::atoi(argv[3]);
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level >= GGML_LOG_LEVEL_ERROR) {
            std::fputs(text, stderr);
        }
    }, nullptr);

    if (!quiet) {
        llama_resource_instrumentation_params params = llama_resource_instrumentation_default_params();
        params.level    = LLAMA_RESOURCE_INSTRUMENTATION_LEVEL_VERBOSE;
        params.log_path = argv[2];
        params.log_rate = -1;
        params.hooks    = hooks; // false: the callback sees the graphs
        if (llama_resource_instrumentation_init_with_params(&params) < 0) {
            return 1;
        }
    }

    ggml_backend_load_all();
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) {
        return 1;
    }
    counter blocks;
    llama_resource_eval_params eval = llama_resource_eval_default_params();
    eval.callback  = count_blocks;
    eval.user_data = &blocks;
    llama_context_params params = llama_context_default_params();
    params.n_ctx     = 256;
    params.n_threads = params.n_threads_batch = 1;
    if (!quiet) {
        params.cb_eval           = llama_resource_eval_callback;
        params.cb_eval_user_data = &eval;
    }
    llama_context * ctx = llama_init_from_model(model, params);
    const llama_vocab * vocab = llama_model_get_vocab(model);
    const char * prompt = "The capital of France is";
    std::vector<llama_token> tokens(64);
    tokens.resize(llama_tokenize(vocab, prompt, static_cast<int32_t>(std::strlen(prompt)), tokens.data(), 64, true, true));
    llama_sampler * greedy = llama_sampler_init_greedy();

    llama_resource_instrumentation_begin_session("example_eval");
    llama_batch batch = llama_batch_get_one(tokens.data(), static_cast<int32_t>(tokens.size()));
    llama_token token = 0;
    for (int i = 0; i < n_tokens; ++i) {
        if (llama_decode(ctx, batch) != 0) {
            return 1;
        }
        token = llama_sampler_sample(greedy, ctx, -1);
        llama_resource_instrumentation_record_token(0, token);
        std::printf("%d ", token);
        batch = llama_batch_get_one(&token, 1);
    }
    llama_resource_instrumentation_flush();
    llama_resource_instrumentation_end_session();

    llama_sampler_free(greedy);
    llama_free(ctx);
    llama_model_free(model);
    if (!quiet) {
        llama_resource_instrumentation_free();
        std::printf("\nblocks asked %d shown %d", blocks.asked, blocks.shown);
        if (blocks.asked == 0 || blocks.asked != blocks.shown) {
            return 1;
        }
    }
    std::printf("\n");
    return 0;
}
