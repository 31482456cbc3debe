// Every function of the C API, called wrongly: each answers with a status, none crashes, and the log stays valid.
//
//     misuse LOG

#include "check.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static atomic_int n_messages;

static void on_message(int32_t level, const char * text, void * user_data) {
    CHECK(user_data == &n_messages && level >= 2 && level <= 4 && strncmp(text, "llama-resource: ", 16) == 0);
    CHECK(text[strlen(text) - 1] == '\n' && strchr(text, '\n') == text + strlen(text) - 1);
    atomic_fetch_add(&n_messages, 1);
    // A callback that calls us back: everything but waiting for ourselves must do.
    F(begin_layer)(-1);
    F(log_component_handoff)("from", "callback");
    struct llama_resource_instrumentation_statistics s;
    F(get_statistics)(&s, sizeof(s));
    (void) F(is_recording)();
}

// What no recording answers, whatever the arguments.
static void all_are(enum llama_resource_instrumentation_status status) {
    IS(F(flush)(), status);
    IS(F(set_level)(1), status);
    IS(F(enable)(), status);
    IS(F(disable)(), status);
    IS(F(begin_session)("s"), status);
    IS(F(end_session)(), status);
    IS(F(begin_layer)(0), status);
    IS(F(end_layer)(0), status);
    IS(F(begin_component)("c"), status);
    IS(F(end_component)("c"), status);
    IS(F(log_memory_deallocation)("id"), status);
    IS(F(log_kv_cache_operation)(0, "update", 1), status);
    IS(F(log_component_handoff)("a", "b"), status);
    IS(F(record_token)(0, 1), status);
    struct ggml_tensor * t = (struct ggml_tensor *) (void *) &n_messages;
    const struct ggml_tensor * in[1] = { t };
    IS(F(log_memory_allocation)(t, "c", NULL, 0), status);
    IS(F(log_compute_operation)("op", "c", in, 1, t), status);
    IS(F(log_mlp_operation)("op", t, t), status);
    CHECK(!F(is_recording)());
}

static void eval_without_sense(void) {
    CHECK(!llama_resource_eval_callback(NULL, true, NULL));
    CHECK(llama_resource_eval_callback(NULL, false, NULL));
    struct llama_resource_eval_params params = llama_resource_eval_default_params();
    CHECK(llama_resource_eval_callback(NULL, false, &params));
    params.abi_version = 99;
    CHECK(llama_resource_eval_callback(NULL, false, &params));
    params.abi_version = LLAMA_RESOURCE_INSTRUMENTATION_ABI_VERSION;
    params.size = 3;
    CHECK(llama_resource_eval_callback(NULL, false, &params));
}

static void null_arguments(void) {
    IS(F(begin_session)(NULL), INVALID);
    IS(F(begin_component)(NULL), INVALID);
    IS(F(end_component)(NULL), INVALID);
    IS(F(log_memory_allocation)(NULL, "c", NULL, 0), INVALID);
    IS(F(log_memory_deallocation)(NULL), INVALID);
    IS(F(log_compute_operation)("op", "c", NULL, 1, NULL), INVALID);
    IS(F(log_compute_operation)("op", "c", NULL, 0, NULL), INVALID);
    IS(F(log_compute_operation)(NULL, "c", NULL, 0, NULL), INVALID);
    IS(F(log_compute_operation)("op", NULL, NULL, 0, NULL), INVALID);
    IS(F(log_mlp_operation)(NULL, NULL, NULL), INVALID);
    IS(F(log_mlp_operation)("up_proj", NULL, NULL), INVALID);
    IS(F(log_kv_cache_operation)(0, NULL, 0), INVALID);
    IS(F(log_component_handoff)(NULL, "b"), INVALID);
    IS(F(log_component_handoff)("a", NULL), INVALID);
    IS(F(get_statistics)(NULL, 8), INVALID);
    IS(F(init_with_params)(NULL), INVALID);
    // Pointers that are none.
    struct ggml_tensor * small = (struct ggml_tensor *) (void *) 64;
    struct ggml_tensor * odd   = (struct ggml_tensor *) (void *) ((char *) &n_messages + 1);
    IS(F(log_memory_allocation)(small, "c", NULL, 0), INVALID);
    IS(F(log_memory_allocation)(odd, "c", NULL, 0), INVALID);
    const struct ggml_tensor * in[2] = { odd, NULL };
    IS(F(log_compute_operation)("op", "c", in, 2, small), INVALID);
    IS(F(log_compute_operation)("op", "c", in, 1u << 20, small), INVALID);
    // A pointer that could be one, in a program without ggml.
    static double memory[64];
    IS(F(log_memory_allocation)((struct ggml_tensor *) (void *) memory, "c", NULL, 0), UNREADABLE);
    struct llama_resource_instrumentation_statistics s;
    IS(F(get_statistics)(&s, 0), INVALID);
    memset(&s, 0x5a, sizeof(s));
    IS(F(get_statistics)(&s, 8), OK);
    CHECK(((unsigned char *) &s)[8] == 0x5a);
}

