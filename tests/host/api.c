// Calls the C API as it should not be called. Prints one line a call: `what: status`.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llama-resource-instrumentation.h"

#define SAY(call) printf("%s: %d\n", #call, (int) (call))
#define init llama_resource_instrumentation_init
#define deinit llama_resource_instrumentation_free
#define flush llama_resource_instrumentation_flush
#define set_level llama_resource_instrumentation_set_level
#define log_set llama_resource_instrumentation_log_set
#define words llama_resource_instrumentation_status_to_string

static int messages, answers[8];
static volatile int ended;

// A callback that calls back: the most careless one that is still allowed.
static void careless(int32_t level, const char *text, void *user_data) {
    messages++;
    printf("message %d: %s", level, text);
    flush(), set_level(1), init(0, NULL);
    if (user_data) { log_set(NULL, NULL); }
}

// Ends the recording from inside a message, which may come from the library's own thread.
static void ends(int32_t level, const char *text, void *user_data) {
    (void) user_data;
    if (level > 2) { printf("message %d: %sfree in it: %d\n", level, text, (int) deinit()), ended = 1; }
}

static void *init_too(void *slot) {
    *(int *) slot = (int) init(0, getenv("A_LOG"));
    return NULL;
}

int main(int argc, char **argv) {
    const char *log = getenv("A_LOG"), *what = argc > 1 ? argv[1] : "misuse";
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (strcmp(what, "misuse") == 0) {
        SAY(flush()), SAY(deinit()), SAY(set_level(1)), SAY(set_level(3)), SAY(set_level(-1));
        SAY(init(3, log)), SAY(init(999, NULL)), SAY(init(0, ""));
        SAY(init(0, "/nonexistent/log.jsonl")), SAY(init(0, "/dev/full")), SAY(flush());
        SAY(init(0, log)), SAY(init(2, NULL)), SAY(init(0, "/nonexistent/log.jsonl"));
        SAY(set_level(2)), SAY(set_level(3)), SAY(flush()), SAY(deinit()), SAY(deinit()), SAY(init(0, log)), SAY(deinit());
        for (int status = -50; status < 50; status++) { printf("%d is %s\n", status, words(status)); }
    } else if (strcmp(what, "callback") == 0) {
        log_set(careless, NULL);
        SAY(init(0, "/nonexistent/log.jsonl")), SAY(init(0, log)), SAY(deinit());
        printf("messages: %d\n", messages);
        log_set(careless, &messages);
        SAY(init(0, log)), SAY(deinit());
        log_set(NULL, NULL);
    } else if (strcmp(what, "together") == 0) {
        pthread_t threads[8];
        for (int i = 0; i < 8; i++) { pthread_create(&threads[i], NULL, init_too, &answers[i]); }
        for (int i = 0; i < 8; i++) { pthread_join(threads[i], NULL), printf("%d ", answers[i]); }
        puts("");
    } else if (strcmp(what, "full") == 0) {
        // The test's limit of file sizes ends the recording in the middle.
        log_set(strcmp(getenv("HOW"), "free") == 0 ? ends : NULL, NULL);
        SAY(init(2, log));
        for (int i = 0; i < 100 && flush() == 0; i++) { usleep(100000); }
        while (strcmp(getenv("HOW"), "free") == 0 && !ended) { usleep(1000); }
        SAY(flush()), SAY(init(0, getenv("ANOTHER_LOG"))), SAY(flush()), SAY(deinit());
    }
    puts("done");
    return 0;
}
