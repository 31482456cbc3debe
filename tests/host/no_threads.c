// Preloaded behind the library: no thread can be made, as at the limit of processes.
#include <errno.h>
#include <pthread.h>

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*body)(void *), void *argument) {
    (void) thread, (void) attributes, (void) body, (void) argument;
    return EAGAIN;
}
