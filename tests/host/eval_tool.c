// A host with an eval callback of its own, as llama-imatrix and llama-eval-callback are: it decodes a text and writes down what it was shown.
//
//     cc -O2 -Illama.cpp/include -Illama.cpp/ggml/include tests/host/eval_tool.c -L$bin -lllama -lggml -lggml-base -Wl,-rpath,$bin -o eval_tool
//     eval_tool MODEL [--text FILE] [--tokens N] [--decode N] [--ubatch N] [--threads N] [--ask PREFIX,...|all|none|one-by-one]
//               [--log FILE] [--logits FILE] [--ids FILE] [--replace NAME=FILE]... [--add NAME=FILE]...
//
// --log gets a line for every call of the callback: "ask NAME OP" or "got NAME OP NE HASH". A capture beside it must not change a line.
// --logits gets the logits of every token of the text, f32, --ids its tokens, i32. --replace overwrites a tensor of the model, while it
// runs, with the f32 values of a file (the rows of the steps behind each other); --add adds them to it: so a stored residual stream goes
// back into the model.

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ggml-backend.h"
#include "ggml.h"
#include "llama.h"

enum { MAX_NAMES = 64, MAX_EDITS = 1024 };
#define EMPTY 1469598103934665603u  // FNV-1a of nothing

struct edit {
    const char * name;
    bool add;
    float * values;
    size_t n, at;
};

static const char * asked[MAX_NAMES];
static int n_asked;
static bool ask_all, one_by_one;
static struct edit edits[MAX_EDITS];
static int n_edits;
static FILE * events;
static long calls, gots;
static uint64_t digest = EMPTY;

static void die(const char * what, const char * which) {
    fprintf(stderr, "eval_tool: %s %s\n", what, which ? which : "");
    exit(2);
}

static void * allocate(size_t size) {
    void * memory = malloc(size ? size : 1);
    if (!memory) die("out of memory", NULL);
    return memory;
}

static char * read_file(const char * path, size_t * size) {
    FILE * file = fopen(path, "rb");
    if (!file) die("cannot open", path);
    fseek(file, 0, SEEK_END);
    *size = (size_t) ftell(file);
    rewind(file);
    char * content = allocate(*size + 1);
    if (fread(content, 1, *size, file) != *size) die("cannot read", path);
    content[*size] = 0;
    fclose(file);
    return content;
}

static uint64_t fnv(uint64_t hash, const void * data, size_t size) {
    for (const uint8_t * byte = data; size--; byte++) hash = (hash ^ *byte) * 1099511628211u;
    return hash;
}

static void note(const char * line) {
    digest = fnv(digest, line, strlen(line));
    if (events) fputs(line, events);
}

static struct edit * edit_of(const char * name) {
    for (int i = 0; i < n_edits; i++)
        if (!strcmp(edits[i].name, name)) return &edits[i];
    return NULL;
}

static bool wanted(const char * name) {
    if (ask_all || edit_of(name)) return true;
    for (int i = 0; i < n_asked; i++)
        if (!strncmp(name, asked[i], strlen(asked[i]))) return true;
    return false;
}

static void change(struct edit * edit, struct ggml_tensor * tensor, float * values) {
    const size_t n = (size_t) ggml_nelements(tensor);
    if (tensor->type != GGML_TYPE_F32 || !ggml_is_contiguous(tensor)) die("cannot be changed:", edit->name);
    if (edit->at + n > edit->n) die("too few values for", edit->name);
    const float * from = edit->values + edit->at;
    for (size_t i = 0; i < n; i++) values[i] = edit->add ? values[i] + from[i] : from[i];
    edit->at += n;
    ggml_backend_tensor_set(tensor, values, 0, n * sizeof *values);
}

static bool on_node(struct ggml_tensor * tensor, bool ask, void * user_data) {
    (void) user_data;
    char line[256];
    calls++;
    if (ask) {
        snprintf(line, sizeof line, "ask %s %s\n", tensor->name, ggml_op_desc(tensor));
        note(line);
        return one_by_one || wanted(tensor->name);
    }
    gots++;
    // Of a view that is not contiguous, the span that it covers; what is outside the model's own nodes is not computed and not looked at.
    const bool computed = tensor->flags & GGML_TENSOR_FLAG_COMPUTE && !strstr(tensor->name, "cache_");
    const size_t size = computed && wanted(tensor->name) ? ggml_nbytes(tensor) : 0;
    void * values = allocate(size);
    if (size) ggml_backend_tensor_get(tensor, values, 0, size);
    snprintf(line, sizeof line, "got %s %s %ld,%ld,%ld,%ld %016lx\n", tensor->name, ggml_op_desc(tensor), (long) tensor->ne[0],
             (long) tensor->ne[1], (long) tensor->ne[2], (long) tensor->ne[3], (unsigned long) fnv(EMPTY, values, size));
    note(line);
    struct edit * edit = edit_of(tensor->name);
    if (edit && tensor->flags & GGML_TENSOR_FLAG_COMPUTE) change(edit, tensor, values);
    free(values);
    return true;
}

