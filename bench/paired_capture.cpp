// What capturing costs inside one process: the same decode and prefill steps as the plain program and with activations captured, in turns.
//
//     bench/in_process.py --capture        builds and runs it
//     paired_capture MODEL PAIRS THREADS decode|both NAMES RAW
//
// Both sides of a pair have a context of their own, made in the same way one after the other, because what is captured is decided when a
// graph's memory is planned. For the plain side every slot holds what it would hold without the preload (switch_hooks.h); the other side
// is one of
//
//     off                                the plain program again: the error of the method
//     residual, FULL_TENSOR, ...         that selection, compressed and written to a file under TMPDIR; DETAILED log beside it
//
// A side decodes without a clock until encoding and writing have come into step with it, then for the clock; wall time, the mean of all steps,
// because what the other threads take comes in bursts. What is still on its way then is written before the next side begins.

#include <sys/stat.h>
#include <time.h>

#include "llama.h"
#include "switch_hooks.h"

namespace {

// Steps that no clock sees, and that it does, of each phase. The collector lets a job lie for 0.8 s at most (src/pipeline/limits.rs).
constexpr int n_prompt = 512, decode_before = 130, decode_timed = 220, prefill_before = 2, prefill_timed = 4;

std::string folder;
llama_model * model;
int threads;

double now_ms() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

struct result {
    double ms[2];
};

double steps(llama_context * ctx, std::vector<llama_token> tokens, int n, bool clear) {
    const double start = now_ms();
    for (int i = 0; i < n; i++) {
        if (clear) llama_memory_clear(llama_get_memory(ctx), false);
        if (llama_decode(ctx, llama_batch_get_one(tokens.data(), int32_t(tokens.size())))) fail("llama_decode failed");
        llama_synchronize(ctx);
    }
    return (now_ms() - start) / n;
}

result run(const std::string & tensors, int phases) {
    std::vector<llama_token> prompt(n_prompt), one(1, 1234);
    for (int i = 0; i < n_prompt; i++) prompt[i] = 1000 + (i * 7919) % 19000;
    const bool on = !tensors.empty();
    const std::string log = folder + ".jsonl", stream = folder + ".stream";
    bind(on);
    if (on) {
        unlink(log.c_str());
        unlink(stream.c_str());
        setenv("LLAMA_RESOURCE_CAPTURE", stream.c_str(), 1);
        setenv("LLAMA_RESOURCE_TENSORS", tensors.c_str(), 1);
        if (recording_init(1, log.c_str())) fail("recording did not start");
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 1024;
    params.n_batch = params.n_ubatch = n_prompt;
    params.n_threads = params.n_threads_batch = threads;
    llama_context * ctx = llama_init_from_model(model, params);
    if (!ctx) fail("cannot make a context");
    result r = {};
    // The first two steps of a context are taken for warm-ups and not captured.
    steps(ctx, one, 3, true);
    if (phases > 1) {
        steps(ctx, prompt, prefill_before, true);
        r.ms[1] = steps(ctx, prompt, prefill_timed, true);
        // What a prompt leaves behind is not decode's to pay.
        if (on && recording_flush()) fail("the stream cannot be flushed");
    }
    llama_memory_clear(llama_get_memory(ctx), false);
    steps(ctx, one, decode_before, false);
    r.ms[0] = steps(ctx, one, decode_timed, false);
    if (on) recording_free();
    struct stat s;
    if (on && (stat(stream.c_str(), &s) || s.st_size < 1 << 20)) fail("nothing was captured");
    llama_free(ctx);
    bind(false);
    unlink(log.c_str());
    unlink(stream.c_str());
    return r;
}

}  // namespace

int main(int argc, char ** argv) {
    if (argc < 7) fail("usage: paired_capture MODEL.gguf PAIRS THREADS decode|both NAMES RAW");
    find_library(argv);
    const int pairs = atoi(argv[2]);
    threads = atoi(argv[3]);
    const int phases = std::string(argv[4]) == "decode" ? 1 : 2;
    std::vector<std::string> names;
    for (std::string list = argv[5]; !list.empty();) {
        const size_t end = std::min(list.find(','), list.size());
        names.push_back(list.substr(0, end));
        list.erase(0, end + 1);
    }
    FILE * raw = fopen(argv[6], "w");
    if (!raw) fail(std::string("cannot write ") + argv[6]);
    const char * directory = getenv("TMPDIR");
    folder = std::string(directory ? directory : "/tmp") + "/lri-paired-" + std::to_string(getpid());

    llama_log_set([](ggml_log_level level, const char * text, void *) { if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr); }, nullptr);
    llama_backend_init();
    model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) fail(std::string("cannot load ") + argv[1]);
    find_slots();
    run("", 1);
    for (int p = 0; p < pairs; p++) {
        for (size_t i = 0; i < names.size(); i++) {
            const std::string tensors = names[i] == "off" ? "" : names[i];
            const bool on_first = (p + i) % 2;
            const result first = run(on_first ? tensors : "", phases), second = run(on_first ? "" : tensors, phases);
            const result & on = on_first ? first : second, & off = on_first ? second : first;
            for (int phase = 0; phase < phases; phase++) {
                fprintf(raw, "{\"mode\": \"%s\", \"phase\": \"%s\", \"plain_ms\": %.6f, \"mode_ms\": %.6f}\n", names[i].c_str(),
                        phase ? "prefill" : "decode", off.ms[phase], on.ms[phase]);
            }
        }
    }
    if (fclose(raw)) fail("the pairs could not be written");
    llama_model_free(model);
    llama_backend_free();
    return 0;
}