static void bad_names(void) {
    char long_name[400];
    memset(long_name, 'x', sizeof(long_name));
    long_name[399] = 0;
    IS(F(begin_session)(long_name), INVALID);
    IS(F(begin_component)(long_name), INVALID);
    IS(F(log_component_handoff)(long_name, "b"), INVALID);
    IS(F(log_kv_cache_operation)(0, long_name, 0), INVALID);
    IS(F(log_memory_deallocation)(long_name), INVALID);
    const char * bad[] = { "\xff", "a\xc3", "\xed\xa0\x80", "\xf5\x80\x80\x80", "\xc0\xaf" };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        IS(F(begin_session)(bad[i]), INVALID);
        IS(F(begin_component)(bad[i]), INVALID);
        IS(F(log_component_handoff)("a", bad[i]), INVALID);
        IS(F(log_memory_deallocation)(bad[i]), INVALID);
    }
    IS(F(begin_session)(""), INVALID);
    IS(F(begin_component)(""), INVALID);
    // Names that are hard on a JSON writer, and the longest that is allowed.
    long_name[127] = 0;
    IS(F(log_component_handoff)("a\"b\\c\n\t\x01/\xc3\xa4\xe2\x82\xac\xf0\x9f\xa6\x99", long_name), OK);
}

static void wrong_order(void) {
    IS(F(end_session)(), WRONG_ORDER);
    IS(F(begin_layer)(0), WRONG_ORDER); // outside a session
    IS(F(end_layer)(0), WRONG_ORDER);
    IS(F(begin_component)("c"), WRONG_ORDER);
    IS(F(end_component)("c"), WRONG_ORDER);

    IS(F(begin_session)("first"), OK);
    IS(F(begin_session)("second"), WRONG_ORDER); // ends the first
    IS(F(begin_layer)(-5), INVALID);
    IS(F(begin_layer)(1), OK);
    IS(F(end_layer)(2), WRONG_ORDER); // changes nothing
    IS(F(end_component)("c"), WRONG_ORDER);
    IS(F(begin_component)("c"), OK);
    IS(F(end_layer)(1), WRONG_ORDER); // ends the component too
    IS(F(end_component)("c"), WRONG_ORDER);
    IS(F(begin_layer)(7), OK);
    IS(F(end_session)(), WRONG_ORDER); // ends the layer too
    IS(F(end_layer)(7), WRONG_ORDER);
    IS(F(end_session)(), WRONG_ORDER);
}

static void deep_nesting(void) {
    IS(F(begin_session)("deep"), OK);
    int ok = 0, deep = 0;
    for (int i = 0; i < 10000; i++) {
        const int status = F(begin_layer)(i);
        ok   += status == OK;
        deep += status == TOO_DEEP;
    }
    CHECK(ok == 1024 && ok + deep == 10000);
    for (int i = 9999; i >= 0; i--) {
        IS(F(end_layer)(i), i < 1024 ? OK : TOO_DEEP);
    }
    IS(F(end_layer)(0), WRONG_ORDER);
    IS(F(end_session)(), OK);
}

static atomic_int stop;

static void * use(void * unused) {
    (void) unused;
    while (!atomic_load(&stop)) {
        F(begin_layer)(1);
        F(begin_component)("c");
        F(log_kv_cache_operation)(1, "update", 64);
        F(end_component)("c");
        F(end_layer)(1);
        F(begin_session)("thread");
        F(end_session)();
        F(flush)();
    }
    return NULL;
}

