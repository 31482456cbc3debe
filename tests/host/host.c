// A host of llama.cpp that does what a test tells it, one verb after another: `host MODEL VERB[=N]...`
//
// It says `done` on stdout behind the last verb: whatever else happens, a host that did not say so was not left untouched.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "llama.h"

extern char **environ;
static struct llama_model   *model;
static struct llama_context *ctx;
static struct llama_sampler *sampler;

static void check(int ok, const char *what) {
    if (!ok) {
        fprintf(stdout, "host: %s failed: %s\n", what, strerror(errno));
        fflush(stdout);
        _exit(9);
    }
}

static void quiet(enum ggml_log_level level, const char *text, void *data) { (void) level, (void) text, (void) data; }

static void load(const char *path) {
    struct llama_model_params params = llama_model_default_params();
    model = llama_model_load_from_file(path, params);
    check(model != NULL, "load");
}

static struct llama_context *new_context(void) {
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = 64;
    params.n_threads = params.n_threads_batch = 1;
    struct llama_context *c = llama_init_from_model(model, params);
    check(c != NULL, "context");
    return c;
}

// A prompt of three tokens and `n` generated ones.
static void decode(int n) {
    llama_memory_clear(llama_get_memory(ctx), true);
    llama_token tokens[3] = {1, 2, 3};
    struct llama_batch batch = llama_batch_get_one(tokens, 3);
    for (int i = 0; i < n; i++) {
        check(llama_decode(ctx, batch) == 0, "decode");
        tokens[0] = llama_sampler_sample(sampler, ctx, -1);
        batch = llama_batch_get_one(tokens, 1);
    }
}

// Contexts of several threads: made, computed with and freed side by side, each with prompts of many lengths, so that graphs are built anew.
static void *in_thread(void *number) {
    long id = (long) number;
    for (int round = 0; round < 12; round++) {
        struct llama_context *c = new_context();
        for (int k = 0; k < 3; k++) {
            llama_token tokens[32];
            int n = 1 + (int) ((round * 7 + k * 5 + id * 13) % 31);
            for (int i = 0; i < n; i++) { tokens[i] = 3 + (i + round) % 50; }
            llama_memory_clear(llama_get_memory(c), true);
            check(llama_decode(c, llama_batch_get_one(tokens, n)) == 0, "decode in a thread");
            check(llama_get_logits_ith(c, -1) != NULL, "logits");
        }
        llama_free(c);
    }
    return NULL;
}

static void in_threads(int n) {
    pthread_t threads[16];
    for (long i = 0; i < n; i++) { check(pthread_create(&threads[i], NULL, in_thread, (void *) i) == 0, "pthread_create"); }
    for (int i = 0; i < n; i++) { pthread_join(threads[i], NULL); }
}

static int tasks(void) {
    struct stat about;
    check(stat("/proc/self/task", &about) == 0, "stat");
    return (int) about.st_nlink - 2;
}

