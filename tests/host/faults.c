// A process that has no luck, preloaded ahead of a library: one call of a kind fails, of those that this library itself makes.
//
//     cc -O2 -shared -fPIC tests/host/faults.c -o faults.so -ldl
//     FAULT_OF=libllama_resource FAULT_KIND=malloc FAULT_AT=17 [FAULT_LASTS=1] [FAULT_COUNT=file] LD_PRELOAD=./faults.so:./lib.so program
//
// Kinds: malloc (and its kin), mmap, write, pwrite, fallocate, fdatasync, thread. FAULT_AT counts from 1; with FAULT_LASTS every call from
// that one on fails. FAULT_COUNT names a file into which the numbers of calls go when the process ends.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum kind { MALLOC, MMAP, WRITE, PWRITE, FALLOCATE, FDATASYNC, THREAD, KINDS };
static const char * const names[KINDS] = {"malloc", "mmap", "write", "pwrite", "fallocate", "fdatasync", "thread"};

extern void * __libc_malloc(size_t);
extern void * __libc_calloc(size_t, size_t);
extern void * __libc_realloc(void *, size_t);
extern void * __libc_memalign(size_t, size_t);

static uintptr_t from, to;
static int failing = -1, lasts;
static long at;
static atomic_long calls[KINDS];
static int (*real_create)(pthread_t *, const pthread_attr_t *, void * (*)(void *), void *);

static int find(struct dl_phdr_info * info, size_t size, void * part) {
    (void) size;
    if (!info->dlpi_name || !strstr(info->dlpi_name, part)) return 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) * h = &info->dlpi_phdr[i];
        if (h->p_type != PT_LOAD || !(h->p_flags & PF_X)) continue;
        from = info->dlpi_addr + h->p_vaddr;
        to = from + h->p_memsz;
    }
    return 1;
}

// At the first call that might fail, since constructors of others come first.
static void begin(void) {
    static atomic_int begun;
    if (atomic_exchange(&begun, 1)) return;
    real_create = (int (*)(pthread_t *, const pthread_attr_t *, void * (*)(void *), void *)) dlvsym(RTLD_NEXT, "pthread_create", "GLIBC_2.34");
    const char * kind = getenv("FAULT_KIND"), * number = getenv("FAULT_AT"), * part = getenv("FAULT_OF");
    for (int i = 0; kind && i < KINDS; i++) {
        if (strcmp(kind, names[i]) == 0) failing = i;
    }
    at = number ? atol(number) : 0;
    lasts = getenv("FAULT_LASTS") != NULL;
    if (part) dl_iterate_phdr(find, (void *) part);
}

__attribute__((destructor)) static void end(void) {
    const char * path = getenv("FAULT_COUNT");
    if (!path) return;
    char text[512];
    int n = 0;
    for (int i = 0; i < KINDS; i++) n += snprintf(text + n, sizeof text - (size_t) n, "%s %ld\n", names[i], (long) calls[i]);
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd >= 0) {
        syscall(SYS_write, fd, text, (size_t) n);
        close(fd);
    }
}

// Whether a call from `caller` is to fail.
static int fails(enum kind kind, const void * caller) {
    begin();
    if ((uintptr_t) caller - from >= to - from) return 0;
    const long number = atomic_fetch_add(&calls[kind], 1) + 1;
    return (int) kind == failing && (number == at || (lasts && number > at));
}
#define FAILS(kind) fails(kind, __builtin_return_address(0))

void * malloc(size_t size) { return FAILS(MALLOC) ? NULL : __libc_malloc(size); }
void * calloc(size_t n, size_t size) { return FAILS(MALLOC) ? NULL : __libc_calloc(n, size); }
void * realloc(void * p, size_t size) { return FAILS(MALLOC) ? NULL : __libc_realloc(p, size); }
void * aligned_alloc(size_t alignment, size_t size) { return FAILS(MALLOC) ? NULL : __libc_memalign(alignment, size); }

int posix_memalign(void ** out, size_t alignment, size_t size) {
    if (FAILS(MALLOC)) return ENOMEM;
    *out = __libc_memalign(alignment, size);
    return *out ? 0 : ENOMEM;
}

static void * map(int failed, void * where, size_t size, int protection, int flags, int fd, off_t offset) {
    if (failed) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return (void *) syscall(SYS_mmap, where, size, protection, flags, fd, offset);
}
void * mmap(void * where, size_t size, int p, int flags, int fd, off_t offset) { return map(FAILS(MMAP), where, size, p, flags, fd, offset); }
void * mmap64(void * where, size_t size, int p, int flags, int fd, off64_t offset) { return map(FAILS(MMAP), where, size, p, flags, fd, offset); }

static ssize_t no_space(void) {
    errno = ENOSPC;
    return -1;
}

// What is said on stderr is no file of ours.
ssize_t write(int fd, const void * data, size_t size) { return fd != 2 && FAILS(WRITE) ? no_space() : syscall(SYS_write, fd, data, size); }
ssize_t pwrite(int fd, const void * data, size_t size, off_t offset) { return FAILS(PWRITE) ? no_space() : syscall(SYS_pwrite64, fd, data, size, offset); }
ssize_t pwrite64(int fd, const void * data, size_t size, off64_t offset) { return FAILS(PWRITE) ? no_space() : syscall(SYS_pwrite64, fd, data, size, offset); }
int fallocate(int fd, int mode, off_t offset, off_t size) { return (int) (FAILS(FALLOCATE) ? no_space() : syscall(SYS_fallocate, fd, mode, offset, size)); }
int fallocate64(int fd, int mode, off64_t offset, off64_t size) { return (int) (FAILS(FALLOCATE) ? no_space() : syscall(SYS_fallocate, fd, mode, offset, size)); }

int fdatasync(int fd) {
    if (FAILS(FDATASYNC)) {
        errno = EIO;
        return -1;
    }
    return (int) syscall(SYS_fdatasync, fd);
}

int pthread_create(pthread_t * thread, const pthread_attr_t * about, void * (*body)(void *), void * data) {
    return FAILS(THREAD) ? EAGAIN : real_create(thread, about, body, data);
}
