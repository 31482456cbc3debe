// A bad disk, preloaded: writes to files whose path contains DISK_MATCH take their time, or fail from some byte on.
//
//     cc -O2 -shared -fPIC tests/host/slow_disk.c -o slow_disk.so
//     DISK_MATCH=.stream DISK_RATE=2000000 [DISK_FULL_AT=5000000] [DISK_STALL_AT=3000000] LD_PRELOAD=./slow_disk.so program
//
// DISK_RATE is in bytes a second; after DISK_FULL_AT bytes a write fails with ENOSPC, having written what still fits; at DISK_STALL_AT a
// write hangs until the file DISK_RELEASE exists.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static atomic_llong written;

static long long setting(const char * name) {
    const char * value = getenv(name);
    return value ? atoll(value) : -1;
}

static int concerns(int fd) {
    const char * match = getenv("DISK_MATCH");
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t length = match ? readlink(link, path, sizeof path - 1) : -1;
    if (length <= 0) return 0;
    path[length] = 0;
    return strstr(path, match) != NULL;
}

static void pause_for(double seconds) {
    const struct timespec time = {(time_t) seconds, (long) ((seconds - (double) (time_t) seconds) * 1e9)};
    nanosleep(&time, NULL);
}

// How many of `size` bytes may be written now; -1 for none, errno set.
static ssize_t admit(int fd, size_t size) {
    if (!concerns(fd)) return (ssize_t) size;
    const long long rate = setting("DISK_RATE"), full = setting("DISK_FULL_AT"), stall = setting("DISK_STALL_AT");
    const long long before = atomic_fetch_add(&written, (long long) size);
    const char * release = getenv("DISK_RELEASE");
    while (stall >= 0 && before + (long long) size > stall && release && access(release, F_OK)) pause_for(0.02);
    if (rate > 0) pause_for((double) size / (double) rate);
    if (full < 0 || before + (long long) size <= full) return (ssize_t) size;
    if (before >= full) {
        errno = ENOSPC;
        return -1;
    }
    return (ssize_t) (full - before);
}

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) real = (result (*)(__VA_ARGS__)) dlsym(RTLD_NEXT, name)

ssize_t write(int fd, const void * data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    const ssize_t n = admit(fd, size);
    return n < 0 ? n : real(fd, data, (size_t) n);
}

ssize_t pwrite(int fd, const void * data, size_t size, off_t at) {
    REAL(ssize_t, "pwrite", int, const void *, size_t, off_t);
    const ssize_t n = admit(fd, size);
    return n < 0 ? n : real(fd, data, (size_t) n, at);
}

ssize_t pwrite64(int fd, const void * data, size_t size, off64_t at) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    const ssize_t n = admit(fd, size);
    return n < 0 ? n : real(fd, data, (size_t) n, at);
}

static size_t sum(const struct iovec * pieces, int n) {
    size_t size = 0;
    for (int i = 0; i < n; i++) size += pieces[i].iov_len;
    return size;
}

// Several pieces: all or nothing, since a cut through them is not worth its lines.
ssize_t writev(int fd, const struct iovec * pieces, int n) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    const size_t size = sum(pieces, n);
    const ssize_t fits = admit(fd, size);
    if (fits < 0) return fits;
    if ((size_t) fits < size) {
        errno = ENOSPC;
        return -1;
    }
    return real(fd, pieces, n);
}

ssize_t pwritev(int fd, const struct iovec * pieces, int n, off_t at) {
    REAL(ssize_t, "pwritev", int, const struct iovec *, int, off_t);
    const size_t size = sum(pieces, n);
    const ssize_t fits = admit(fd, size);
    if (fits < 0) return fits;
    if ((size_t) fits < size) {
        errno = ENOSPC;
        return -1;
    }
    return real(fd, pieces, n, at);
}

// The file cannot be prepared beforehand on a disk that has not the room.
int fallocate(int fd, int mode, off_t at, off_t length) {
    REAL(int, "fallocate", int, int, off_t, off_t);
    const long long full = setting("DISK_FULL_AT");
    if (full >= 0 && concerns(fd) && (long long) (at + length) > full) {
        errno = ENOSPC;
        return -1;
    }
    return real(fd, mode, at, length);
}

int fallocate64(int fd, int mode, off64_t at, off64_t length) {
    REAL(int, "fallocate64", int, int, off64_t, off64_t);
    const long long full = setting("DISK_FULL_AT");
    if (full >= 0 && concerns(fd) && at + length > full) {
        errno = ENOSPC;
        return -1;
    }
    return real(fd, mode, at, length);
}
