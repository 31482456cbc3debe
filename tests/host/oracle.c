// An independent witness of what a model computes: preloaded into llama-server, it writes the bytes of every node of every graph run.
//
//     cc -O2 -shared -fPIC -Illama.cpp/ggml/include tests/host/oracle.c -o oracle.so
//     ORACLE_OUT=run.bin [ORACLE_NAMES=l_out,Qcur] LD_PRELOAD=./oracle.so llama-server ...
//
// It shares no code and no method of attribution with the library: it takes the values with ggml's own callback, node by node, before
// anything can overwrite them; and it takes tokens, positions and sequences from the `llama_ubatch` that llama.cpp builds the graph for
// (a C++ struct of the pinned commit), where the library has to work them out from the batches that went in.
//
// It may stand before or after the library in LD_PRELOAD. Behind it, it forwards a callback that the library sets; before it, it looks to
// the library like a host with a callback of its own. tests/server/capture.py reads the file; all integers are little-endian:
//
//     "ORACLE1\n", then records: u8 kind, u32 length of what follows
//     'R'  u32 run, u64 scheduler, i32 nodes, i32 tokens (-1: no ubatch), then per token i32 token, pos, seq, u32 n_seq, output
//          then three lists, each i32 length (-1: not in the graph) and i32 values: inp_tokens, inp_pos, out_ids
//     'N'  u32 run, u32 index in the graph, u32 occurrence, i32 type, i64 ne[4], u32 flags, u32 is_view, u32 contiguous, i32 root
//          (index of the node whose memory it is or looks into, -1: not one of this graph)
//          u32 lengths of name, op and source (name of src[0]), u64 bytes; name, op, source, values (none where bytes is 0)
//     'E'  u32 run: the run is complete

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ggml-backend.h"
#include "ggml.h"

enum { MAX_NODES = 32768, MAX_NAMES = 64, MAX_SCHEDS = 16 };

// src/llama-batch.h of the pinned commit, as far as it is needed.
struct ubatch {
    uint32_t equal_seqs, n_tokens, n_seq_tokens, n_seqs, n_seqs_unq, n_pos;
    int32_t * token;
    float * embd;
    int32_t * pos;
    int32_t * n_seq_id;
    int32_t ** seq_id;
    int32_t * seq_id_unq;
    int32_t * seq_idx;
    int8_t * output;
};

struct node {
    const struct ggml_tensor * tensor;
    uint32_t index, occurrence;
};

struct chained {
    ggml_backend_sched_t sched;
    ggml_backend_sched_eval_callback callback;
    void * user_data;
};

static FILE * out;
static const char * names[MAX_NAMES];
static int n_names;
static uint32_t run;
static const struct ubatch * ubatch;  // of the process_ubatch that is running
static struct node nodes[MAX_NODES];  // of the graph that is running, sorted by address
static int n_nodes;
static struct chained chain[MAX_SCHEDS];
static bool chained_wants;

static void die(const char * what) {
    fprintf(stderr, "oracle: %s\n", what);
    abort();
}

static void * next(const char * name) {
    void * function = dlsym(RTLD_NEXT, name);
    if (!function) die(name);
    return function;
}

__attribute__((constructor)) static void start(void) {
    const char * path = getenv("ORACLE_OUT");
    if (!path) return;
    out = fopen(path, "wbe");
    if (!out) die("ORACLE_OUT cannot be created");
    setvbuf(out, NULL, _IOFBF, 1 << 20);
    fwrite("ORACLE1\n", 1, 8, out);
    char * list = getenv("ORACLE_NAMES");
    if (!list || !*list) return;
    list = strdup(list);
    for (char * name = strtok(list, ","); name && n_names < MAX_NAMES; name = strtok(NULL, ",")) names[n_names++] = name;
}

static bool wanted(const char * name) {
    for (int i = 0; i < n_names; i++)
        if (!strncmp(name, names[i], strlen(names[i]))) return true;
    return n_names == 0;
}

// --- Records: collected in memory, since the length comes first ---

static uint8_t * record;
static size_t used, room;

// Room for `size` more bytes of the record.
static void * append(size_t size) {
    if (used + size > room) {
        room = (used + size) * 2;
        record = realloc(record, room);
        if (!record) die("out of memory");
    }
    used += size;
    return record + used - size;
}

static void put(const void * data, size_t size) { memcpy(append(size), data, size); }

static void put_i32(int32_t value) { put(&value, 4); }

static void put_u64(uint64_t value) { put(&value, 8); }

static void write_record(char kind) {
    const uint32_t length = (uint32_t) used;
    if (fwrite(&kind, 1, 1, out) != 1 || fwrite(&length, 4, 1, out) != 1 || fwrite(record, 1, used, out) != used) die("ORACLE_OUT is full");
    used = 0;
}

