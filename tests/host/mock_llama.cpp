// A MOCK of llama.cpp, not llama.cpp: just enough of ggml and llama to load into a process and to be called.
//
// It stands for builds that do not exist yet. Its tensor is that of the pinned version unless a macro says otherwise:
//   MOCK_BIGGER   a further field: another size
//   MOCK_MOVED    `flags` and `op` have changed places: the same size
//   MOCK_MINIMAL  no ggml function at all that a probe could use
//   MOCK_TOKENS   its graph looks tokens up, so that it is a step, and has memory that can be captured
// Its llama_decode, scheduler and samplers throw C++ exceptions when they are told to. A context that was freed must not be asked for
// anything: the mock aborts then, where the real one may crash.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

struct ggml_tensor {
    int32_t type;
    void *buffer;
    int64_t ne[4];
    size_t nb[4];
#ifdef MOCK_MOVED
    int32_t flags;
    int32_t op_params[16];
    int32_t op;
#else
    int32_t op;
    int32_t op_params[16];
    int32_t flags;
#endif
    ggml_tensor *src[10];
    ggml_tensor *view_src;
    size_t view_offs;
    void *data;
    char name[64];
    void *extra;
    char padding[8];
#ifdef MOCK_BIGGER
    int64_t further[2];
#endif
};

struct llama_batch {
    int32_t n_tokens;
    int32_t *token;
    float *embd;
    int32_t *pos;
    int32_t *n_seq_id;
    int32_t **seq_id;
    int8_t *logits;
};
struct params { char bytes[200]; };  // larger than 16 bytes: on the stack, as in all versions

static float logits[8];
static bool live;

static void *alive(void *ctx) {
    if (!live || ctx != &live) {
        std::fputs("MOCK: a context that does not live was asked\n", stderr);
        std::abort();
    }
    return ctx;
}