int main(int argc, char ** argv) {
    CHECK(argc == 2);
    const char * log = argv[1];
    F(log_set)(on_message, &n_messages);

    // Before init.
    all_are(NOT_RUNNING);
    IS(F(free)(), NOT_RUNNING);
    eval_without_sense();
    const int before = atomic_load(&n_messages);
    all_are(NOT_RUNNING);
    CHECK(before > 15 && atomic_load(&n_messages) == before); // once each

    // Init itself.
    IS(F(init)(7, log), INVALID);
    IS(F(init)(1, ""), INVALID);
    IS(F(init)(1, "/nonexistent/dir/log.jsonl"), IO);
    IS((llama_resource_instrumentation_init)(1, "/tmp"), IO);
    struct llama_resource_instrumentation_params params = F(default_params)();
    params.abi_version = 2;
    IS(F(init_with_params)(&params), ABI_MISMATCH);
    params = F(default_params)();
    params.size = 4;
    IS(F(init_with_params)(&params), INVALID);
    params = F(default_params)();
    params.size     = 8; // an old program's: version and size only, the rest by default
    params.log_path = "/nonexistent/dir/log.jsonl";
    setenv("LLAMA_RESOURCE_LOG_PATH", log, 1);
    IS(F(init_with_params)(&params), OK);
    IS(F(free)(), OK);
    IS(F(free)(), NOT_RUNNING);
    all_are(NOT_RUNNING);

    // A recording of everything that is wrong.
    IS(F(init)(2, log), OK);
    IS(F(init)(0, log), ALREADY);
    CHECK(F(is_recording)());
    IS(F(set_level)(-1), INVALID);
    IS(F(set_level)(3), INVALID);
    null_arguments();
    bad_names();
    wrong_order();
    deep_nesting();
    eval_without_sense();
    IS(F(log_memory_deallocation)("never allocated"), OK);
    IS(F(log_kv_cache_operation)(-1, "evict", (size_t) -1), OK);
    IS(F(record_token)(-1, -1), OK);

    // Paused.
    IS(F(begin_session)("paused"), OK);
    IS(F(begin_layer)(3), OK);
    IS(F(disable)(), OK);
    IS(F(begin_component)("c"), DISABLED);
    IS(F(log_component_handoff)("a", "b"), DISABLED);
    IS(F(end_component)("c"), DISABLED);
    IS(F(end_layer)(3), OK); // what was begun is ended
    IS(F(enable)(), OK);
    IS(F(end_session)(), OK);

    // After fork: the child never records.
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) {
        F(log_set)(NULL, NULL);
        const int a = F(init)(1, log), b = F(begin_session)("child"), c = F(free)(), d = F(flush)(), e = F(log_component_handoff)("a", "b");
        fprintf(stderr, "in the child: init %d, begin_session %d, free %d, flush %d, handoff %d\n", a, b, c, d, e);
        // Not exit: what the parent's other threads own is no leak of the child, whatever a checker thinks.
        const int fine = a == UNAVAILABLE && b == UNAVAILABLE && c == UNAVAILABLE && d == UNAVAILABLE && e == UNAVAILABLE;
        execl(fine ? "/bin/true" : "/bin/false", "child", (char *) NULL);
        _exit(1);
    }
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);

    // Free and init while others are at work.
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        CHECK(pthread_create(&threads[i], NULL, use, NULL) == 0);
    }
    for (int i = 0; i < 20; i++) {
        usleep(5000);
        IS(F(free)(), OK);
        usleep(1000);
        IS(F(init)(1, log), OK);
    }
    atomic_store(&stop, 1);
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    struct llama_resource_instrumentation_statistics s;
    IS(F(flush)(), OK);
    IS(F(get_statistics)(&s, sizeof(s)), OK);
    IS(F(free)(), OK);
    all_are(NOT_RUNNING);
    IS(F(get_statistics)(&s, sizeof(s)), NOT_RUNNING);
    CHECK(s.events_seen == s.events_written + s.events_dropped + s.events_left_out);

    // Numbers that are no status.
    CHECK(strcmp(F(status_to_string)(12345), "unknown status") == 0);
    for (int i = -9; i <= 3; i++) {
        CHECK(strcmp(F(status_to_string)(i), "unknown status") != 0);
    }
    printf("ok, %d messages\n", atomic_load(&n_messages));
    return 0;
}
