// A MOCK of llama.cpp, not llama.cpp: just enough of ggml and llama to load into a process and to be called.
//
// It stands for builds that do not exist yet. Its tensor is that of the pinned version unless a macro says otherwise:
//   MOCK_BIGGER   a further field: another size
//   MOCK_MOVED    `flags` and `op` have changed places: the same size
//   MOCK_MINIMAL  no ggml function at all that a probe could use
//   MOCK_NAMELESS a device as a host may make one for a backend of its own: it says neither its name nor its kind
//   MOCK_BOUND    ggml's calls within its own library are bound there: nobody else sees them
//   MOCK_TOKENS   its graph looks tokens up, so that it is a step, and has memory that can be captured
//   MOCK_MODEL    with it, as many layers: the graph has the nodes, sizes and barriers of a small Llama's decode step
// Its llama_decode, scheduler and samplers throw C++ exceptions when they are told to. A context that was freed must not be asked for
// anything, nor a cache for a sequence that it does not have, nor a device for a name that it has not got: the mock aborts then, or crashes
// as the real one does.
#include <unistd.h>

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

static useconds_t mock_sleep_us;
int mock_step_us;  // how long a step of MOCK_MODEL takes

#ifdef MOCK_MODEL
#include "mock_model.h"
#endif

#ifndef MOCK_MINIMAL
// A graph of two nodes, computed as the CPU backend does: the tensor is announced, threads meet.
struct graph { int n; ggml_tensor *nodes[2]; };
int ggml_graph_n_nodes(graph *g) { return g->n; }
ggml_tensor **ggml_graph_nodes(graph *g) { return g->nodes; }
#if defined MOCK_MODEL
const char *ggml_op_desc(const ggml_tensor *t) { return mock_ops[t->op]; }
const char *ggml_type_name(int32_t type) { return type == 26 ? "i32" : type == 3 ? "q4_1" : "f32"; }
#elif defined MOCK_TOKENS
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
void ggml_barrier(void *pool) {
    if (pool != logits) {
        std::fputs("MOCK: threads of another copy meet\n", stderr);
        std::abort();
    }
}
int ggml_backend_sched_graph_compute_async(void *sched, graph *g) {
    if (sched != logits) {
        std::fputs("MOCK: a scheduler of another copy was asked\n", stderr);
        std::abort();
    }
#ifdef MOCK_MODEL
    return mock_run(g->n, ggml_graph_nodes(g));
#endif
    for (int i = 0; i < g->n; i++) {
        ggml_cpu_extra_compute_forward(nullptr, g->nodes[i]);
        if (mock_throw == 4) { throw std::runtime_error("compute"); }
        usleep(mock_sleep_us);
        ggml_barrier(logits);
    }
    return 0;
}
#ifdef MOCK_TOKENS
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
#ifdef MOCK_MODEL
void mock_compute() {
    static mock_graph model;
    auto *g = reinterpret_cast<graph *>(&model.graph);
    ggml_backend_sched_alloc_graph(logits, g);
    ggml_backend_sched_graph_compute_async(logits, g);
}
#else
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
#endif
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
// A graph that processes no tokens, as an encoder of pictures has them. It takes its time.
void mock_picture() {
    static ggml_tensor t;
    t.op = 25;
    t.ne[0] = 8, t.ne[1] = t.ne[2] = t.ne[3] = 1;
    t.data = logits;
    std::strcpy(t.name, "patches");
    static graph g = {1, {&t}};
    mock_sleep_us = 2000;
    ggml_backend_sched_graph_compute_async(logits, &g);
    mock_sleep_us = 0;
}
#else
void mock_compute() {}
void mock_picture() {}
#endif

