// What the library costs inside one process: slices of the same decode and prefill steps without its hooks, with them, and recording.
//
//     bin=$PWD/target/llama.cpp/bin lib=$PWD/target/release/libllama_resource_instrumentation.so
//     c++ -O2 -std=c++17 bench/paired.cpp -o target/paired -Illama.cpp/{,ggml/}include -L$bin -lllama -lggml -lggml-base -Wl,-rpath,$bin
//     model=target/models/SmolLM2-135M-Instruct.Q4_1.gguf
//     LD_BIND_NOW=1 LD_PRELOAD=$lib LLAMA_RESOURCE_DISABLED=1 target/paired $model [PAIRS [THREADS [decode|both [NAMES]]]]
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
// without it all are. Not in these figures: the HTTP server, the sampler. docs/OVERHEAD.md tells more.
//
// With one thread the clock is that thread's CPU time, which other programs on the machine hardly touch; what the writer's thread takes
// from the host is then not in the figures.

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "llama.h"

#if !defined(__x86_64__) || !defined(__GLIBC__)
#error "paired.cpp takes hooks out of GOT slots: it knows the relocations of x86-64 and the loader of glibc only"
#endif

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

struct slot {
    void ** at;
    void * hook, * original;
};

struct samples {
    std::vector<double> ratio, off_ms, bytes;
};

clockid_t clock_id = CLOCK_MONOTONIC;
int (*recording_init)(int32_t, const char *);
int (*recording_free)();
int (*recording_flush)();
std::string log_path;
llama_context * ctx;
std::vector<slot> slots;

[[noreturn]] void fail(const std::string & text) {
    fprintf(stderr, "paired: %s\n", text.c_str());
    exit(2);
}

template <typename F> void find(F & function, const char * name) {
    function = reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name));
    if (!function) fail(std::string(name) + " not found: run with LD_PRELOAD=.../libllama_resource_instrumentation.so LLAMA_RESOURCE_DISABLED=1");
}

// With all slots bound at the start: one bound at its first call would get the hook after we have looked.
[[noreturn]] void start_again(char ** argv) {
    Dl_info library;
    if (!dladdr(reinterpret_cast<void *>(recording_init), &library)) fail("the library is in no object");
    // It has taken itself out, for the children's sake.
    const char * others = getenv("LD_PRELOAD");
    setenv("LD_PRELOAD", (std::string(library.dli_fname) + ":" + (others ? others : "")).c_str(), 1);
    setenv("LD_BIND_NOW", "1", 1);
    execv("/proc/self/exe", argv);
    fail("cannot start again with LD_BIND_NOW=1");
}

bool holds(const dl_phdr_info & object, const void * address) {
    for (int i = 0; i < object.dlpi_phnum; i++) {
        const ElfW(Phdr) & p = object.dlpi_phdr[i];
        if (p.p_type == PT_LOAD && uintptr_t(address) - object.dlpi_addr - p.p_vaddr < p.p_memsz) return true;
    }
    return false;
}

