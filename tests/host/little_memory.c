// A device with little memory, preloaded: a buffer larger than MEMORY_MOST bytes cannot be had. MEMORY_SEEN is a file that gets the size of every
// buffer that was asked for, one a line. While the file MEMORY_NONE exists, no buffer can be had at all.
//
//     cc -O2 -shared -fPIC tests/host/little_memory.c -o little_memory.so -ldl
//     MEMORY_MOST=1000000 LD_PRELOAD=./little_memory.so llama-server ...

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

void * ggml_backend_buft_alloc_buffer(void * kind, size_t size) {
    static void * (*real)(void *, size_t);
    if (!real) real = (void * (*)(void *, size_t)) dlsym(RTLD_NEXT, "ggml_backend_buft_alloc_buffer");
    if (!real) abort();
    const char * most = getenv("MEMORY_MOST"), * seen = getenv("MEMORY_SEEN");
    FILE * out = seen ? fopen(seen, "a") : NULL;
    if (out) {
        fprintf(out, "%zu\n", size);
        fclose(out);
    }
    const char * none = getenv("MEMORY_NONE");
    if (none && !access(none, F_OK)) return NULL;
    return most && size > strtoull(most, NULL, 10) ? NULL : real(kind, size);
}
