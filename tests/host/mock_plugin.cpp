// A plugin with a copy of the MOCK in mock_llama.cpp of its own, as a Python extension or a Node.js addon brings one. `plugin_run` generates three
// tokens through it and computes a graph; each copy of the mock aborts when it is given what another one has made.
#include <cstdint>

struct llama_batch { int32_t n_tokens; int32_t *token; float *embd; int32_t *pos; int32_t *n_seq_id; int32_t **seq_id; int8_t *logits; };
struct params { char bytes[200]; };
extern "C" {
void mock_compute(void);
void *llama_model_load_from_file(const char *, params);
void *llama_init_from_model(void *, params);
void llama_free(void *);
int32_t llama_decode(void *, llama_batch);
float *llama_get_logits_ith(void *, int32_t);
void llama_sampler_apply(void *, void *);
void llama_sampler_accept(void *, int32_t);

void plugin_run(void) {
    void *model = llama_model_load_from_file("mock.gguf", params{});
    void *ctx = llama_init_from_model(model, params{});
    int32_t token = 1, one = 1, zero = 0, *seq = &zero;
    int8_t output = 1;
    for (int32_t pos = 0; pos < 3; pos++) {
        llama_decode(ctx, llama_batch{1, &token, nullptr, &pos, &one, &seq, &output});
        llama_get_logits_ith(ctx, -1);
        llama_sampler_apply(nullptr, nullptr);
        llama_sampler_accept(nullptr, 7);
    }
    llama_free(ctx);
    mock_compute();
}
}
