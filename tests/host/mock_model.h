// The graph of MOCK_MODEL layers (mock_llama.cpp): what SmolLM2-135M computes for one token, node by node, without the
// arithmetic: 515 calls and 756 barriers for 30 layers, which were counted in the real one.

#include <initializer_list>

extern "C++" {

enum {
    op_none, op_add = 2, op_mul = 7, op_norm = 25, op_mul_mat = 29, op_rows = 40, op_set_rows = 42, op_rope = 48,
    op_attention = 70, op_glu = 90
};

struct mock_op_names {
    const char *operator[](int op) const {
        switch (op) {
            case op_mul: return "MUL";
            case op_add: return "ADD";
            case op_norm: return "RMS_NORM";
            case op_mul_mat: return "MUL_MAT";
            case op_rows: return "GET_ROWS";
            case op_set_rows: return "SET_ROWS";
            case op_rope: return "ROPE";
            case op_attention: return "FLASH_ATTN_EXT";
            case op_glu: return "SWIGLU";
            default: return "NONE";
        }
    }
};
static const mock_op_names mock_ops;

struct mock_graph {
    enum { width = 576, kv_width = 192, ff_width = 1536, vocabulary = 49152, most = 1024 };
    struct { int n; ggml_tensor *nodes[most]; } graph = {};

    ggml_tensor *make(int op, const char *name, int layer, int n, std::initializer_list<ggml_tensor *> sources) {
        static unsigned random = 1;
        auto *t = static_cast<ggml_tensor *>(std::calloc(1, sizeof(ggml_tensor)));
        auto *values = static_cast<float *>(std::calloc(n, sizeof(float)));
        for (int i = 0; i < n; i++) {
            random = random * 1664525u + 1013904223u;
            values[i] = (float(random >> 8) / (1 << 24) - 0.5f) * (i % 7 + 1);
        }
        t->op = op, t->data = values, t->buffer = logits;
        t->ne[0] = n, t->ne[1] = t->ne[2] = t->ne[3] = 1;
        t->nb[0] = 4, t->nb[1] = t->nb[2] = t->nb[3] = size_t(4) * n;
        const char *format = layer < 0 ? "%s" : op == op_none ? "blk.%2$d.%1$s.weight" : "%s-%d";
        std::snprintf(t->name, sizeof t->name, format, name, layer);
        int source = 0;
        for (ggml_tensor *s : sources) { t->src[source++] = s; }
        if (op != op_none) { graph.nodes[graph.n++] = t; }
        return t;
    }

    ggml_tensor *product(const char *weight, const char *name, int layer, int n, ggml_tensor *of) {
        return make(op_mul_mat, name, layer, n, {make(op_none, weight, layer, n, {}), of});
    }

    ggml_tensor *normed(const char *weight, const char *name, int layer, ggml_tensor *of) {
        ggml_tensor *norm = make(op_norm, "norm", layer, width, {of});
        return make(op_mul, name, layer, width, {norm, make(op_none, weight, layer, width, {})});
    }

    mock_graph() {
        ggml_tensor *ids = make(op_none, "inp_tokens", -1, 1, {}), *outputs = make(op_none, "inp_out_ids", -1, 1, {});
        ids->type = outputs->type = 26;
        *static_cast<int32_t *>(ids->data) = *static_cast<int32_t *>(outputs->data) = 0;
        ggml_tensor *x = make(op_rows, "inp_embd", -1, width, {make(op_none, "token_embd.weight", -1, width, {}), ids});
        for (int i = 0; i < MOCK_MODEL; i++) {
            ggml_tensor *norm = normed("attn_norm", "attn_norm", i, x);
            ggml_tensor *q = product("attn_q", "Qcur", i, width, norm);
            ggml_tensor *k = product("attn_k", "Kcur", i, kv_width, norm);
            ggml_tensor *v = product("attn_v", "Vcur", i, kv_width, norm);
            q = make(op_rope, "Qcur", i, width, {q}), k = make(op_rope, "Kcur", i, kv_width, {k});
            k = make(op_set_rows, "cache_k", i, kv_width, {k}), v = make(op_set_rows, "cache_v", i, kv_width, {v});
            ggml_tensor *y = make(op_attention, "kqv_out", i, width, {q, k, v});
            y = product("attn_output", "attn_out", i, width, y);
            if (i + 1 == MOCK_MODEL) {
                y = make(op_rows, "node", i, width, {y, outputs});
                x = make(op_rows, "node", i, width, {x, outputs});
            }
            x = make(op_add, "ffn_inp", i, width, {y, x});
            norm = normed("ffn_norm", "ffn_norm", i, x);
            ggml_tensor *gate = product("ffn_gate", "ffn_gate", i, ff_width, norm);
            y = make(op_glu, "ffn_swiglu", i, ff_width, {gate, product("ffn_up", "ffn_up", i, ff_width, norm)});
            x = make(op_add, "l_out", i, width, {product("ffn_down", "ffn_out", i, width, y), x});
        }
        product("output", "result_output", -1, vocabulary, normed("output_norm", "result_norm", -1, x));
    }
};

}  // extern "C++"

bool ggml_cpu_extra_compute_forward(void *, ggml_tensor *);
void ggml_compute_forward_rms_norm_mul_fused(void *, ggml_tensor *, ggml_tensor *) {}
void ggml_barrier(void *);

// As ggml-cpu.c does: a norm and the multiplication after it are one call; products meet once more inside.
static int mock_run(int n, ggml_tensor **nodes) {
    usleep(mock_step_us);
    for (int i = 0; i < n; i++) {
        if (nodes[i]->op == op_norm) {
            ggml_compute_forward_rms_norm_mul_fused(nullptr, nodes[i], nodes[i + 1]);
            i++;
        } else {
            ggml_cpu_extra_compute_forward(nullptr, nodes[i]);
            if (nodes[i]->op == op_mul_mat || nodes[i]->op == op_attention) { ggml_barrier(logits); }
        }
        ggml_barrier(logits);
    }
    return 0;
}
