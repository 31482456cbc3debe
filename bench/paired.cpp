// What the library costs inside one process: slices of the same decode and prefill steps without its hooks, with them, and recording.
//
//     bin=$PWD/target/llama.cpp/bin lib=$PWD/target/release/libllama_resource_instrumentation.so
//     c++ -O2 -std=c++17 bench/paired.cpp -o target/paired -Illama.cpp/{,ggml/}include -L$bin -lllama -lggml -lggml-base -Wl,-rpath,$bin
//     model=target/models/SmolLM2-135M-Instruct.Q4_1.gguf
//     LD_BIND_NOW=1 LD_PRELOAD=$lib LLAMA_RESOURCE_DISABLED=1 target/paired $model [PAIRS [THREADS [decode|both [NAMES [RAW]]]]]
//
// One process, one context, one layout of memory: what makes two servers differ (bench/overhead.py) is not here, so that tenths of a
// per cent can be seen in minutes. One side of every pair is the plain program: each slot through which an object calls a function that
// we hook (GOT, tables of pointers) holds the address that it would hold without the preload. The other side is one of
//
//     off       the plain program again: the error of the method
//     disabled  the hooks are bound and nothing is recorded
//     MINIMAL, DETAILED, VERBOSE     recording, an ordinary step: the rate limit lets nothing be written (`step` in the table)
//     MINIMAL+, DETAILED+, VERBOSE+  recording, every step is `written` (LLAMA_RESOURCE_LOG_RATE=unlimited)
//
// and from the last two follows what a busy server pays at the level's own rate. NAMES lists with commas which are run, `off` always;
// without it all are. RAW is a file that gets every pair as a line of JSON (bench/in_process.py pools many processes).
// Not in these figures: the HTTP server, the sampler. docs/OVERHEAD.md tells more.
//
// With one thread the clock is that thread's CPU time, which other programs on the machine hardly touch; what the writer's thread takes
// from the host is then not in the figures.

#include <sys/stat.h>
#include <time.h>

#include <random>

#include "llama.h"
#include "switch_hooks.h"

