"""A host of the matrix: SmolLM2 through llama-cpp-python's high-level class. `python_host.py MODEL TOKENS` prints one JSON object.

ctypes finds every llama_* function with dlsym() on the library's own handle, so these calls never pass through a symbol look-up that
LD_PRELOAD could win; what libllama and libggml call among themselves does.

With `vocabulary` for TOKENS the model is loaded for its vocabulary only, and nothing is computed.
"""
import json
import sys

from llama_cpp import Llama

# The last one shares a beginning with the one before.
PROMPTS = ["The capital of France is", "Once upon a time there was a little robot who", "Once upon a time there was a big"]


def load(model):
    return Llama(model, n_ctx=512, n_threads=2, n_threads_batch=2, seed=1, verbose=True)  # verbose: llama.cpp's log goes to stderr


def complete(llm, prompt, tokens):
    """The answer to one prompt, and the host's own counts."""
    prompt_ids = llm.tokenize(prompt.encode())
    # `generate` keeps the longest common beginning of what was decoded (`eval_tokens`: the token sampled last is not among
    # them) and the prompt, but decodes at least the last prompt token again.
    decoded, cached = list(llm.eval_tokens), 0
    while cached < min(len(decoded), len(prompt_ids) - 1) and decoded[cached] == prompt_ids[cached]:
        cached += 1
    ids = []
    for token in llm.generate(prompt_ids, temp=0.0):  # each token yielded was sampled once
        ids.append(token)
        if len(ids) == tokens or token == llm.token_eos():
            break
    return {"prompt_tokens": len(prompt_ids), "cached_tokens": cached, "generated_tokens": len(ids), "ids": ids,
            "text": llm.detokenize(ids).decode(errors="replace")}


def requests(model, tokens):
    llm = load(model)
    answers = [complete(llm, prompt, tokens) for prompt in PROMPTS]
    llm.close()
    return answers


def vocabulary(model):
    llm = Llama(model, vocab_only=True, verbose=True)
    ids = [llm.tokenize(prompt.encode()) for prompt in PROMPTS]
    texts = [llm.detokenize(i).decode() for i in ids]
    llm.close()
    return {"requests": [], "ids": ids, "texts": texts}


if __name__ == "__main__":
    if sys.argv[2] == "vocabulary":
        print(json.dumps(vocabulary(sys.argv[1])))
    else:
        print(json.dumps({"requests": requests(sys.argv[1], int(sys.argv[2]))}))