static void add_edit(char * argument, bool add) {
    char * file = strchr(argument, '=');
    if (!file || n_edits == MAX_EDITS) die("expected NAME=FILE, not", argument);
    *file++ = 0;
    size_t size;
    float * values = (float *) (void *) read_file(file, &size);
    edits[n_edits++] = (struct edit) {argument, add, values, size / sizeof(float), 0};
}

static void write_all(FILE * file, const void * data, size_t size) {
    if (file && fwrite(data, 1, size, file) != size) die("cannot write", NULL);
}

static void quiet(enum ggml_log_level level, const char * text, void * user_data) {
    (void) user_data;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static FILE * create(const char * path) {
    FILE * file = path ? fopen(path, "wb") : NULL;
    if (path && !file) die("cannot create", path);
    return file;
}

int main(int argc, char ** argv) {
    const char * text_path = NULL, * log_path = NULL, * logits_path = NULL, * ids_path = NULL;
    int n_max = 64, n_decode = 0, n_ubatch = 512, n_threads = 2;
    bool callback = true;
    ask_all = true;
    if (argc < 2) die("usage: eval_tool MODEL [--text FILE] ...", NULL);
    for (int i = 2; i < argc; i++) {
        char * option = argv[i], * value = i + 1 < argc ? argv[++i] : "";
        if (!strcmp(option, "--text")) text_path = value;
        else if (!strcmp(option, "--tokens")) n_max = atoi(value);
        else if (!strcmp(option, "--decode")) n_decode = atoi(value);
        else if (!strcmp(option, "--ubatch")) n_ubatch = atoi(value);
        else if (!strcmp(option, "--threads")) n_threads = atoi(value);
        else if (!strcmp(option, "--log")) log_path = value;
        else if (!strcmp(option, "--logits")) logits_path = value;
        else if (!strcmp(option, "--ids")) ids_path = value;
        else if (!strcmp(option, "--replace")) add_edit(value, false);
        else if (!strcmp(option, "--add")) add_edit(value, true);
        else if (!strcmp(option, "--ask")) {
            ask_all = !strcmp(value, "all");
            one_by_one = !strcmp(value, "one-by-one");
            callback = strcmp(value, "none");
            if (!ask_all && !one_by_one && callback)
                for (char * name = strtok(value, ","); name && n_asked < MAX_NAMES; name = strtok(NULL, ",")) asked[n_asked++] = name;
        } else die("unknown option", option);
    }
    events = create(log_path);
    FILE * logits = create(logits_path), * ids = create(ids_path);

    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) die("cannot load", argv[1]);
    const struct llama_vocab * vocab = llama_model_get_vocab(model);
    size_t length = 0;
    const char * text = text_path ? read_file(text_path, &length) : "There was a house by the water, and the people in it were not there.";
    if (!text_path) length = strlen(text);
    llama_token * tokens = allocate((length + 8) * sizeof *tokens);
    int n = llama_tokenize(vocab, text, (int32_t) length, tokens, (int32_t) length + 8, true, false);
    if (n < 1) die("cannot tokenize", text_path);
    if (n > n_max) n = n_max;

    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = (uint32_t) (n + n_decode + 8);
    params.n_batch = (uint32_t) n;
    params.n_ubatch = (uint32_t) n_ubatch;
    params.n_threads = params.n_threads_batch = n_threads;
    if (callback || n_edits) params.cb_eval = on_node;
    struct llama_context * ctx = llama_init_from_model(model, params);
    if (!ctx) die("cannot make a context", NULL);

    const int n_vocab = llama_vocab_n_tokens(vocab);
    struct llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int i = 0; i < n; i++) {
        batch.token[i] = tokens[i];
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = logits != NULL || i == n - 1;
    }
    if (llama_decode(ctx, batch)) die("llama_decode failed", NULL);
    for (int i = 0; logits && i < n; i++) write_all(logits, llama_get_logits_ith(ctx, i), (size_t) n_vocab * sizeof(float));
    write_all(ids, tokens, (size_t) n * sizeof *tokens);
    for (int step = 0, row = n - 1; step < n_decode; step++, row = 0) {
        const float * scores = llama_get_logits_ith(ctx, row);
        llama_token best = 0;
        for (int i = 1; i < n_vocab; i++)
            if (scores[i] > scores[best]) best = i;
        write_all(ids, &best, sizeof best);
        digest = fnv(digest, &best, sizeof best);
        batch.n_tokens = 1;
        batch.token[0] = best;
        batch.pos[0] = n + step;
        batch.logits[0] = true;
        if (llama_decode(ctx, batch)) die("llama_decode failed", NULL);
    }
    llama_synchronize(ctx);
    digest = fnv(digest, llama_get_logits_ith(ctx, -1), (size_t) n_vocab * sizeof(float));
    printf("calls %ld got %ld tokens %d digest %016lx\n", calls, gots, n, (unsigned long) digest);
    llama_batch_free(batch);
    llama_free(ctx);
    llama_model_free(model);
    llama_backend_free();
    if ((events && fclose(events)) || (logits && fclose(logits)) || (ids && fclose(ids))) die("cannot write", NULL);
    return 0;
}
