// The cheapest tool that can be written with ggml's eval callback, preloaded: it copies the wanted tensors and throws them away.
//
//     cc -O2 -shared -fPIC -Illama.cpp/ggml/include bench/memcpy_callback.c -o memcpy_callback.so -ldl
//     llama-resource stream ls acts.stream --json | jq -r '.. | objects | select(.op?) | "\(.tensor // .name)\t\(.op)"' >names.txt
//     MEMCPY_TENSORS=$PWD/names.txt llama-resource bench --modes preload:$PWD/memcpy_callback.so
//
// What a capture can be compared with. No file, no thread, no lock, no look at a value: one hash of the name a node, one copy a wanted
// node, into memory that is warm. A line of MEMCPY_TENSORS is "NAME OP", of the tensors that a capture (acts.stream) holds. At its end
// it says how much it has copied (MEMCPY_REPORT).

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ggml-backend.h"
#include "ggml.h"

enum { SLOTS = 1 << 14 };

static uint64_t wanted[SLOTS];
static char * memory;
static size_t room, used, copied;
static long tensors;

static uint64_t hash(const char * name, const char * op) {
    uint64_t h = 1469598103934665603u;
    for (; *name; name++) h = (h ^ (uint8_t) *name) * 1099511628211u;
    for (; *op; op++) h = (h ^ (uint8_t) *op) * 1099511628211u;
    return h | 1;
}

static uint64_t * slot(uint64_t h) {
    uint64_t i = h % SLOTS;
    while (wanted[i] && wanted[i] != h) i = (i + 1) % SLOTS;
    return &wanted[i];
}

__attribute__((constructor)) static void start(void) {
    const char * path = getenv("MEMCPY_TENSORS");
    FILE * file = path ? fopen(path, "re") : NULL;
    char line[256];
    while (file && fgets(line, sizeof line, file)) {
        char * op = strchr(line, '\t');
        if (!op) continue;
        *op++ = 0;
        op[strcspn(op, "\n")] = 0;
        const uint64_t h = hash(line, op);
        *slot(h) = h;
    }
    if (file) fclose(file);
}

__attribute__((destructor)) static void finish(void) {
    const char * path = getenv("MEMCPY_REPORT");
    FILE * file = path ? fopen(path, "we") : NULL;
    if (!file) return;
    fprintf(file, "{\"tensors\": %ld, \"bytes\": %zu}\n", tensors, copied);
    fclose(file);
}

static bool on_node(struct ggml_tensor * tensor, bool ask, void * user_data) {
    (void) user_data;
    if (ask) return *slot(hash(tensor->name, ggml_op_desc(tensor))) != 0;
    const size_t size = ggml_nbytes(tensor);
    if (used + size > room) {
        room = (used + size) * 2;
        memory = realloc(memory, room);
        if (!memory) abort();
    }
    ggml_backend_tensor_get(tensor, memory + used, 0, size);
    used += size;
    copied += size;
    tensors++;
    return true;
}

enum ggml_status ggml_backend_sched_graph_compute_async(ggml_backend_sched_t sched, struct ggml_cgraph * graph) {
    static enum ggml_status (*real)(ggml_backend_sched_t, struct ggml_cgraph *);
    if (!real) real = (enum ggml_status (*)(ggml_backend_sched_t, struct ggml_cgraph *)) dlsym(RTLD_NEXT, "ggml_backend_sched_graph_compute_async");
    used = 0;
    ggml_backend_sched_set_eval_callback(sched, on_node, NULL);
    return real(sched, graph);
}
