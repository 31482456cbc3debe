// A host without llama: graphs of ggml alone, with names that a log could break at, run by the scheduler on the CPU backend.
#include <stdio.h>
#include <string.h>

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

static const char *const NAMES[] = {
    "plain", "\"quoted\" \\back\\slash/", "line\nbreak\r\nand\ttab", "\x01\x02\x1f\x7f", "\xff\xfe not UTF-8", "half a letter \xc3",
    "a surrogate \xed\xa0\x80", "a letter \xc3\xa4 and a sign \xe2\x82\xac", "{\"event\":\"resource_session_end\"}", "",
    "sixty-three bytes, the most that a name can have: 0123456789abc", "cut within a letter, at byte sixty-three: 0123456789 abcdefghijk\xc3\xa4",
    "\xe2\x80\xa8 line separator", "</script><b>",
};
enum { N = sizeof NAMES / sizeof *NAMES };

int main(void) {
    ggml_backend_t cpu = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(cpu, 1);
    ggml_backend_sched_t sched = ggml_backend_sched_new(&cpu, NULL, 1, 256, false, false);
    for (int round = 0; round < 3; round++) {
        struct ggml_init_params params = {ggml_tensor_overhead() * 128 + ggml_graph_overhead(), NULL, true};
        struct ggml_context *ctx = ggml_init(params);
        struct ggml_cgraph *graph = ggml_new_graph(ctx);
        struct ggml_tensor *input = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, 16), *t = ggml_rms_norm(ctx, input, 0);
        ggml_set_input(input);
        ggml_set_name(t, "norm-0");  // by this the library knows a graph that processes tokens
        for (int i = 0; i < N; i++) {
            t = ggml_add(ctx, t, input);
            ggml_set_name(t, NAMES[i]);
        }
        ggml_set_output(t);
        ggml_build_forward_expand(graph, t);
        ggml_backend_sched_reset(sched);
        if (!ggml_backend_sched_alloc_graph(sched, graph)) { return 1; }
        float values[16];
        for (int i = 0; i < 16; i++) { values[i] = 1; }
        ggml_backend_tensor_set(input, values, 0, sizeof values);
        if (ggml_backend_sched_graph_compute(sched, graph) != GGML_STATUS_SUCCESS) { return 2; }
        ggml_backend_tensor_get(t, values, 0, sizeof values);
        if (values[7] != N + 1) { return 3; }
        ggml_free(ctx);
    }
    ggml_backend_sched_free(sched);
    ggml_backend_free(cpu);
    puts("done");
    return 0;
}
