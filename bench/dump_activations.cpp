// Writes activations of a model as plain f32 files, one for each kind of tensor, for bench/codec.rs and bench/codecs.py.
//
//     bin=$PWD/target/llama.cpp/bin
//     c++ -O2 -std=c++17 bench/dump_activations.cpp -o target/dump_activations -Illama.cpp/{,ggml/}include -L$bin -lllama -lggml -lggml-base -Wl,-rpath,$bin
//     target/dump_activations target/models/SmolLM2-135M-Instruct.Q4_1.gguf llama.cpp/CONTRIBUTING.md target/activations [TOKENS]
//
// The first TOKENS (512) tokens of the text are one prompt in one batch. An eval callback copies the nodes; nothing of this library takes
// part. FOLDER/KIND.f32 holds the rows of all layers, layer after layer; FOLDER/index.tsv says how long a row is and how many there are.
// Of nodes that share a name (Qcur-0 is a product, a reshape and a rotation) the last is taken, as a user of the name would.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "llama.h"

namespace {

const char * const kinds[] = { "l_out", "ffn_inp", "attn_norm", "ffn_norm", "attn_out", "kqv_out", "Qcur",
                               "Kcur",  "Vcur",    "ffn_gate",  "ffn_up",   "ffn_swiglu", "ffn_out" };

struct node {
    long long row = 0;
    std::vector<char> data;
};

using nodes = std::map<std::pair<std::string, int>, node>;  // by kind and layer

bool on_node(ggml_tensor * t, bool ask, void * user) {
    const char * dash = strrchr(t->name, '-');
    char * end = nullptr;
    const int layer = dash == nullptr ? -1 : (int) strtol(dash + 1, &end, 10);
    // `Qcur-0 (view)` is another tensor.
    if (layer < 0 || *end != 0 || t->type != GGML_TYPE_F32) { return !ask; }
    const std::string kind(t->name, dash - t->name);
    bool wanted = false;
    for (const char * k : kinds) { wanted |= kind == k; }
    // Asked a second time, the answer says whether to go on.
    if (ask || !wanted) { return wanted || !ask; }
    auto & to = (*static_cast<nodes *>(user))[{ kind, layer }];
    to.row = t->ne[2] > 1 ? t->ne[0] * t->ne[1] : t->ne[0];
    to.data.resize(ggml_nbytes(t));
    ggml_backend_tensor_get(t, to.data.data(), 0, to.data.size());
    return true;
}

}  // namespace

int main(int argc, char ** argv) {
    if (argc < 4) { return fprintf(stderr, "usage: %s MODEL TEXT FOLDER [TOKENS]\n", argv[0]), 2; }
    const std::string folder = argv[3];
    const int most = argc > 4 ? atoi(argv[4]) : 512;
    std::stringstream text;
    text << std::ifstream(argv[2]).rdbuf();

    nodes seen;
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (model == nullptr) { return fprintf(stderr, "%s is no model\n", argv[1]), 1; }
    auto params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = most;
    params.cb_eval = on_node;
    params.cb_eval_user_data = &seen;
    llama_context * context = llama_init_from_model(model, params);
    std::vector<llama_token> tokens(text.str().size() + 8);
    int n = llama_tokenize(llama_model_get_vocab(model), text.str().c_str(), (int) text.str().size(), tokens.data(),
                           (int) tokens.size(), true, false);
    n = n < most ? n : most;
    seen.clear();
    // Every row of the last layer is wanted too.
    llama_batch batch = llama_batch_init(n, 0, 1);
    for (int i = 0; i < n; i++) {
        batch.token[i] = tokens[i], batch.pos[i] = i, batch.n_seq_id[i] = 1, batch.seq_id[i][0] = 0, batch.logits[i] = 1;
    }
    batch.n_tokens = n;
    if (n < 1 || llama_decode(context, batch) != 0) { return fprintf(stderr, "%d tokens could not be decoded\n", n), 1; }

    std::map<std::string, FILE *> files;
    std::map<std::string, std::pair<long long, long long>> rows;
    for (auto & [name, node] : seen) {
        FILE *& file = files[name.first];
        if (file == nullptr) { file = fopen((folder + "/" + name.first + ".f32").c_str(), "wb"); }
        if (file == nullptr || fwrite(node.data.data(), 1, node.data.size(), file) != node.data.size()) {
            return perror(folder.c_str()), 1;
        }
        rows[name.first].first = node.row;
        rows[name.first].second += (long long) node.data.size() / 4 / node.row;
    }
    for (auto & [kind, file] : files) { fclose(file); }
    std::ofstream index(folder + "/index.tsv");
    for (const char * kind : kinds) {
        if (rows.count(kind)) { index << kind << "\t" << rows[kind].first << "\t" << rows[kind].second << "\n"; }
    }
    printf("%d tokens, %zu kinds of tensor in %s\n", n, files.size(), folder.c_str());
    llama_batch_free(batch);
    llama_free(context);
    llama_model_free(model);
    return 0;
}
