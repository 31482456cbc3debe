"""A host of the matrix: xllamacpp, one extension module with llama-server inside, linked statically but with every llama_* and ggml_*
symbol exported and called through the PLT. `embedded_host.py MODEL TOKENS PORT` prints one JSON object.

A preloaded library wins those look-ups, and the definition it must forward to is in no file named libllama* or libggml*.
"""
import json
import sys

import xllamacpp

PROMPTS = ["The capital of France is", "The capital of Italy is", "Once upon a time there was a little robot who"]


def main(model, tokens, port):
    p = xllamacpp.CommonParams()
    p.model.path = model
    p.n_ctx, p.n_parallel, p.port, p.verbosity = 512, 1, port, 4
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 2
    p.sampling.temp, p.sampling.seed = 0.0, 1
    server = xllamacpp.Server(p)
    requests = []
    for prompt in PROMPTS:
        r = server.handle_completions({"prompt": prompt, "max_tokens": tokens, "temperature": 0})
        t = r["timings"]  # llama-server's own
        requests.append({"prompt_tokens": t["cache_n"] + t["prompt_n"], "cached_tokens": t["cache_n"], "generated_tokens": t["predicted_n"],
                         "text": r["choices"][0]["text"]})
    print(json.dumps({"requests": requests}))


main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
