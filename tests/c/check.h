// What the C tests share: a failed check names its line and ends the program.
#pragma once

#include <stdio.h>
#include <stdlib.h>

#include "llama-resource-instrumentation.h"

#define OK           LLAMA_RESOURCE_INSTRUMENTATION_STATUS_SUCCESS
#define ALREADY      LLAMA_RESOURCE_INSTRUMENTATION_STATUS_ALREADY_RUNNING
#define DISABLED     LLAMA_RESOURCE_INSTRUMENTATION_STATUS_DISABLED
#define INVALID      LLAMA_RESOURCE_INSTRUMENTATION_STATUS_INVALID_ARGUMENT
#define NOT_RUNNING  LLAMA_RESOURCE_INSTRUMENTATION_STATUS_NOT_RUNNING
#define IO           LLAMA_RESOURCE_INSTRUMENTATION_STATUS_IO
#define WRONG_ORDER  LLAMA_RESOURCE_INSTRUMENTATION_STATUS_WRONG_ORDER
#define TOO_DEEP     LLAMA_RESOURCE_INSTRUMENTATION_STATUS_TOO_DEEP
#define UNREADABLE   LLAMA_RESOURCE_INSTRUMENTATION_STATUS_TENSOR_UNREADABLE
#define UNAVAILABLE  LLAMA_RESOURCE_INSTRUMENTATION_STATUS_UNAVAILABLE
#define ABI_MISMATCH LLAMA_RESOURCE_INSTRUMENTATION_STATUS_ABI_MISMATCH

#define CHECK(condition)                                                            \
    do {                                                                            \
        if (!(condition)) {                                                         \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                                \
        }                                                                           \
    } while (0)

#define IS(call, expected)                                                                                      \
    do {                                                                                                        \
        const int status_ = (int) (call);                                                                       \
        if (status_ != (int) (expected)) {                                                                      \
            fprintf(stderr, "%s:%d: %s is %d (%s), expected %d (%s)\n", __FILE__, __LINE__, #call, status_,     \
                    llama_resource_instrumentation_status_to_string(status_), (int) (expected),                 \
                    llama_resource_instrumentation_status_to_string((int) (expected)));                         \
            exit(1);                                                                                            \
        }                                                                                                       \
    } while (0)

#define F(name) llama_resource_instrumentation_##name
