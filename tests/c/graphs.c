// Graphs of a small model, built by hand and shown to the eval callback alone: where does one end and the next begin?
//
//     graphs LOG STREAM            with no callback of its own
//     graphs LOG STREAM flush      with one that is shown every node and flushes whenever it is called
//
// First two of no tokens, then tokens (3, 3 again, 1), embeddings in their place (2, 2 again, 1), and a token. The model looks its tokens up
// in a second table when its block has begun, and adds what came in to what went out.

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml.h"

#include "check.h"

#include <string.h>

enum { WIDTH = 32, VOCABULARY = 8 };

static struct ggml_tensor * token_embd, * per_layer, * weights, * output, * cache;
static ggml_backend_t       backend;
static ggml_backend_sched_t sched;
// The same memory for every graph, as llama.cpp has it.
static char memory[1 << 20];

static struct ggml_tensor * named(struct ggml_tensor * t, const char * name) {
    return ggml_set_name(t, name);
}

static struct ggml_context * context(void) {
    const struct ggml_init_params params = { sizeof(memory), memory, true };
    return ggml_init(params);
}

static void compute(struct ggml_context * ctx, struct ggml_cgraph * graph, struct ggml_tensor * input, const void * values) {
    ggml_backend_sched_reset(sched);
    CHECK(ggml_backend_sched_alloc_graph(sched, graph));
    if (input) {
        ggml_backend_tensor_set(input, values, 0, ggml_nbytes(input));
    }
    CHECK(ggml_backend_sched_graph_compute(sched, graph) == GGML_STATUS_SUCCESS);
    ggml_free(ctx);
}

static void shift(void) {
    struct ggml_context * ctx   = context();
    struct ggml_cgraph *  graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, named(ggml_scale(ctx, cache, 0.5f), "k_shifted-0"));
    compute(ctx, graph, NULL, NULL);
}

static bool flushing(struct ggml_tensor * t, bool ask, void * user_data) {
    (void) t, (void) ask, (void) user_data;
    IS(F(flush)(), OK);
    return true;
}

// Of `n` tokens, or of `n` embeddings.
static void step(int n, bool embeddings) {
    struct ggml_context * ctx   = context();
    struct ggml_cgraph *  graph = ggml_new_graph(ctx);
    struct ggml_tensor *  input = embeddings ? named(ggml_new_tensor_2d(ctx, GGML_TYPE_F32, WIDTH, n), "inp_embd")
                                             : named(ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n), "inp_tokens");
    ggml_set_input(input);
    struct ggml_tensor * rows = embeddings ? input : named(ggml_get_rows(ctx, token_embd, input), "embd");
    struct ggml_tensor * norm = named(ggml_rms_norm(ctx, rows, 1e-5f), "norm-0");
    struct ggml_tensor * out  = named(ggml_mul_mat(ctx, weights, norm), "ffn_out-0");
    ggml_build_forward_expand(graph, out);
    if (!embeddings) {
        out = named(ggml_add(ctx, out, named(ggml_get_rows(ctx, per_layer, input), "inp_per_layer")), "per_layer-0");
    }
    out = named(ggml_add(ctx, out, rows), "l_out-0");
    out = named(ggml_mul_mat(ctx, output, out), "result_output");
    ggml_build_forward_expand(graph, out);
    float values[3 * WIDTH];
    for (int i = 0; i < 3 * WIDTH; i++) {
        values[i] = (float) i;
    }
    const int32_t ids[] = { 5, 6, 7 };
    compute(ctx, graph, input, embeddings ? (const void *) values : ids);
}

int main(int argc, char ** argv) {
    CHECK(argc >= 3);
    IS(F(set)("LLAMA_RESOURCE_CAPTURE", argv[2]), OK);
    IS(F(set)("LLAMA_RESOURCE_TENSORS", "FULL_TENSOR"), OK);
    IS(F(set)("LLAMA_RESOURCE_LOG_RATE", "unlimited"), OK);
    struct llama_resource_instrumentation_params init = F(default_params)();
    init.log_path = argv[1];
    init.hooks    = false;
    init.level    = LLAMA_RESOURCE_INSTRUMENTATION_LEVEL_VERBOSE;
    IS(F(init_with_params)(&init), OK);

    ggml_backend_load_all();
    backend = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, NULL);
    CHECK(backend);
    const struct ggml_init_params params = { 16 * ggml_tensor_overhead(), NULL, true };
    struct ggml_context *         model  = ggml_init(params);
    token_embd = named(ggml_new_tensor_2d(model, GGML_TYPE_F32, WIDTH, VOCABULARY), "token_embd.weight");
    per_layer  = named(ggml_new_tensor_2d(model, GGML_TYPE_F32, WIDTH, VOCABULARY), "per_layer_token_embd.weight");
    weights    = named(ggml_new_tensor_2d(model, GGML_TYPE_F32, WIDTH, WIDTH), "blk.0.ffn_down.weight");
    output     = named(ggml_new_tensor_2d(model, GGML_TYPE_F32, WIDTH, VOCABULARY), "output.weight");
    cache      = named(ggml_new_tensor_2d(model, GGML_TYPE_F32, WIDTH, VOCABULARY), "cache_k_l0");
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(model, backend);
    CHECK(buffer);
    ggml_backend_buffer_clear(buffer, 0);
    sched = ggml_backend_sched_new(&backend, NULL, 1, 64, false, false);
    struct llama_resource_eval_params theirs = llama_resource_eval_default_params();
    theirs.callback = flushing;
    ggml_backend_sched_set_eval_callback(sched, llama_resource_eval_callback, argc > 3 ? &theirs : NULL);

    shift();
    shift();
    const int tokens[] = { 3, 3, 1 }, embeddings[] = { 2, 2, 1 };
    for (int i = 0; i < 3; i++) {
        step(tokens[i], false);
    }
    for (int i = 0; i < 3; i++) {
        step(embeddings[i], true);
    }
    step(1, false);

    IS(F(free)(), OK);
    ggml_backend_sched_free(sched);
    ggml_backend_buffer_free(buffer);
    ggml_free(model);
    ggml_backend_free(backend);
    return 0;
}