static void put_input(const struct ggml_tensor * input) {
    const int32_t n = input ? (int32_t) ggml_nelements(input) : -1;
    put_i32(n);
    for (int32_t i = 0; i < n; i++) {
        int32_t value;
        ggml_backend_tensor_get(input, &value, 4 * i, 4);
        put_i32(value);
    }
}

// A graph input by its name: a leaf that some node reads. Where the graph is spread over backends, the original, not its copies.
static const struct ggml_tensor * input(struct ggml_cgraph * graph, const char * name) {
    for (int i = 0; i < ggml_graph_n_nodes(graph); i++)
        for (int s = 0; s < GGML_MAX_SRC; s++) {
            const struct ggml_tensor * source = ggml_graph_node(graph, i)->src[s];
            if (!source || source->type != GGML_TYPE_I32 || !source->buffer) continue;
            const char * found = strchr(source->name, '#');  // BACKEND#NAME#COPY
            const size_t length = strlen(name);
            if (!strcmp(source->name, name) || (found && !strncmp(found + 1, name, length) && found[1 + length] == '#')) return source;
        }
    return NULL;
}

static void write_run(ggml_backend_sched_t sched, struct ggml_cgraph * graph) {
    put_i32((int32_t) run);
    put_u64((uint64_t) (uintptr_t) sched);
    put_i32(ggml_graph_n_nodes(graph));
    put_i32(ubatch ? (int32_t) ubatch->n_tokens : -1);
    for (uint32_t i = 0; ubatch && i < ubatch->n_tokens; i++) {
        put_i32(ubatch->token ? ubatch->token[i] : -1);
        put_i32(ubatch->pos[i]);
        put_i32(ubatch->seq_id[i][0]);
        put_i32(ubatch->n_seq_id[i]);
        put_i32(ubatch->output[i]);
    }
    put_input(input(graph, "inp_tokens"));
    put_input(input(graph, "inp_pos"));
    put_input(input(graph, "out_ids"));
    write_record('R');
}

// --- Nodes ---

static int by_address(const void * a, const void * b) {
    const struct ggml_tensor * left = ((const struct node *) a)->tensor, * right = ((const struct node *) b)->tensor;
    return (left > right) - (left < right);
}

// Index and occurrence of every node in the whole graph: the callback sees only pieces of it.
static void number_nodes(struct ggml_cgraph * graph) {
    n_nodes = ggml_graph_n_nodes(graph);
    if (n_nodes > MAX_NODES) die("a graph has too many nodes");
    for (int i = 0; i < n_nodes; i++) {
        const struct ggml_tensor * tensor = ggml_graph_node(graph, i);
        uint32_t occurrence = 0;
        for (int j = 0; j < i; j++) {
            const struct ggml_tensor * other = ggml_graph_node(graph, j);
            occurrence += other->op == tensor->op && (other->flags & GGML_TENSOR_FLAG_COMPUTE) && !strcmp(other->name, tensor->name)
                          && !strcmp(ggml_op_desc(other), ggml_op_desc(tensor));
        }
        nodes[i] = (struct node) {tensor, (uint32_t) i, occurrence};
    }
    qsort(nodes, n_nodes, sizeof *nodes, by_address);
}

// Index of the node whose memory a tensor is or looks into; -1 for views of weights and of the cache, whose bytes are not looked at.
static int32_t root_of(const struct ggml_tensor * tensor) {
    if (tensor->op == GGML_OP_NONE) return -1;
    while (tensor->view_src) tensor = tensor->view_src;
    const struct node key = {tensor, 0, 0}, * root = bsearch(&key, nodes, n_nodes, sizeof *nodes, by_address);
    return root ? (int32_t) root->index : -1;
}

// The values without the gaps that a permuted or cut view has between its rows.
static void put_packed(const struct ggml_tensor * tensor) {
    const size_t row = (size_t) tensor->ne[0] * ggml_type_size(tensor->type);
    char * span = malloc(ggml_nbytes(tensor));
    if (!span) die("out of memory");
    ggml_backend_tensor_get(tensor, span, 0, ggml_nbytes(tensor));
    for (int64_t i3 = 0; i3 < tensor->ne[3]; i3++)
        for (int64_t i2 = 0; i2 < tensor->ne[2]; i2++)
            for (int64_t i1 = 0; i1 < tensor->ne[1]; i1++)
                put(span + i1 * tensor->nb[1] + i2 * tensor->nb[2] + i3 * tensor->nb[3], row);
    free(span);
}