extern "C" {
int mock_throw;  // what throws next: 1 decode, 2 accept, 3 apply, 4 the scheduler

#ifndef MOCK_MINIMAL
struct init { size_t size; void *buffer; bool no_alloc; };
size_t ggml_tensor_overhead() { return 32 + sizeof(ggml_tensor); }
void *ggml_init(init) { return std::malloc(1); }
void ggml_free(void *ctx) { std::free(ctx); }
ggml_tensor *ggml_new_tensor_4d(void *, int32_t type, int64_t a, int64_t b, int64_t c, int64_t d) {
    auto *t = static_cast<ggml_tensor *>(std::calloc(1, sizeof(ggml_tensor)));
    const int64_t ne[4] = {a, b, c, d};
    size_t stride = type == 0 ? 4 : 2;
    t->type = type;
    for (int i = 0; i < 4; i++) {
        t->ne[i] = ne[i];
        t->nb[i] = stride;
        stride *= ne[i];
    }
    t->data = std::calloc(1, stride);
    return t;
}
ggml_tensor *ggml_add(void *ctx, ggml_tensor *a, ggml_tensor *b) {
    auto *t = ggml_new_tensor_4d(ctx, 0, a->ne[0], a->ne[1], a->ne[2], a->ne[3]);
    t->op = 2, t->src[0] = a, t->src[1] = b;
    return t;
}
ggml_tensor *ggml_view_1d(void *ctx, ggml_tensor *a, int64_t n, size_t offset) {
    auto *t = ggml_new_tensor_4d(ctx, 0, n, 1, 1, 1);
    t->view_src = a, t->view_offs = offset;
    return t;
}
void ggml_set_output(ggml_tensor *t) { t->flags |= 2; }
ggml_tensor *ggml_set_name(ggml_tensor *t, const char *name) { std::strncpy(t->name, name, 63); return t; }
void *ggml_get_data(const ggml_tensor *t) { return t->data; }
#endif

#ifndef MOCK_MINIMAL
// A graph of two nodes, computed as the CPU backend does: the tensor is announced, threads meet.
struct graph { int n; ggml_tensor *nodes[2]; };
int ggml_graph_n_nodes(graph *g) { return g->n; }
ggml_tensor **ggml_graph_nodes(graph *g) { return g->nodes; }
#ifdef MOCK_TOKENS
const char *ggml_op_desc(const ggml_tensor *t) {
    return t->op == 2 ? "ADD" : t->op == 25 ? "RMS_NORM" : t->op == 40 ? "GET_ROWS" : "NONE";
}
const char *ggml_type_name(int32_t type) { return type == 26 ? "i32" : "f32"; }
#else
const char *ggml_op_desc(const ggml_tensor *t) { return t->op == 2 ? "ADD" : "RMS_NORM"; }
const char *ggml_type_name(int32_t) { return "f32"; }
#endif
int64_t ggml_blck_size(int32_t) { return 1; }
size_t ggml_type_size(int32_t) { return 4; }
size_t ggml_nbytes(const ggml_tensor *t) { return 4 * t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3]; }
bool ggml_cpu_extra_compute_forward(void *, ggml_tensor *) { return false; }
void ggml_barrier(void *) {}
int ggml_backend_sched_graph_compute_async(void *, graph *g) {
    for (int i = 0; i < g->n; i++) {
        ggml_cpu_extra_compute_forward(nullptr, g->nodes[i]);
        if (mock_throw == 4) { throw std::runtime_error("compute"); }
        ggml_barrier(nullptr);
    }
    return 0;
}
#ifdef MOCK_TOKENS
bool ggml_backend_buffer_is_host(void *) { return true; }
void ggml_backend_sched_synchronize(void *) {}
void ggml_backend_sched_set_eval_callback(void *, void *, void *) {}
bool ggml_gallocr_reserve_n(void *, graph *, const int *, const int *) { return true; }
bool ggml_gallocr_alloc_graph(void *, graph *) { return true; }
bool ggml_backend_sched_alloc_graph(void *sched, graph *g) {
    if (!ggml_gallocr_alloc_graph(sched, g)) {
        ggml_gallocr_reserve_n(sched, g, nullptr, nullptr);
        return ggml_gallocr_alloc_graph(sched, g);
    }
    return true;
}
// Three nodes of one token, with memory of their own; each step has its own values.
void mock_compute() {
    static ggml_tensor weights, ids, rows, norm, out;
    static float values[4][8];
    static int32_t token = 3;
    const auto make = [](ggml_tensor &t, int32_t type, int32_t op, const char *name, void *data, int64_t n) {
        t.type = type, t.op = op, t.data = data, t.buffer = logits;
        t.ne[0] = n, t.ne[1] = t.ne[2] = t.ne[3] = 1;
        t.nb[0] = 4, t.nb[1] = t.nb[2] = t.nb[3] = 4 * n;
        std::strcpy(t.name, name);
    };
    make(weights, 0, 0, "token_embd.weight", values[3], 8);
    make(ids, 26, 0, "inp_tokens", &token, 1);
    make(rows, 0, 40, "inp_embd", values[0], 8);
    make(norm, 0, 25, "norm-0", values[1], 8);
    make(out, 0, 2, "l_out-0", values[2], 8);
    rows.src[0] = &weights, rows.src[1] = &ids, norm.src[0] = &rows, out.src[0] = &norm, out.src[1] = &rows;
    for (auto &row : values) { for (float &v : row) { v += 1; } }
    static struct { int n; ggml_tensor *nodes[3]; } g = {3, {&rows, &norm, &out}};
    auto *same = reinterpret_cast<graph *>(&g);
    ggml_backend_sched_alloc_graph(logits, same);
    ggml_backend_sched_graph_compute_async(logits, same);
}
#else
void mock_compute() {
    static ggml_tensor a, b;
    a.op = 25, b.op = 2, b.src[0] = &a;
    for (ggml_tensor *t : {&a, &b}) {
        t->ne[0] = 8, t->ne[1] = t->ne[2] = t->ne[3] = 1;
        t->data = logits;
    }
    std::strcpy(a.name, "norm-0"), std::strcpy(b.name, "l_out-0");
    static graph g = {2, {&a, &b}};
    ggml_backend_sched_graph_compute_async(logits, &g);
}
#endif
#else
void mock_compute() {}
#endif

void *llama_model_load_from_file(const char *, params) { return logits; }
void *llama_init_from_model(void *, params) { live = true; return &live; }
void *llama_get_memory(void *ctx) { return alive(ctx); }
uint32_t llama_n_ctx(void *ctx) { return alive(ctx) ? 64 : 0; }
void llama_free(void *ctx) { if (ctx) { live = false; } }
int32_t llama_decode(void *, llama_batch) {
    if (mock_throw == 1) { throw std::runtime_error("decode"); }
    mock_compute();
    return 0;
}
float *llama_get_logits_ith(void *, int32_t) { return logits; }
void llama_sampler_apply(void *, void *) { if (mock_throw == 3) { throw std::runtime_error("apply"); } }
void llama_sampler_accept(void *, int32_t) { if (mock_throw == 2) { throw std::runtime_error("accept"); } }
}
