// A llama.cpp that does not name its inputs, as those of b4980 to b10434 leave one or the other unnamed: preloaded, it lets no input be given
// the names by which token ids, positions and the rows with an output could be known.
//
//     cc -O2 -shared -fPIC -Illama.cpp/ggml/include tests/host/nameless.c -o nameless.so -ldl
//     LD_PRELOAD=./nameless.so llama-server ...

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "ggml.h"

struct ggml_tensor * ggml_set_name(struct ggml_tensor * tensor, const char * name) {
    static const char * const none[] = {"inp_tokens", "inp_pos", "inp_embd", "out_ids", "inp_out_ids"};
    static struct ggml_tensor * (*real)(struct ggml_tensor *, const char *);
    if (!real) real = (struct ggml_tensor * (*)(struct ggml_tensor *, const char *)) dlsym(RTLD_NEXT, "ggml_set_name");
    if (!real) abort();
    for (size_t i = 0; tensor->op == GGML_OP_NONE && i < sizeof none / sizeof *none; i++) {
        if (!strcmp(name, none[i])) return tensor;  // ggml calls it leaf_17 then
    }
    return real(tensor, name);
}