static long resident_kb(void) {
    long total = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    check(f != NULL && fscanf(f, "%ld %ld", &total, &resident) == 2, "statm");
    fclose(f);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

static void *exit_here(void *code) { exit((int) (long) code); }

static void *decode_on(void *nothing) {
    (void) nothing;
    while (1) { decode(4); }
    return NULL;
}

static void on_alarm(int signal) {
    (void) signal;
    exit(0);  // as llama-server does at the second Ctrl-C
}

// What a careless child does: it computes, then ends as `how` says. Its own failure shows in its exit status.
static void fork_child(const char *how) {
    fflush(stdout);
    pid_t child = fork();
    check(child >= 0, "fork");
    if (child == 0) {
        alarm(2);  // a child that waits for a thread that it does not have
        if (ctx) { decode(2); }
        if (strcmp(how, "exec") == 0) {
            execl("/bin/true", "true", (char *) NULL);
        } else if (strcmp(how, "_exit") == 0) {
            _exit(0);
        }
        exit(0);
    }
    int status = 0;
    check(waitpid(child, &status, 0) == child, "waitpid");
    printf("child %s ended with %d\n", how, status);
}

static void run(char **argv, const char *verb, const char *path) {
    const char *value = strchr(verb, '=');
    int n = value ? atoi(value + 1) : 1;
    size_t length = value ? (size_t) (value++ - verb) : strlen(verb);
#define IS(name) (length == strlen(name) && memcmp(verb, name, length) == 0)
    if (IS("load")) {
        load(path);
    } else if (IS("context")) {
        ctx = new_context();
    } else if (IS("vocabulary")) {
        // As a tokenizer does.
        struct llama_model_params params = llama_model_default_params();
        params.vocab_only = true;
        model = llama_model_load_from_file(path, params);
        check(model != NULL, "vocabulary");
        llama_token tokens[16];
        printf("tokens %d\n", (int) llama_tokenize(llama_model_get_vocab(model), "the people", 10, tokens, 16, true, true));
        llama_model_free(model), model = NULL;
    } else if (IS("strange-token")) {
        // A token that the vocabulary does not have, from a sampler of the host's own.
        llama_token_data data[2] = {{5, 1, 0}, {6, 2, 0}};
        llama_token_data_array candidates = {data, 2, -1, false};
        llama_get_logits_ith(ctx, -1);
        llama_sampler_apply(sampler, &candidates);
        llama_sampler_accept(sampler, 999999);
    } else if (IS("threads-decode")) {
        in_threads(n);
    } else if (IS("decode")) {
        decode(n);
    } else if (IS("contexts")) {
        // All that a context brings with it: batches, requests, a scheduler, plans.
        for (int i = 0; i < n; i++) {
            ctx = new_context();
            decode(2);
            llama_free(ctx);
        }
        ctx = NULL;
    } else if (IS("usage")) {
        printf("tasks %d resident %ld\n", tasks(), resident_kb());
    } else if (IS("free")) {
        llama_free(ctx), llama_model_free(model);
        ctx = NULL, model = NULL;
    } else if (IS("null")) {
        // All that llama.cpp itself takes without complaint.
        llama_free(NULL), llama_model_free(NULL), llama_sampler_free(NULL);
        llama_memory_clear(NULL, true), llama_memory_seq_rm(NULL, 0, 0, -1), llama_memory_seq_cp(NULL, 0, 1, 0, -1);
        llama_memory_seq_keep(NULL, 0), llama_memory_seq_add(NULL, 0, 0, -1, 1), llama_memory_seq_div(NULL, 0, 0, -1, 2);
        ggml_backend_buffer_free(NULL), ggml_backend_sched_free(NULL), ggml_free(NULL);
        check(llama_memory_seq_pos_max(NULL, 0) == -1, "pos_max");
    } else if (IS("fork")) {
        fork_child(value);
    } else if (IS("exec")) {
        // As a host does that starts anew with other options.
        setenv("SECOND", "1", 1);
        fflush(stdout);
        execl("/proc/self/exe", argv[0], path, "environment", (char *) NULL);
        check(0, "exec");
    } else if (IS("environment")) {
        printf("LD_PRELOAD is '%s'\n", getenv("LD_PRELOAD") ? getenv("LD_PRELOAD") : "");
    } else if (IS("exit-in-thread")) {
        puts("done");
        fflush(stdout);
        pthread_t thread;
        check(pthread_create(&thread, NULL, exit_here, (void *) (long) n) == 0, "pthread_create");
        while (1) { pause(); }
    } else if (IS("exit-beside")) {
        // Another thread computes while this one ends the process, some microseconds later.
        puts("done");
        fflush(stdout);
        pthread_t thread;
        check(pthread_create(&thread, NULL, decode_on, NULL) == 0, "pthread_create");
        usleep((useconds_t) n);
        exit(0);
    } else if (IS("exit-in-handler")) {
        // The signal meets the host in llama.cpp, in the library, or in between.
        puts("done");
        fflush(stdout);
        signal(SIGALRM, on_alarm);
        ualarm((useconds_t) n, 0);
        while (1) { llama_memory_seq_rm(llama_get_memory(ctx), 0, 0, -1); }
    } else if (IS("quick_exit")) {
        puts("done");
        fflush(stdout);
        quick_exit(0);
    } else if (IS("exit")) {
        puts("done");
        exit(n);
    } else if (IS("sleep")) {
        usleep((useconds_t) n * 1000);
    } else if (IS("ready")) {
        puts("ready");
        fflush(stdout);
    } else if (IS("spin")) {
        while (1) { decode(4); }
    } else if (IS("unlink")) {
        check(unlink(value) == 0, "unlink");
    } else if (IS("close-descriptors")) {
        // As a daemon does, and then opens files of its own, which get the same numbers.
        for (int fd = 3; fd < 64; fd++) { close(fd); }
        for (int i = 0; i < 16; i++) { check(open(value, O_WRONLY | O_CREAT | O_APPEND, 0600) > 2, "open"); }
    } else if (IS("use-stderr")) {
        fputs("the host speaks on stderr\n", stderr);
    } else if (IS("threads")) {
        printf("threads:");
        fflush(stdout);
        char command[64];
        snprintf(command, sizeof command, "cat /proc/%d/task/*/comm | tr '\\n' ' '", (int) getpid());
        check(system(command) == 0, "system");
        puts("");
    } else {
        check(0, verb);
    }
#undef IS
}

int main(int argc, char **argv) {
    llama_log_set(quiet, NULL);
    sampler = llama_sampler_init_greedy();
    for (int i = 2; i < argc; i++) {
        run(argv, argv[i], argv[1]);
    }
    puts("done");
    return 0;
}
