// Threads that mark layers, components and operations as fast as they can; then the counts.
//
//     threads LOG N_THREADS EVENTS_PER_THREAD [wait]
//
// Prints: seen written dropped left_out ns_per_event

#include "check.h"

#include <pthread.h>
#include <stdint.h>
#include <time.h>

static int n_events;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double) t.tv_sec + (double) t.tv_nsec / 1e9;
}

// Ten events: a layer with two components, one of them with an operation inside.
static void * work(void * unused) {
    (void) unused;
    for (int i = 0; i < n_events / 10; i++) {
        F(begin_layer)(i % 32);
        F(begin_component)("attention");
        F(log_kv_cache_operation)(i % 32, "update", 4096);
        F(end_component)("attention");
        F(log_component_handoff)("attention", "mlp");
        F(begin_component)("mlp");
        F(begin_component)("gate");
        F(end_component)("gate");
        F(end_component)("mlp");
        F(end_layer)(i % 32);
    }
    return NULL;
}

int main(int argc, char ** argv) {
    CHECK(argc == 4 || argc == 5);
    const int n_threads = atoi(argv[2]);
    n_events = atoi(argv[3]);
    struct llama_resource_instrumentation_params params = F(default_params)();
    params.level    = LLAMA_RESOURCE_INSTRUMENTATION_LEVEL_DETAILED;
    params.log_path = argv[1];
    params.log_rate = -1;
    params.wait     = argc == 5;
    IS(F(init_with_params)(&params), OK);
    IS(F(begin_session)("threads"), OK);
    pthread_t threads[64];
    CHECK(n_threads <= 64);
    const double began = now_s();
    for (int i = 0; i < n_threads; i++) {
        CHECK(pthread_create(&threads[i], NULL, work, NULL) == 0);
    }
    for (int i = 0; i < n_threads; i++) {
        pthread_join(threads[i], NULL);
    }
    const double took = now_s() - began;
    IS(F(end_session)(), OK);
    // A flush gives up after three seconds; the writer of a debug build may be minutes behind.
    for (int i = 0; i < 200 && F(flush)() != OK; i++) { }
    struct llama_resource_instrumentation_statistics s;
    IS(F(get_statistics)(&s, sizeof(s)), OK);
    IS(F(free)(), OK);
    CHECK(s.events_seen == (uint64_t) n_threads * (uint64_t) (n_events / 10 * 10) + 2);
    CHECK(s.events_seen == s.events_written + s.events_dropped + s.events_left_out);
    printf("%llu %llu %llu %llu %.1f\n", (unsigned long long) s.events_seen, (unsigned long long) s.events_written,
           (unsigned long long) s.events_dropped, (unsigned long long) s.events_left_out, took * 1e9 / (n_events * (double) n_threads));
    return 0;
}
