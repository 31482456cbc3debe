"""What is known not to work yet: (entry, fact) -> (its state, words that its reasons must hold, why). Everything else must be `yes`.

A later mend makes the entry fail until its line here is taken out; another fault than the one that is named makes it fail at once.
"""

NO_SPAN = ("partly", "updates of layer 0 have no sequence or positions",
           "cache writes of a prompt that takes several ubatches in one call carry their size, but neither sequence nor positions")
WARM_UP = ("partly", "rows of l_out-0",
           "a server's two warm-up batches are taken for work where the program is not called llama-server: 4 rows too many, as of request 1")
BOUND = "the libraries keep their calls to themselves (-Bsymbolic); what only passes between functions of one library is not seen"
INSIDE = "the addon keeps most of its calls to itself (no `llama_decode` in its PLT): they are not seen"
UNKNOWN_TENSOR = "this package's ggml has tensors of 352 bytes, a layout that the library does not know"
FORKED = "the model is loaded before the fork, and the child's work is not recorded; it says so, and the remedy, in a line on stderr"
STATIC = "all of llama.cpp is inside the program and nothing of it is exported; one line on stderr says so"
WHISPER_GRAPH = "no graph of whisper's is one of llama.cpp's that processes tokens; the log says so"

EXPECTED = {
    ("pinned llama-server", "KV"): NO_SPAN,
    ("b10434 llama-server", "KV"): NO_SPAN,
    ("Debian unstable llama-server", "KV"): NO_SPAN,
    ("Debian unstable llama-server", "capture"): WARM_UP,
    ("llama-server as router", "KV"): NO_SPAN,
    ("llama-server as router", "told"): ("partly", "everything is there, but hooks: no call of llama.cpp was seen",
                                         "the parent, which computes nothing, says that its calls may be hidden"),

    ("llama-server with -Bsymbolic", "KV"): NO_SPAN,
    ("llama-server with -Bsymbolic", "memory"): ("partly", "no buffer_allocation of kind compute", BOUND + ": weights alone are complete"),
    ("llama-server with -Bsymbolic", "operation times"): ("no", "no step was timed", BOUND),

    ("gunicorn --preload", "requests"): ("no", "no request_end", FORKED),
    ("gunicorn --preload", "KV"): ("no", "neither", FORKED),
    ("gunicorn --preload", "tensors"): ("no", "no step_summary", FORKED),
    ("gunicorn --preload", "operation times"): ("no", "no step_summary", FORKED),
    ("gunicorn --preload", "capture"): ("no", "in 0 steps", FORKED),
    ("gunicorn --preload", "labels"): ("no", "there are no rows", FORKED),

    ("node-llama-cpp 3.6.0", "KV"): ("partly", "keys were written in layer 0: found 0",
                                     "cuts by the host are told; writes of graphs and cells in use are not: this build names its cache otherwise"),
    ("node-llama-cpp 3.6.0", "tensors"): ("partly", "components are attention, embedding, mlp, moe, norm, output, residual",
                                          "this build names some tensors otherwise: `ffn_gate_par` counts as `moe`, cache writes as attention"),
    ("node-llama-cpp 3.6.0", "doctor"): ("partly", "doctor says kv_operations: yes",
                                         "writes of graphs into the cache are missing, and doctor does not say so"),

    ("@fugood/llama.node", "doctor"): ("partly", "doctor says requests: yes",
                                       "it says that a host which links the addon would show requests and KV operations: Node.js does not, and the addon binds its calls"),
    ("@fugood/llama.node", "requests"): ("no", "no request_end", INSIDE),
    ("@fugood/llama.node", "memory"): ("no", "no buffer_allocation", INSIDE),
    ("@fugood/llama.node", "KV"): ("no", "neither", INSIDE),
    ("@fugood/llama.node", "tensors"): ("no", "no step_summary", UNKNOWN_TENSOR),
    ("@fugood/llama.node", "operation times"): ("no", "no step_summary", UNKNOWN_TENSOR),
    ("@fugood/llama.node", "capture"): ("no", "352 bytes", UNKNOWN_TENSOR),
    ("@fugood/llama.node", "labels"): ("no", "there are no rows", UNKNOWN_TENSOR),
    ("@fugood/llama.node", "told"): ("partly", "not a word of what is missing of: requests, KV",
                                     "that requests and KV operations are missing is not said"),

    ("xllamacpp", "capture"): WARM_UP,

    ("whisper (pywhispercpp)", "capture"): ("no", "none of the", WHISPER_GRAPH),

    ("static host", "session"): ("no", "there is no log", STATIC),
    ("static host", "model"): ("no", "no model_load", STATIC),
    ("static host", "requests"): ("no", "no request_end", STATIC),
    ("static host", "memory"): ("no", "no buffer_allocation", STATIC),
    ("static host", "KV"): ("no", "neither", STATIC),
    ("static host", "tensors"): ("no", "no step_summary", STATIC),
    ("static host", "operation times"): ("no", "no step_summary", STATIC),
    ("static host", "capture"): ("no", "there is no stream", STATIC),
    ("static host", "labels"): ("no", "there are no rows", STATIC),
}
