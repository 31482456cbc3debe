// A host of the matrix with all of llama.cpp inside the program and nothing of it exported: no call can be seen by a preloaded library.
// `static_host MODEL TOKENS` prints one JSON object.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "llama.h"

int main(int argc, char ** argv) {
    if (argc != 3) { return 2; }
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (model == nullptr) { return 3; }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 512; params.n_threads = 2; params.n_threads_batch = 2;
    llama_context * ctx = llama_init_from_model(model, params);
    const llama_vocab * vocab = llama_model_get_vocab(model);
    const std::string prompt = "The capital of France is";
    std::vector<llama_token> tokens(64);
    tokens.resize(llama_tokenize(vocab, prompt.data(), (int32_t) prompt.size(), tokens.data(), (int32_t) tokens.size(), true, false));
    llama_sampler * greedy = llama_sampler_init_greedy();
    printf("{\"requests\": [{\"prompt_tokens\": %zu, \"ids\": [", tokens.size());
    const int n = atoi(argv[2]);
    for (int i = 0; i < n; i++) {
        if (llama_decode(ctx, llama_batch_get_one(tokens.data(), (int32_t) tokens.size())) != 0) { return 4; }
        tokens.assign(1, llama_sampler_sample(greedy, ctx, -1));
        printf("%s%d", i ? ", " : "", tokens[0]);
    }
    printf("], \"generated_tokens\": %d}]}\n", n);
    llama_sampler_free(greedy); llama_free(ctx); llama_model_free(model);
}
