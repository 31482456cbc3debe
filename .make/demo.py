#!/usr/bin/env python3
"""Records a real llama-server with a real model while it serves six requests, then shows the report and the captured activations.

Nothing here knows the library: the server is started by `llama-resource run`, the requests are plain HTTP, and everything shown
comes out of the log and the stream.
"""
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
PROGRAM = TOP / "target/release/llama-resource"
SERVER = TOP / "target/llama.cpp/bin/llama-server"
MODEL = TOP / "target/models/SmolLM2-135M-Instruct.Q4_1.gguf"
OUT = TOP / "target/demo"

SYSTEM = (
    "You are a patient teacher who explains things to curious people. You answer in short, plain sentences, you give one "
    "example for every claim, you never use a word that the listener may not know without explaining it, and you end every "
    "answer with one question that invites the listener to think further about the subject at hand. "
)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def post(port, question, n_predict):
    body = {"prompt": f"{SYSTEM}\n\nQuestion: {question}\nAnswer:", "n_predict": n_predict, "temperature": 0, "cache_prompt": True}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def wait_until_ready(port, server, log):
    for _ in range(600):
        if server.poll() is not None:
            sys.exit(f"demo: llama-server ended with status {server.returncode}; its output is in {log}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    sys.exit(f"demo: llama-server was not ready within a minute; its output is in {log}")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    log, stream, server_log, html = OUT / "demo.jsonl", OUT / "acts.stream", OUT / "llama-server.log", OUT / "report.html"
    log.unlink(missing_ok=True)
    stream.unlink(missing_ok=True)
    port = free_port()
    command = [str(PROGRAM), "run", "--level", "DETAILED", "--log", str(log), "--capture", str(stream), "--tensors", "residual", "--codec", "bounded",
               "--", str(SERVER), "-m", str(MODEL), "-c", "4096", "-np", "4", "-t", "2", "--port", str(port), "--host", "127.0.0.1", "--no-webui"]
    show = " ".join(os.path.relpath(c, TOP) if c.startswith(str(TOP)) else c for c in command)
    print(f"$ {show}", flush=True)
    with open(server_log, "wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until_ready(port, server, server_log)

        def ask(what, question, n_predict):
            timings = post(port, question, n_predict)["timings"]
            print(f"  {what}: {timings['cache_n'] + timings['prompt_n']} prompt tokens ({timings['cache_n']} cached), "
                  f"{timings['predicted_n']} generated", flush=True)

        ask("one request          ", "Why is the sky blue?", 64)
        ask("the same long prefix ", "Why do leaves fall in autumn?", 48)
        pair = [threading.Thread(target=ask, args=("two at once          ", q, 48)) for q in ("What is a prime number?", "How does a bicycle stay up?")]
        for thread in pair:
            thread.start()
        for thread in pair:
            thread.join()
        ask("a repeated question  ", "Why is the sky blue?", 32)
        ask("a short one          ", "Is water wet?", 16)
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
    log, stream, html = (os.path.relpath(path, TOP) for path in (log, stream, html))
    for arguments in (["report", log], ["report", log, "--html", html], ["stream", "info", stream], ["stream", "stats", stream]):
        print(f"\n$ target/release/llama-resource {' '.join(arguments)}\n", flush=True)
        status = subprocess.run([str(PROGRAM), *arguments], cwd=TOP).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
