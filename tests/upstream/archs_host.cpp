// A host for models of any architecture: prompts of two sequences in one batch, then single tokens of one and of both, by both of
// llama.cpp's ways in (llama_process and llama_decode). Prints a digest of every output, so that two runs can be compared bit by bit.
//
//     archs_host MODEL
#include "common.h"
#include "llama.h"

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <vector>

static const int32_t PROMPTS[2] = {40, 13};  // tokens; together less than a ubatch, since models that are not causal take no more
static const int32_t SINGLE = 6, BOTH = 2;   // steps of the first sequence alone, and of both
static int32_t n_processed = 0, position[2] = {0, 0};

static uint64_t digest(const float * values, size_t n) {
    uint64_t hash = 0xcbf29ce484222325;
    const unsigned char * bytes = reinterpret_cast<const unsigned char *>(values);
    for (size_t i = 0; i < n * sizeof(float); i++) {
        hash = (hash ^ bytes[i]) * 0x100000001b3;
    }
    return hash;
}

// Prints output i of the last call and gives its greatest logit's token; NaN is never greater.
static llama_token output(llama_context * ctx, int32_t i, const char * what) {
    const llama_model * model = llama_get_model(ctx);
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    const float * logits = llama_get_logits_ith(ctx, i);
    llama_token best = 0;
    for (int32_t t = 1; logits != nullptr && t < n_vocab; t++) {
        best = logits[t] > logits[best] ? t : best;
    }
    printf("%s %d: %016" PRIx64 " %d\n", what, i, logits != nullptr ? digest(logits, n_vocab) : 0, best);
    return best;
}

int main(int argc, char ** argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: archs_host MODEL\n");
        return 2;
    }
    llama_log_set([](ggml_log_level level, const char * text, void *) { if (level >= GGML_LOG_LEVEL_WARN) { fputs(text, stderr); } }, nullptr);
    llama_backend_init();
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (model == nullptr) {
        return 3;
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 512;
    params.n_seq_max = 2;
    params.n_ubatch = 64;
    params.n_threads = params.n_threads_batch = 2;
    llama_context * ctx = llama_init_from_model(model, params);
    if (ctx == nullptr) {
        return 4;
    }
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    llama_token next[2] = {1, 2};
    int32_t last[2] = {0, 0};
    {
        common_batch batch(ctx);
        uint32_t state = 7;
        for (int32_t seq = 0; seq < 2; seq++) {
            for (; position[seq] < PROMPTS[seq]; position[seq]++) {
                state = state * 1664525u + 1013904223u;
                batch.add(llama_token((state >> 8) % uint32_t(n_vocab)), position[seq], seq, true);
            }
            last[seq] = PROMPTS[0] + (seq == 1 ? PROMPTS[1] : 0) - 1;
        }
        if (llama_model_has_encoder(model)) {
            n_processed += PROMPTS[0] + PROMPTS[1];
            printf("encode: %d\n", llama_process(ctx, LLAMA_PROCESS_TYPE_ENCODE, batch.get()));
        }
        n_processed += PROMPTS[0] + PROMPTS[1];
        const int32_t status = llama_process(ctx, LLAMA_PROCESS_TYPE_DECODE, batch.get());
        printf("prompt: %d\n", status);
        if (status != 0) {
            return 5;
        }
        for (int32_t i = 0; i < PROMPTS[0] + PROMPTS[1]; i++) {
            const llama_token token = output(ctx, i, "prompt");
            for (int32_t seq = 0; seq < 2; seq++) {
                next[seq] = i == last[seq] ? token : next[seq];
            }
        }
    }
    llama_batch batch = llama_batch_init(2, 0, 1);
    for (int32_t step = 0; step < SINGLE + BOTH; step++) {
        batch.n_tokens = step < SINGLE ? 1 : 2;
        for (int32_t seq = 0; seq < batch.n_tokens; seq++) {
            batch.token[seq] = next[seq];
            batch.pos[seq] = position[seq]++;
            batch.n_seq_id[seq] = 1;
            batch.seq_id[seq][0] = seq;
            batch.logits[seq] = 1;
        }
        n_processed += batch.n_tokens;
        const int32_t status = llama_decode(ctx, batch);
        if (status != 0) {
            printf("step %d: %d\n", step, status);
            return 6;
        }
        for (int32_t seq = 0; seq < batch.n_tokens; seq++) {
            next[seq] = output(ctx, seq, "step");
        }
    }
    printf("tokens: %d\n", n_processed);
    llama_batch_free(batch);
    llama_free(ctx);
    llama_model_free(model);
    llama_backend_free();
    return 0;
}