// The slots that the loader has filled with a function of our library and, without it, would have filled with somebody else's.
void find_slots() {
    std::vector<dl_phdr_info> objects;
    dl_iterate_phdr([](dl_phdr_info * o, size_t, void * all) {
        static_cast<std::vector<dl_phdr_info> *>(all)->push_back(*o);
        return 0;
    }, &objects);
    const void * known = reinterpret_cast<void *>(recording_init);
    const auto own = std::find_if(objects.begin(), objects.end(), [&](const dl_phdr_info & o) { return holds(o, known); });
    if (own == objects.end()) fail("the library is not among the loaded objects");
    const dl_phdr_info library = *own;
    objects.erase(own);

    // The library stands before dlsym too, and its answer would be the hook.
    void * libc = dlopen("libc.so.6", RTLD_NOLOAD | RTLD_LAZY), * found = nullptr;
    for (const char * version : {"GLIBC_2.34", "GLIBC_2.2.5"}) {
        if (libc && !found) found = dlvsym(libc, "dlsym", version);
    }
    if (!found) fail("libc.so.6 has no dlsym");
    const auto real_dlsym = reinterpret_cast<void * (*)(void *, const char *)>(found);
    std::vector<void *> handles;
    for (const dl_phdr_info & o : objects) {
        if (void * handle = dlopen(*o.dlpi_name ? o.dlpi_name : nullptr, RTLD_NOLOAD | RTLD_LAZY)) handles.push_back(handle);
    }
    const auto original = [&](const char * name) -> void * {
        for (void * handle : handles) {
            // A handle covers what the object depends on, the program's the preload.
            void * address = real_dlsym(handle, name);
            if (address && !holds(library, address)) return address;
        }
        return nullptr;
    };

    for (const dl_phdr_info & o : objects) {
        const ElfW(Dyn) * d = nullptr;
        for (int i = 0; i < o.dlpi_phnum; i++) {
            if (o.dlpi_phdr[i].p_type == PT_DYNAMIC) d = reinterpret_cast<const ElfW(Dyn) *>(o.dlpi_addr + o.dlpi_phdr[i].p_vaddr);
        }
        // glibc has made addresses of these, but not of the vdso's, which has no relocations.
        uintptr_t value[DT_NUM] = {};
        for (; d && d->d_tag != DT_NULL; d++) {
            if (d->d_tag > 0 && d->d_tag < DT_NUM) value[d->d_tag] = d->d_un.d_ptr;
        }
        const auto symbols = reinterpret_cast<const ElfW(Sym) *>(value[DT_SYMTAB]);
        const auto names = reinterpret_cast<const char *>(value[DT_STRTAB]);
        const size_t tables[][2] = {{value[DT_JMPREL], value[DT_PLTRELSZ]}, {value[DT_RELA], value[DT_RELASZ]}};
        for (const auto & [start, size] : tables) {
            const auto relocations = reinterpret_cast<const ElfW(Rela) *>(start);
            for (size_t i = 0; start && i < size / sizeof *relocations; i++) {
                const ElfW(Rela) & r = relocations[i];
                const auto type = ELF64_R_TYPE(r.r_info), symbol = ELF64_R_SYM(r.r_info);
                if ((type != R_X86_64_JUMP_SLOT && type != R_X86_64_GLOB_DAT && type != R_X86_64_64) || !symbol) continue;
                void ** at = reinterpret_cast<void **>(o.dlpi_addr + r.r_offset);
                if (!holds(library, *at)) continue;
                // What is nowhere else is our own API.
                char * address = static_cast<char *>(original(names + symbols[symbol].st_name));
                if (!address) continue;
                slots.push_back({at, *at, address + r.r_addend});
                const uintptr_t page = uintptr_t(at) & -uintptr_t(sysconf(_SC_PAGESIZE));
                if (mprotect(reinterpret_cast<void *>(page), uintptr_t(at + 1) - page, PROT_READ | PROT_WRITE)) fail("mprotect failed");
            }
        }
    }
    if (slots.empty()) fail("no slot holds a hook: is the library in LD_PRELOAD?");
    fprintf(stderr, "%zu slots hold hooks and are switched\n", slots.size());
}

// Nothing else keeps a hook's address (llama.cpp 0c1e57098): no word of memory but the library's and `slots` does, and with breakpoints of
// gdb on all 59 hooks, five decodes reach none when they are unbound, before and after a recording, and 7448 times when they are bound.
void bind(bool hooks) {
    for (const slot & s : slots) __atomic_store_n(s.at, hooks ? s.hook : s.original, __ATOMIC_RELAXED);
}

double now_ms() {
    timespec t;
    clock_gettime(clock_id, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

double median(std::vector<double> v) {
    if (v.empty()) return NAN;
    std::sort(v.begin(), v.end());
    return v.size() % 2 ? v[v.size() / 2] : (v[v.size() / 2 - 1] + v[v.size() / 2]) / 2;
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
             "paired MODEL.gguf [PAIRS [THREADS [decode|both [NAMES]]]]");
    }
    find(recording_init, "llama_resource_instrumentation_init");
    const char * bind_now = getenv("LD_BIND_NOW");
    if (!bind_now || !*bind_now) start_again(argv);
    const int pairs = argc > 2 ? std::max(2, atoi(argv[2])) : 24;
    const int threads = argc > 3 ? atoi(argv[3]) : int(std::min(2L, sysconf(_SC_NPROCESSORS_ONLN)));
    const std::string what = argc > 4 ? argv[4] : "both";
    if (what != "decode" && what != "both") fail("'" + what + "' is neither decode nor both");
    const int phases = what == "decode" ? 1 : 2;
    const std::vector<config> chosen = named(argc > 5 ? argv[5] : "");
    if (threads == 1) clock_id = CLOCK_THREAD_CPUTIME_ID;
    find(recording_free, "llama_resource_instrumentation_free");
    find(recording_flush, "llama_resource_instrumentation_flush");
    // Kept the preloaded library from recording by itself; from here on the slices do.
    unsetenv("LLAMA_RESOURCE_DISABLED");
    recording_free();
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
            }
        }
        fprintf(stderr, "%s%d/%d pairs%s", isatty(2) ? "\r" : "", p + 1, pairs, isatty(2) && p + 1 < pairs ? "" : "\n");
    }
    unlink(log_path.c_str());

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