namespace {

constexpr int n_prompt = 512, n_decode = 24, n_prefill = 1, resamples = 4000;

enum { plain = -2, disabled = -1 };  // levels besides the library's

struct config {
    const char * name;
    int level;          // of the side that is not plain
    bool written;       // every step
    double rate;        // bytes a second that the level may write
};

// Rates: src/format/level.rs.
const config configs[] = {
    {"off", plain, false, 0},     {"disabled", disabled, false, 0},
    {"MINIMAL", 0, false, 10e3},  {"MINIMAL", 0, true, 10e3},
    {"DETAILED", 1, false, 50e3}, {"DETAILED", 1, true, 50e3},
    {"VERBOSE", 2, false, 200e3}, {"VERBOSE", 2, true, 200e3},
};

struct slice {
    double ms[2];       // median of a decode step, of a prefill step
    double bytes[2];    // written to the log for each
};

struct samples {
    std::vector<double> ratio, off_ms, bytes;
};

clockid_t clock_id = CLOCK_MONOTONIC;
std::string log_path;
llama_context * ctx;

double now_ms() {
    timespec t;
    clock_gettime(clock_id, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

double quantile(std::vector<double> v, double q) {
    std::sort(v.begin(), v.end());
    const double at = q * (v.size() - 1);
    const size_t i = size_t(at);
    return i + 1 < v.size() ? v[i] + (at - i) * (v[i + 1] - v[i]) : v[i];
}

double step_ms(std::vector<llama_token> & tokens) {
    const double start = now_ms();
    if (llama_decode(ctx, llama_batch_get_one(tokens.data(), int32_t(tokens.size())))) fail("llama_decode failed");
    llama_synchronize(ctx);
    return now_ms() - start;
}

double log_size() {
    if (recording_flush()) fail("the log cannot be flushed");
    struct stat s;
    return stat(log_path.c_str(), &s) ? 0 : double(s.st_size);
}

slice run(const config & c, bool on, int phases) {
    std::vector<llama_token> prompt(n_prompt), one(1, 1234);
    for (int i = 0; i < n_prompt; i++) prompt[i] = 1000 + (i * 7919) % 19000;
    const auto clear = [] { llama_memory_clear(llama_get_memory(ctx), false); };
    const bool recording = on && c.level >= 0;
    bind(on && c.level != plain);
    if (recording) {
        unlink(log_path.c_str());
        setenv("LLAMA_RESOURCE_LOG_RATE", c.written ? "unlimited" : "1", 1);
        if (recording_init(c.level, log_path.c_str())) fail("recording did not start");
        // Answered by the writer's thread: until it runs, the rate limit is not in force.
        if (recording_flush()) fail("the writer did not start");
    }
    // Not timed: the first steps build graphs and plans, and the rate limit always lets one of each phase through (but not
    // the first two batches of a context, which are taken for warm-ups: WARM_UPS in src/observe/contexts.rs).
    clear();
    for (int i = 0; i < 2; i++) step_ms(one);
    clear();
    if (phases > 1) step_ms(prompt);
    for (int i = 0; i < 3; i++) step_ms(one);
    slice s = {};
    double before = recording ? log_size() : 0;
    std::vector<double> times;
    for (int i = 0; i < n_decode; i++) times.push_back(step_ms(one));
    s.ms[0] = median(times);
    double after = recording ? log_size() : 0;
    s.bytes[0] = (after - before) / n_decode;
    times.clear();
    for (int i = 0; i < n_prefill && phases > 1; i++) {
        clear();
        times.push_back(step_ms(prompt));
    }
    s.ms[1] = median(times);
    s.bytes[1] = ((recording ? log_size() : 0) - after) / n_prefill;
    if (recording) recording_free();
    bind(false);
    return s;
}

// `off`, and those that a list with commas names; all if it is empty.
std::vector<config> named(const std::string & list) {
    std::vector<config> result;
    for (const config & c : configs) {
        if (list.empty() || c.level == plain) result.push_back(c);
    }
    for (size_t at = 0, end; at < list.size(); at = end + 1) {
        end = std::min(list.find(',', at), list.size());
        const std::string name = list.substr(at, end - at);
        const auto same = [&](const config & c) { return name == std::string(c.name) + (c.written ? "+" : ""); };
        const auto c = std::find_if(std::begin(configs), std::end(configs), same);
        if (c == std::end(configs)) fail("nothing to run has the name '" + name + "'");
        if (c->level != plain) result.push_back(*c);
    }
    return result;
}

// Median with its bootstrap 95 % interval.
void interval(const std::vector<double> & v, double & low, double & high) {
    std::mt19937 random(20260101);
    std::vector<double> medians(resamples), draw(v.size());
    for (double & m : medians) {
        for (double & d : draw) d = v[random() % v.size()];
        m = median(draw);
    }
    low = quantile(medians, 0.025);
    high = quantile(medians, 0.975);
}

}  // namespace

int main(int argc, char ** argv) {
    if (argc < 2) {
        fail("usage: LD_BIND_NOW=1 LD_PRELOAD=.../libllama_resource_instrumentation.so LLAMA_RESOURCE_DISABLED=1 "
             "paired MODEL.gguf [PAIRS [THREADS [decode|both [NAMES [RAW]]]]]");
    }
    find_library(argv);
    const int pairs = argc > 2 ? std::max(2, atoi(argv[2])) : 24;
    const int threads = argc > 3 ? atoi(argv[3]) : int(std::min(2L, sysconf(_SC_NPROCESSORS_ONLN)));
    const std::string what = argc > 4 ? argv[4] : "both";
    if (what != "decode" && what != "both") fail("'" + what + "' is neither decode nor both");
    const int phases = what == "decode" ? 1 : 2;
    const std::vector<config> chosen = named(argc > 5 ? argv[5] : "");
    FILE * raw = argc > 6 ? fopen(argv[6], "w") : nullptr;
    if (argc > 6 && !raw) fail(std::string("cannot write ") + argv[6]);
    if (threads == 1) clock_id = CLOCK_THREAD_CPUTIME_ID;
    const char * directory = getenv("TMPDIR");
    log_path = std::string(directory ? directory : "/tmp") + "/lri-paired-" + std::to_string(getpid()) + ".jsonl";

    llama_log_set([](ggml_log_level level, const char * text, void *) { if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr); }, nullptr);
    llama_backend_init();
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) fail(std::string("cannot load ") + argv[1]);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 1024;
    params.n_batch = params.n_ubatch = n_prompt;
    params.n_threads = params.n_threads_batch = threads;
    ctx = llama_init_from_model(model, params);
    if (!ctx) fail("cannot make a context");
    find_slots();