static void write_node(struct ggml_tensor * tensor) {
    const struct node key = {tensor, 0, 0};
    const struct node * node = bsearch(&key, nodes, n_nodes, sizeof *nodes, by_address);
    if (!node) die("a node is not in its graph");
    const int32_t root = root_of(tensor);
    const char * op = ggml_op_desc(tensor);
    const char * source = tensor->src[0] ? tensor->src[0]->name : "";
    const bool contiguous = ggml_is_contiguous(tensor), rows = !ggml_is_quantized(tensor->type) && tensor->nb[0] == ggml_type_size(tensor->type);
    const bool bytes = (contiguous || rows) && (tensor->flags & GGML_TENSOR_FLAG_COMPUTE) && root >= 0 && wanted(tensor->name);
    const uint64_t size = bytes ? (uint64_t) ggml_nelements(tensor) * ggml_type_size(tensor->type) / ggml_blck_size(tensor->type) : 0;
    put_i32((int32_t) run);
    put_i32((int32_t) node->index);
    put_i32((int32_t) node->occurrence);
    put_i32(tensor->type);
    for (int i = 0; i < 4; i++) put_u64((uint64_t) tensor->ne[i]);
    put_i32(tensor->flags);
    put_i32(tensor->view_src != NULL);
    put_i32(contiguous);
    put_i32(root);
    put_i32((int32_t) strlen(tensor->name));
    put_i32((int32_t) strlen(op));
    put_i32((int32_t) strlen(source));
    put_u64(size);
    put(tensor->name, strlen(tensor->name));
    put(op, strlen(op));
    put(source, strlen(source));
    if (size && contiguous) ggml_backend_tensor_get(tensor, append(size), 0, size);
    else if (size) put_packed(tensor);
    write_record('N');
}

// --- Hooks ---

static struct chained * chained_of(ggml_backend_sched_t sched) {
    for (int i = 0; i < MAX_SCHEDS; i++)
        if (chain[i].sched == sched || !chain[i].sched) {
            chain[i].sched = sched;
            return &chain[i];
        }
    die("too many schedulers");
    return NULL;
}

static bool on_node(struct ggml_tensor * tensor, bool ask, void * user_data) {
    const struct chained * inner = user_data;
    if (ask) {  // every node: it is then computed alone, and the next call is the answer to this one
        chained_wants = inner->callback && inner->callback(tensor, true, inner->user_data);
        return true;
    }
    write_node(tensor);
    return chained_wants ? inner->callback(tensor, false, inner->user_data) : true;
}

void ggml_backend_sched_set_eval_callback(ggml_backend_sched_t sched, ggml_backend_sched_eval_callback callback, void * user_data) {
    static void (*real)(ggml_backend_sched_t, ggml_backend_sched_eval_callback, void *);
    if (!real) real = next("ggml_backend_sched_set_eval_callback");
    struct chained * inner = chained_of(sched);
    inner->callback = callback;
    inner->user_data = user_data;
    real(sched, callback, user_data);
}

void ggml_backend_sched_free(ggml_backend_sched_t sched) {
    static void (*real)(ggml_backend_sched_t);
    if (!real) real = next("ggml_backend_sched_free");
    if (sched) *chained_of(sched) = (struct chained) {sched, NULL, NULL};  // the address may come back
    real(sched);
}

enum ggml_status ggml_backend_sched_graph_compute_async(ggml_backend_sched_t sched, struct ggml_cgraph * graph) {
    static enum ggml_status (*real)(ggml_backend_sched_t, struct ggml_cgraph *);
    static void (*real_set)(ggml_backend_sched_t, ggml_backend_sched_eval_callback, void *);
    if (!real) real = next("ggml_backend_sched_graph_compute_async");
    if (!real_set) real_set = next("ggml_backend_sched_set_eval_callback");
    if (!out) return real(sched, graph);
    number_nodes(graph);
    write_run(sched, graph);
    struct chained inner = *chained_of(sched);
    real_set(sched, on_node, &inner);
    const enum ggml_status status = real(sched, graph);
    real_set(sched, inner.callback, inner.user_data);
    put_i32((int32_t) run++);
    write_record('E');
    fflush(out);
    return status;
}

// llm_graph_result * llama_context::process_ubatch(const llama_ubatch &, llm_graph_type, llama_memory_context_i *, ggml_status &)
void * process_ubatch(void * context, const struct ubatch * batch, int type, void * memory, void * status)
    __asm__("_ZN13llama_context14process_ubatchERK12llama_ubatch14llm_graph_typeP22llama_memory_context_iR11ggml_status");

void * process_ubatch(void * context, const struct ubatch * batch, int type, void * memory, void * status) {
    static void * (*real)(void *, const struct ubatch *, int, void *, void *);
    if (!real) real = next("_ZN13llama_context14process_ubatchERK12llama_ubatch14llm_graph_typeP22llama_memory_context_iR11ggml_status");
    ubatch = batch;
    void * result = real(context, batch, type, memory, status);
    ubatch = NULL;
    return result;
}
