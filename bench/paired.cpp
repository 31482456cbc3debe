// What the library costs inside one process: the same steps as the plain program and with the library, in turns.
// `llama-resource bench --in-process target/paired` starts it again and again (`make target/paired` builds it);
// docs/BENCHMARK.md tells more.
//
//     export LD_BIND_NOW=1 LLAMA_RESOURCE_DISABLED=1
//     LD_PRELOAD=.../libllama_resource_instrumentation.so paired MODEL.gguf PAIRS THREADS MODES
//
// One process has one layout of memory: what makes two servers differ is not here, so that tenths of a per cent can be
// seen. For the plain side of a pair every slot holds what it would hold without the preload (switch_hooks.h). MODES
// are those of `llama-resource bench`. Each pair is a line of JSON on standard output.
//
// A level: both sides share a context, and ordinary decode steps are timed, which the rate limit keeps out of the log;
// with one thread the clock is its CPU time, which other programs hardly touch. A capture: each side has a context of
// its own, because what is captured is decided when a graph's memory is planned; it decodes without a clock until
// encoding and writing have come into step with it, then by wall time, and the mean of all steps counts, because what
// other threads take comes in bursts.

#include <sys/stat.h>
#include <time.h>

#include "llama.h"
#include "switch_hooks.h"

namespace {

constexpr int n_prompt = 512;

struct mode {
    std::string name;
    int level = -1;  // -1: nothing is recorded
    std::string tensors, codec;
    bool plain() const { return name == "plain"; }
};

struct times {
    double decode, prefill;  // milliseconds a step; no prefill: NAN
};

llama_model * model;
std::string folder;
int threads;

double now_ms(clockid_t clock) {
    timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

mode parse(const std::string & name) {
    const char * levels[] = {"minimal", "detailed", "verbose"};
    mode m{name};
    for (int i = 0; i < 3; i++) if (name == levels[i]) m.level = i;
    if (name.rfind("capture", 0) == 0) {
        const size_t selection = name.find(':');
        const size_t codec = selection == name.npos ? selection : name.find(':', selection + 1);
        m.level = 1;
        m.tensors = selection == name.npos ? "residual" : name.substr(selection + 1, codec - selection - 1);
        m.codec = codec == name.npos ? "bounded" : name.substr(codec + 1);
    }
    if (m.level < 0 && !m.plain() && name != "disabled") fail("'" + name + "' cannot be run inside one process");
    return m;
}

llama_context * make_context() {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 1024;
    params.n_batch = params.n_ubatch = n_prompt;
    params.n_threads = params.n_threads_batch = threads;
    llama_context * ctx = llama_init_from_model(model, params);
    if (!ctx) fail("cannot make a context");
    return ctx;
}

// Milliseconds of each of `n` steps; from an empty cache each, if `clear`.
std::vector<double> steps(llama_context * ctx, std::vector<llama_token> tokens, int n, bool clear,
                          clockid_t clock = CLOCK_MONOTONIC) {
    std::vector<double> found;
    for (int i = 0; i < n; i++) {
        if (clear) llama_memory_clear(llama_get_memory(ctx), false);
        const double start = now_ms(clock);
        if (llama_decode(ctx, llama_batch_get_one(tokens.data(), int32_t(tokens.size())))) fail("llama_decode failed");
        llama_synchronize(ctx);
        found.push_back(now_ms(clock) - start);
    }
    return found;
}

double mean(const std::vector<double> & v) {
    double sum = 0;
    for (double x : v) sum += x;
    return sum / v.size();
}

times run(const mode & m, bool on, llama_context * shared) {
    std::vector<llama_token> prompt(n_prompt), one(1, 1234);
    for (int i = 0; i < n_prompt; i++) prompt[i] = 1000 + (i * 7919) % 19000;
    const std::string log = folder + ".jsonl", stream = folder + ".stream";
    const bool recording = on && m.level >= 0, capture = !m.tensors.empty();
    bind(on && !m.plain());
    if (recording) {
        unlink(log.c_str());
        unlink(stream.c_str());
        if (capture) {
            unsetenv("LLAMA_RESOURCE_LOG_RATE");
            setenv("LLAMA_RESOURCE_CAPTURE", stream.c_str(), 1);
            setenv("LLAMA_RESOURCE_TENSORS", m.tensors.c_str(), 1);
            setenv("LLAMA_RESOURCE_CODEC", m.codec.c_str(), 1);
        } else {
            unsetenv("LLAMA_RESOURCE_CAPTURE");
            setenv("LLAMA_RESOURCE_LOG_RATE", "1", 1);
        }
        if (recording_init(m.level, log.c_str())) fail("recording did not start");
        // Answered by the writer's thread: until it runs, the rate limit is not in force.
        if (recording_flush()) fail("the writer did not start");
    }
    times t = {NAN, NAN};
    llama_context * ctx = capture ? make_context() : shared;
    // The first two steps of a context are taken for warm-ups, and the rate limit lets one of each phase through.
    steps(ctx, one, 5, true);
    if (capture) {
        steps(ctx, prompt, 2, true);
        t.prefill = mean(steps(ctx, prompt, 4, true));
        // What a prompt leaves behind is not decode's to pay.
        if (on && recording_flush()) fail("the stream cannot be flushed");
        llama_memory_clear(llama_get_memory(ctx), false);
        steps(ctx, one, 130, false);
        t.decode = mean(steps(ctx, one, 220, false));
    } else {
        llama_memory_clear(llama_get_memory(ctx), false);
        steps(ctx, one, 3, false);
        const clockid_t clock = threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
        t.decode = median(steps(ctx, one, 24, false, clock));
    }
    if (recording) recording_free();
    struct stat s;
    if (recording && capture && (stat(stream.c_str(), &s) || s.st_size < 1 << 20)) fail("nothing was captured");
    if (capture) llama_free(ctx);
    bind(false);
    unlink(log.c_str());
    unlink(stream.c_str());
    return t;
}

void say(const mode & m, const char * phase, double plain_ms, double mode_ms) {
    if (std::isnan(plain_ms)) return;
    printf("{\"mode\": \"%s\", \"phase\": \"%s\", ", m.name.c_str(), phase);
    printf("\"plain_ms\": %.6f, \"mode_ms\": %.6f}\n", plain_ms, mode_ms);
}

}  // namespace

int main(int argc, char ** argv) {
    if (argc != 5) fail("usage: paired MODEL.gguf PAIRS THREADS MODES, and LD_PRELOAD, LLAMA_RESOURCE_DISABLED=1");
    find_library(argv);
    const int pairs = atoi(argv[2]);
    threads = atoi(argv[3]);
    std::vector<mode> modes;
    for (std::string list = argv[4]; !list.empty();) {
        const size_t end = std::min(list.find(','), list.size());
        modes.push_back(parse(list.substr(0, end)));
        list.erase(0, end + 1);
    }
    const char * directory = getenv("TMPDIR");
    folder = std::string(directory ? directory : "/tmp") + "/lri-paired-" + std::to_string(getpid());
    const auto log = [](ggml_log_level level, const char * text, void *) {
        if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
    };
    llama_log_set(log, nullptr);
    llama_backend_init();
    model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) fail(std::string("cannot load ") + argv[1]);
    find_slots();
    llama_context * shared = make_context();
    run(parse("plain"), false, shared);
    for (int p = 0; p < pairs; p++) {
        for (size_t i = 0; i < modes.size(); i++) {
            const bool on_first = (p + i) % 2;
            const times first = run(modes[i], on_first, shared), second = run(modes[i], !on_first, shared);
            const times & on = on_first ? first : second, & off = on_first ? second : first;
            say(modes[i], "decode", off.decode, on.decode);
            say(modes[i], "prefill", off.prefill, on.prefill);
        }
    }
    llama_free(shared);
    llama_model_free(model);
    llama_backend_free();
    return fflush(stdout) ? 2 : 0;
}
