// A host of ggml alone that looks tokens up and has an eval callback of its own, which it replaces while nothing is recorded.
//
//     restart STREAM1 LOG1 STREAM2 LOG2
//
// Linked with the library before ggml, so that its hooks are the first that are found, as under LD_PRELOAD, and it says itself when it is recorded.
//
// Recorded, it runs a graph with callback A; not recorded, it sets B on the same scheduler; recorded again, and then not, it runs the graph with B.
// Prints how often either was shown a node after each run.
#include <stdio.h>
#include <string.h>

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"
#include "llama-resource-instrumentation.h"

static int shown[2];

static bool callback(struct ggml_tensor *t, bool ask, void *data) {
    (void) t;
    if (!ask) { shown[*(int *) data]++; }
    return true;
}

static ggml_backend_sched_t sched;

static int run(const char *what) {
    struct ggml_init_params params = {ggml_tensor_overhead() * 32 + ggml_graph_overhead(), NULL, true};
    struct ggml_context *ctx = ggml_init(params);
    struct ggml_cgraph *graph = ggml_new_graph(ctx);
    struct ggml_tensor *table = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 8, 16), *ids = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, 3);
    ggml_set_name(table, "token_embd.weight"), ggml_set_name(ids, "inp_tokens");
    ggml_set_input(table), ggml_set_input(ids);
    struct ggml_tensor *t = ggml_rms_norm(ctx, ggml_get_rows(ctx, table, ids), 0);
    ggml_set_name(t, "l_out-0");
    ggml_set_output(t);
    ggml_build_forward_expand(graph, t);
    ggml_backend_sched_reset(sched);
    if (!ggml_backend_sched_alloc_graph(sched, graph)) { return 1; }
    float values[8 * 16];
    for (int i = 0; i < 8 * 16; i++) { values[i] = (float) i; }
    const int rows[3] = {3, 1, 2};
    ggml_backend_tensor_set(table, values, 0, sizeof values);
    ggml_backend_tensor_set(ids, rows, 0, sizeof rows);
    memset(shown, 0, sizeof shown);
    const int status = ggml_backend_sched_graph_compute(sched, graph);
    printf("%s: A %d, B %d\n", what, shown[0], shown[1]);
    ggml_free(ctx);
    return status;
}

#define F(name) llama_resource_instrumentation_##name

static int record(const char *stream, const char *log) { return F(set)("LLAMA_RESOURCE_CAPTURE", stream) || F(init)(1, log); }

int main(int argc, char **argv) {
    static int a = 0, b = 1;
    if (argc != 5) { return 9; }
    ggml_backend_t cpu = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(cpu, 1);
    sched = ggml_backend_sched_new(&cpu, NULL, 1, 256, false, false);
    if (record(argv[1], argv[2])) { return 2; }
    ggml_backend_sched_set_eval_callback(sched, callback, &a);
    if (run("recorded")) { return 3; }
    if (F(free)()) { return 4; }
    ggml_backend_sched_set_eval_callback(sched, callback, &b);
    if (record(argv[3], argv[4])) { return 5; }
    if (run("again")) { return 6; }
    if (F(free)()) { return 7; }
    if (run("not recorded")) { return 8; }
    ggml_backend_sched_free(sched);
    ggml_backend_free(cpu);
    puts("done");
    return 0;
}