    double load[1] = {};
    if (getloadavg(load, 1) < 1) load[0] = NAN;
    const size_t n = chosen.size();
    std::vector<samples> found(n * 2);
    run(chosen[0], false, phases);
    for (int p = 0; p < pairs; p++) {
        for (size_t i = 0; i < n; i++) {
            const bool on_first = (p + i) % 2;
            const slice first = run(chosen[i], on_first, phases), second = run(chosen[i], !on_first, phases);
            const slice & on = on_first ? first : second, & off = on_first ? second : first;
            for (int phase = 0; phase < phases; phase++) {
                samples & s = found[i * 2 + phase];
                s.ratio.push_back((on.ms[phase] / off.ms[phase] - 1) * 100);
                s.off_ms.push_back(off.ms[phase]);
                s.bytes.push_back(on.bytes[phase]);
                if (raw) {
                    fprintf(raw, "{\"mode\": \"%s%s\", \"phase\": \"%s\", \"plain_ms\": %.6f, \"mode_ms\": %.6f}\n", chosen[i].name,
                            chosen[i].written ? "+" : "", phase ? "prefill" : "decode", off.ms[phase], on.ms[phase]);
                }
            }
        }
        fprintf(stderr, "%s%d/%d pairs%s", isatty(2) ? "\r" : "", p + 1, pairs, isatty(2) && p + 1 < pairs ? "" : "\n");
    }
    unlink(log_path.c_str());
    if (raw && fclose(raw)) fail("the pairs could not be written");

    printf("-t %d (%s), %d pairs of %d decode and %d prefill steps (%d tokens)\nload average before %.2f\n\n", threads,
           threads == 1 ? "CPU time" : "wall time", pairs, n_decode, phases > 1 ? n_prefill : 0, n_prompt, load[0]);
    printf("slow-down of a step against the plain program, in per cent\n%-9s%-9s%-8s%7s  %-17s %-15s%9s\n", "level", "steps", "phase", "median",
           "95 % interval", "quartiles", "B/step");
    const char * names[] = {"decode", "prefill"};
    for (size_t i = 0; i < n; i++) {
        for (int phase = 0; phase < phases; phase++) {
            const samples & s = found[i * 2 + phase];
            double low, high;
            interval(s.ratio, low, high);
            char in[32], quartiles[32];
            snprintf(in, sizeof in, "%+.2f .. %+.2f", low, high);
            snprintf(quartiles, sizeof quartiles, "%+.1f .. %+.1f", quantile(s.ratio, 0.25), quantile(s.ratio, 0.75));
            printf("%-9s%-9s%-8s%+7.2f  %-17s %-15s%9.0f\n", chosen[i].name, chosen[i].level < 0 ? "-" : chosen[i].written ? "written" : "step",
                   names[phase], median(s.ratio), in, quartiles, median(s.bytes));
        }
    }
    // A phase may use half of the level's rate (src/record/rate.rs): so many steps a second are written, the others are not.
    const char * title = "\na busy server at the level's own rate, in per cent: step + (written - step) x share of steps written\n";
    for (size_t i = 0; i < n; i++) {
        const auto every = std::find_if(chosen.begin(), chosen.end(), [&](const config & c) { return c.written && c.level == chosen[i].level; });
        if (chosen[i].written || every == chosen.end()) continue;
        printf("%s", title);
        title = "";
        for (int phase = 0; phase < phases; phase++) {
            const samples & step = found[i * 2 + phase], & written = found[(every - chosen.begin()) * 2 + phase];
            const double bytes = median(written.bytes), ms = median(step.off_ms);
            const double share = bytes > 0 ? std::min(1.0, chosen[i].rate / 2 / bytes * ms / 1e3) : 0;
            const double a = median(step.ratio), b = median(written.ratio);
            printf("%-9s%-8s%+7.2f  (%.2f %% of the steps, %.2f ms a step)\n", chosen[i].name, names[phase], a + (b - a) * share, share * 100, ms);
        }
    }
    llama_free(ctx);
    llama_model_free(model);
    llama_backend_free();
    return 0;
}
