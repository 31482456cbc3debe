// Settings and captures of the C API, used wrongly: each answers with a status and a message, none crashes.
//
//     capture_misuse FOLDER

#include "check.h"

#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char last[2048];
static int  n_messages;

static void on_message(int32_t level, const char * text, void * user_data) {
    (void) user_data;
    CHECK(level >= 2 && level <= 4);
    if (level >= 3) { // what is for the curious is not counted
        snprintf(last, sizeof(last), "%s", text);
        n_messages++;
    }
}

// Calls back into the library, which is in the middle of saying something.
static void calls_back(int32_t level, const char * text, void * user_data) {
    on_message(level, text, user_data);
    F(track_token)(0, 0, 1, NULL, 1.0f);
    struct llama_resource_instrumentation_capture_statistics s;
    F(get_capture_statistics)(&s, sizeof(s));
    F(flush)();
}

// The call answers so, and one message says `word`.
#define SAYS(call, status, word)                                                                                 \
    do {                                                                                                         \
        const int before_ = n_messages;                                                                          \
        IS(call, status);                                                                                        \
        if (n_messages != before_ + 1 || !strstr(last, word)) {                                                  \
            fprintf(stderr, "%s:%d: %s: expected one message with '%s', got %d, the last: %s\n", __FILE__, __LINE__, \
                    #call, word, n_messages - before_, last);                                                    \
            exit(1);                                                                                             \
        }                                                                                                        \
    } while (0)

#define QUIET(call, status)                  \
    do {                                     \
        const int quiet_ = n_messages;       \
        IS(call, status);                    \
        CHECK(n_messages == quiet_);         \
    } while (0)

static const char * path_in(const char * folder, const char * name) {
    static char paths[8][512];
    static int  next;
    char *      path = paths[next++ % 8];
    snprintf(path, sizeof(paths[0]), "%s/%s", folder, name);
    return path;
}

int main(int argc, char ** argv) {
    CHECK(argc == 2);
    const char * folder = argv[1];
    struct llama_resource_instrumentation_capture_statistics s;
    F(log_set)(on_message, NULL);

    // Names and values.
    SAYS(F(set)(NULL, "x"), INVALID, "NULL");
    SAYS(F(set)("", "x"), INVALID, "not a setting");
    SAYS(F(set)("LLAMA_RESOURCE_CAPTUER", "x"), INVALID, "not a setting");
    SAYS(F(set)("capture", "x"), INVALID, "not a setting");
    SAYS(F(set)("LLAMA_RESOURCE_LIBRARY", "x"), INVALID, "not a setting"); // of the program, not of the library
    SAYS(F(set)("LLAMA_RESOURCE_TENSORS", "residul"), INVALID, "residual");
    SAYS(F(set)("LLAMA_RESOURCE_TENSORS", "@,,--"), INVALID, "LLAMA_RESOURCE_TENSORS");
    SAYS(F(set)("LLAMA_RESOURCE_CODEC", "zip"), INVALID, "expected none, lz4, zstd");
    SAYS(F(set)("LLAMA_RESOURCE_MAX_MEMORY", "1M"), INVALID, "expected");
    SAYS(F(set)("LLAMA_RESOURCE_MAX_MEMORY", "99999999999999999999G"), INVALID, "expected");
    SAYS(F(set)("LLAMA_RESOURCE_ROUTE", "\xff"), INVALID, "UTF-8");
    SAYS(F(set)("LLAMA_RESOURCE_ROUTE", "sideways"), INVALID, "expected auto, retain or callback");
    SAYS(F(set)("LLAMA_RESOURCE_ERROR_BOUND", "nan"), INVALID, "expected");
    char * huge = malloc(1 << 20);
    CHECK(huge);
    memset(huge, 'x', 1 << 20);
    huge[(1 << 20) - 1] = 0;
    IS(F(set)(huge, huge), INVALID);
    IS(F(set)("LLAMA_RESOURCE_CODEC", huge), INVALID);
    free(huge);
    QUIET(F(set)("LLAMA_RESOURCE_CODEC", "none"), OK);
    QUIET(F(set)("LLAMA_RESOURCE_CODEC", NULL), OK);
    QUIET(F(set)("LLAMA_RESOURCE_CODEC", NULL), OK);

    // Before init.
    SAYS(F(get_capture_statistics)(NULL, sizeof(s)), INVALID, "NULL");
    IS(F(get_capture_statistics)(&s, 0), INVALID);
    SAYS(F(get_capture_statistics)(&s, sizeof(s)), NOT_RUNNING, "init first");
    SAYS(F(track_token)(0, 0, 1, "x", 1.0f), NOT_RUNNING, "init first");

    // A recording without a capture.
    QUIET(F(init)(1, path_in(folder, "without.jsonl")), OK);
    SAYS(F(get_capture_statistics)(&s, sizeof(s)), NOT_RUNNING, "set LLAMA_RESOURCE_CAPTURE before init");
    SAYS(F(track_token)(0, 0, 1, "x", 1.0f), NOT_RUNNING, "set LLAMA_RESOURCE_CAPTURE before init");
    QUIET(F(track_token)(0, 0, 1, "x", 1.0f), NOT_RUNNING); // told once

    // Too late: it holds from the next init on. Wrong is wrong all the same.
    const char * stream = path_in(folder, "acts.stream");
    SAYS(F(set)("LLAMA_RESOURCE_CAPTURE", stream), ALREADY, "next init");
    SAYS(F(set)("LLAMA_RESOURCE_CODEC", "zip"), INVALID, "expected none, lz4, zstd");
    CHECK(access(stream, F_OK) != 0);
    IS(F(get_capture_statistics)(&s, sizeof(s)), NOT_RUNNING);
    QUIET(F(free)(), OK);

    // A capture whose file cannot be written: told, and the events are recorded all the same.
    IS(F(set)("LLAMA_RESOURCE_CAPTURE", "/nonexistent/dir/acts.stream"), OK);
    SAYS(F(init)(1, path_in(folder, "nowhere.jsonl")), OK, "/nonexistent/dir/acts.stream");
    CHECK(strstr(last, "create the directory of /nonexistent/dir"));
    IS(F(get_capture_statistics)(&s, sizeof(s)), NOT_RUNNING);
    QUIET(F(free)(), OK);

    // A capture without a graph.
    IS(F(set)("LLAMA_RESOURCE_CAPTURE", stream), OK);
    QUIET(F(init)(1, path_in(folder, "with.jsonl")), OK);
    memset(&s, 0x5a, sizeof(s));
    QUIET(F(get_capture_statistics)(&s, 8), OK); // an old program's: no more than it knows
    CHECK(s.seen_tensors == 0 && ((unsigned char *) &s)[8] == 0x5a);
    QUIET(F(get_capture_statistics)(&s, sizeof(s)), OK);
    CHECK(s.seen_bytes == 0 && s.captured_tensors == 0 && s.file_bytes == 0);
    CHECK(!llama_resource_eval_callback(NULL, true, NULL));
    CHECK(llama_resource_eval_callback(NULL, false, NULL));
    // Whatever is tracked is written as it is; a probability that is none is left out.
    QUIET(F(track_token)(-1, -7, -1, NULL, -1.0f), OK);
    QUIET(F(track_token)(3, 2147483647, 2147483647, "a\"b\\c\n\x01", 2.5f), OK);
    QUIET(F(track_token)(0, 0, 7, "\xff not UTF-8", 0.25f), OK);
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) {
        F(log_set)(NULL, NULL);
        const int a = F(set)("LLAMA_RESOURCE_CODEC", "none"), b = F(track_token)(0, 0, 1, NULL, 1.0f),
                  c = F(get_capture_statistics)(&s, sizeof(s));
        execl(a == UNAVAILABLE && b == UNAVAILABLE && c == UNAVAILABLE ? "/bin/true" : "/bin/false", "child", (char *) NULL);
        _exit(1);
    }
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    IS(F(flush)(), OK);
    IS(F(get_capture_statistics)(&s, sizeof(s)), OK);
    CHECK(s.seen_tensors == 0 && s.file_bytes > 0);
    IS(F(free)(), OK);
    IS(F(get_capture_statistics)(&s, sizeof(s)), NOT_RUNNING);
    IS(F(track_token)(0, 0, 1, NULL, 1.0f), NOT_RUNNING);

    // The file is there now: not written over.
    SAYS(F(init)(1, path_in(folder, "again.jsonl")), OK, "LLAMA_RESOURCE_CAPTURE_RESUME");
    IS(F(get_capture_statistics)(&s, sizeof(s)), NOT_RUNNING);
    IS(F(free)(), OK);

    // A capture that cannot start any more when there is something to capture. What it says leads back into it: it must not wait for itself.
    const char * folder_gone = path_in(folder, "gone"), * gone = path_in(folder, "gone/acts.stream");
    CHECK(mkdir(folder_gone, 0700) == 0);
    IS(F(set)("LLAMA_RESOURCE_CAPTURE", gone), OK);
    IS(F(init)(1, path_in(folder, "gone.jsonl")), OK);
    CHECK(unlink(gone) == 0 && rmdir(folder_gone) == 0);
    F(log_set)(calls_back, NULL);
    alarm(30);
    IS(F(track_token)(0, 0, 1, NULL, 1.0f), NOT_RUNNING);
    alarm(0);
    F(log_set)(on_message, NULL);
    IS(F(free)(), OK);
    printf("ok, %d messages\n", n_messages);
    return 0;
}
