// A host that loads plugins, each with a copy of llama.cpp of its own, as Python and Node.js do: into local scopes, one after the other.
//
//   copies in-turn PLUGIN...      each runs three times, in turn
//   copies at-once PLUGIN...      each once, then in a thread of its own, forty times
//   copies reload PLUGIN...       each is loaded, runs, and is closed again, five times round
//   copies deep-bound PLUGIN...   as in-turn, but each prefers its own definitions to everybody's (RTLD_DEEPBIND), a preload's included
//   copies by-handle PLUGIN...    the first runs; of the others single functions are found by handle, and called from here
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <thread>
#include <vector>

static int scope = RTLD_LOCAL;

static void *load(const char *path) {
    void *handle = dlopen(path, RTLD_NOW | scope);
    if (!handle) {
        std::fprintf(stderr, "%s\n", dlerror());
        std::exit(3);
    }
    return handle;
}

template <typename F> static F find(void *handle, const char *name) {
    void *found = dlsym(handle, name);
    if (!found) {
        std::fprintf(stderr, "%s\n", dlerror());
        std::exit(3);
    }
    F function;
    std::memcpy(&function, &found, sizeof function);
    return function;
}

using Run = void (*)();

int main(int argc, char **argv) {
    const bool reload = !std::strcmp(argv[1], "reload"), at_once = !std::strcmp(argv[1], "at-once"), by_handle = !std::strcmp(argv[1], "by-handle");
    if (!std::strcmp(argv[1], "deep-bound")) { scope |= RTLD_DEEPBIND; }
    if (reload) {
        for (int round = 0; round < 5; round++) {
            for (int i = 2; i < argc; i++) {
                void *handle = load(argv[i]);
                find<Run>(handle, "plugin_run")();
                dlclose(handle);
            }
        }
    } else if (by_handle) {
        find<Run>(load(argv[2]), "plugin_run")();
        for (int i = 3; i < argc; i++) {
            void *handle = load(argv[i]);
            struct params { char bytes[200]; };
            void *ctx = find<void *(*)(void *, params)>(handle, "llama_init_from_model")(nullptr, params{});
            find<float *(*)(void *, int32_t)>(handle, "llama_get_logits_ith")(ctx, -1);
            find<void (*)(void *)>(handle, "llama_free")(ctx);
            find<Run>(handle, "mock_compute")();
        }
    } else {
        std::vector<Run> runs;
        for (int i = 2; i < argc; i++) { runs.push_back(find<Run>(load(argv[i]), "plugin_run")); }
        // Recording begins with the first call, and what other threads call meanwhile is not recorded.
        for (size_t i = 0; i < runs.size() && at_once; i++) { runs[i](); }
        std::vector<std::thread> threads;
        for (Run run : runs) {
            if (at_once) { threads.emplace_back([run] { for (int n = 0; n < 40; n++) { run(); } }); }
        }
        for (auto & thread : threads) { thread.join(); }
        for (int n = 0; n < 3 && !at_once; n++) {
            for (Run run : runs) { run(); }
        }
    }
    std::puts("done");
}
