// A host of the MOCK in mock_llama.cpp that makes and frees things far more often than anybody would. It prints its resident memory (KiB)
// after half of the rounds and at the end, then `done`.
//
//   lifecycle contexts N     contexts made, used for three tokens, freed
//   lifecycle threads N      a thread a round computes a graph and ends
//   lifecycle forks N        a child a round: every third execs, the others call llama and exit
//   lifecycle recordings N   init, a context with three tokens, free (through the library's C API)
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <string>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

struct llama_batch { int32_t n_tokens; int32_t *token; float *embd; int32_t *pos; int32_t *n_seq_id; int32_t **seq_id; int8_t *logits; };
struct params { char bytes[200]; };
extern "C" {
void mock_compute(void);
void *llama_model_load_from_file(const char *, params);
void *llama_init_from_model(void *, params);
void llama_free(void *);
int32_t llama_decode(void *, llama_batch);
float *llama_get_logits_ith(void *, int32_t);
void llama_sampler_apply(void *, void *);
void llama_sampler_accept(void *, int32_t);
}

static void a_context() {
    static void *model = llama_model_load_from_file("mock.gguf", params{});
    void *ctx = llama_init_from_model(model, params{});
    int32_t token = 1, one = 1, zero = 0, *seq = &zero;
    int8_t output = 1;
    for (int32_t pos = 0; pos < 3; pos++) {
        llama_decode(ctx, llama_batch{1, &token, nullptr, &pos, &one, &seq, &output});
        llama_get_logits_ith(ctx, -1);
        llama_sampler_apply(nullptr, nullptr);
        llama_sampler_accept(nullptr, 7);
    }
    llama_free(ctx);
}

static void a_child(int round) {
    pid_t child = fork();
    if (child == 0) {
        if (round % 3 == 0) { execl("/bin/true", "true", nullptr); }
        a_context();
        _exit(0);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
        std::printf("a child ended with %d\n", status);
        std::exit(4);
    }
}

static void a_recording() {
    using Init = int32_t (*)(int32_t, const char *);
    using Free = int32_t (*)();
    static auto init = reinterpret_cast<Init>(dlsym(RTLD_DEFAULT, "llama_resource_instrumentation_init"));
    static auto end = reinterpret_cast<Free>(dlsym(RTLD_DEFAULT, "llama_resource_instrumentation_free"));
    if (!init || !end || init(1, std::getenv("A_LOG")) != 0) {
        std::puts("no recording");
        std::exit(4);
    }
    a_context();
    if (end() != 0) { std::exit(4); }
}

static long resident() {
    long pages = 0, all = 0;
    if (FILE *f = std::fopen("/proc/self/statm", "r")) {
        if (std::fscanf(f, "%ld %ld", &all, &pages) != 2) { pages = -1; }
        std::fclose(f);
    }
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

int main(int, char **argv) {
    const std::string what = argv[1];
    const int n = std::atoi(argv[2]);
    mock_compute();
    for (int round = 0; round < n; round++) {
        if (round == n / 2) { std::printf("%ld\n", resident()); }
        if (what == "contexts") { a_context(); }
        if (what == "threads") { std::thread(mock_compute).join(); }
        if (what == "forks") { a_child(round); }
        if (what == "recordings") { a_recording(); }
    }
    std::printf("%ld\n", resident());
    std::puts("done");
}
