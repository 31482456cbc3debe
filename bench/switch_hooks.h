// For programs that compare themselves with and without our hooks inside one process: finds the slots (GOT, tables of pointers) through which
// llama.cpp calls a function that the preloaded library stands before, and switches what they hold.

#pragma once

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#if !defined(__x86_64__) || !defined(__GLIBC__)
#error "switch_hooks.h takes hooks out of GOT slots: it knows the relocations of x86-64 and the loader of glibc only"
#endif

namespace {

struct slot {
    void ** at;
    void * hook, * original;
};

int (*recording_init)(int32_t, const char *);
int (*recording_free)();
int (*recording_flush)();
std::vector<slot> slots;

[[noreturn]] void fail(const std::string & text) {
    fprintf(stderr, "%s: %s\n", program_invocation_short_name, text.c_str());
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

double median(std::vector<double> v) {
    if (v.empty()) return NAN;
    std::sort(v.begin(), v.end());
    return v.size() % 2 ? v[v.size() / 2] : (v[v.size() / 2 - 1] + v[v.size() / 2]) / 2;
}

// The library's API; the program starts again if its slots are not all bound yet.
void find_library(char ** argv) {
    find(recording_init, "llama_resource_instrumentation_init");
    const char * bind_now = getenv("LD_BIND_NOW");
    if (!bind_now || !*bind_now) start_again(argv);
    find(recording_free, "llama_resource_instrumentation_free");
    find(recording_flush, "llama_resource_instrumentation_flush");
    // Kept the preloaded library from recording by itself; from here on the program does.
    unsetenv("LLAMA_RESOURCE_DISABLED");
    recording_free();
}

}  // namespace
