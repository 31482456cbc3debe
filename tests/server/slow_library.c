/* A stand-in for an instrumentation library that has become slow: preloaded in its place, it lets every computation take four times as long.
 * It sleeps in proportion to the work, so that the test decides the same on a busy machine.
 *
 *     cc -O2 -shared -fPIC slow_library.c -o slow_library.so -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>

typedef int (*compute_fn)(void *, void *);

int ggml_backend_sched_graph_compute_async(void * sched, void * graph) {
    static compute_fn real;
    if (!real) {
        real = (compute_fn) dlsym(RTLD_NEXT, "ggml_backend_sched_graph_compute_async");
    }
    struct timespec from, to;
    clock_gettime(CLOCK_MONOTONIC, &from);
    const int status = real(sched, graph);
    clock_gettime(CLOCK_MONOTONIC, &to);
    const long long ns = 3 * ((to.tv_sec - from.tv_sec) * 1000000000LL + to.tv_nsec - from.tv_nsec);
    const struct timespec pause = { .tv_sec = ns / 1000000000LL, .tv_nsec = ns % 1000000000LL };
    nanosleep(&pause, 0);
    return status;
}