// A device, and buffers.
struct device { const char *(*get_name)(device *); void *more[2]; int32_t (*get_type)(device *); };
#ifdef MOCK_NAMELESS
static device cpu;
#else
static device cpu = {[](device *) { return "CPU"; }, {}, [](device *) { return 0; }};
#endif
struct buffer { void *type; size_t size; };
static void *a_type = &cpu;
static buffer *make(void *type, size_t size) { return new buffer{type, size}; }
buffer *ggml_backend_buft_alloc_buffer(void *type, size_t size) { return make(type, size); }
void ggml_backend_buffer_free(buffer *b) { delete b; }
void ggml_backend_buffer_set_usage(buffer *, uint32_t) {}
size_t ggml_backend_buffer_get_size(buffer *b) { return b->size; }
void *ggml_backend_buffer_get_type(buffer *b) { return b->type; }
bool ggml_backend_buffer_is_host(buffer *) { return true; }
const char *ggml_backend_buft_name(void *) { return "CPU"; }
device *ggml_backend_buft_get_device(void *) { return &cpu; }
const char *ggml_backend_dev_name(device *d) { return d->get_name(d); }
int32_t ggml_backend_dev_type(device *d) { return d->get_type(d); }
const char *ggml_backend_name(void *) { return "CPU"; }
device *ggml_backend_get_device(void *) { return &cpu; }
void *ggml_backend_sched_get_tensor_backend(void *, void *) { return &cpu; }
const char *ggml_get_name(const ggml_tensor *t) { return t->name; }
ggml_tensor *ggml_get_first_tensor(void *ctx) { return static_cast<ggml_tensor *>(ctx); }
buffer *ggml_backend_alloc_ctx_tensors_from_buft(void *, void *type) {
#ifdef MOCK_BOUND
    return make(type, 1000);
#else
    return ggml_backend_buft_alloc_buffer(type, 1000);
#endif
}

static buffer *cache, *outputs;
void *llama_model_load_from_file(const char *, params) { return logits; }
void *llama_init_from_model(void *, params) {
    static ggml_tensor first;
    std::strcpy(first.name, "cache_k_l0");
#ifdef MOCK_TOKENS
    // The allocator of the context's scheduler plans before anything is computed, as llama.cpp's does.
    static const int kinds[2] = {};
    ggml_gallocr_reserve_n(logits, nullptr, kinds, kinds);
#endif
    cache = ggml_backend_alloc_ctx_tensors_from_buft(&first, a_type);
    outputs = ggml_backend_buft_alloc_buffer(a_type, 500);
    live = true;
    return &live;
}
void *llama_get_memory(void *ctx) { return alive(ctx); }
uint32_t llama_n_ctx(void *ctx) { return alive(ctx) ? 64 : 0; }
int32_t llama_n_threads(void *) { return 1; }
int32_t llama_n_threads_batch(void *) { return 1; }
uint32_t llama_n_seq_max(void *ctx) { return alive(ctx) ? 2 : 0; }
void llama_free(void *ctx) {
    if (ctx) {
        live = false;
        ggml_backend_buffer_free(cache), ggml_backend_buffer_free(outputs);
    }
}
int32_t llama_memory_seq_pos_max(void *memory, int32_t seq) {
    if (alive(memory) && (seq < 0 || seq >= 2)) {
        std::fputs("MOCK: the cache has no such sequence\n", stderr);
        std::abort();
    }
    return 7;
}
int32_t llama_memory_seq_pos_min(void *memory, int32_t seq) { return llama_memory_seq_pos_max(memory, seq) - 7; }
size_t llama_state_seq_set_data(void *, const uint8_t *, size_t size, int32_t) { return size; }
// Functions by the names that they had before.
void *llama_load_model_from_file(const char *path, params p) { return llama_model_load_from_file(path, p); }
void *llama_new_context_with_model(void *model, params p) { return llama_init_from_model(model, p); }
// The cache's functions by the name that they had for some months.
void llama_kv_self_clear(void *) {}
bool llama_kv_self_seq_rm(void *, int32_t, int32_t, int32_t) { return true; }

// A batch that is filled row by row.
static int32_t rows;
int32_t llama_batch_ext_add_token(void *, int32_t, int32_t) { return rows++; }
bool llama_batch_ext_set_output_logits(void *, int32_t, bool) { return true; }
void llama_batch_ext_clear(void *) { rows = 0; }
int32_t llama_process(void *, int32_t, void *) { mock_compute(); return 0; }
int32_t llama_decode(void *ctx, llama_batch) {
    alive(ctx);
    if (mock_throw == 1) { throw std::runtime_error("decode"); }
    mock_compute();
    return 0;
}
float *llama_get_logits_ith(void *ctx, int32_t) { return alive(ctx) ? logits : nullptr; }
void llama_sampler_apply(void *, void *) { if (mock_throw == 3) { throw std::runtime_error("apply"); } }
void llama_sampler_accept(void *, int32_t) { if (mock_throw == 2) { throw std::runtime_error("accept"); } }
}
