"""Where people look: metrics, events, summary and page of `run --serve` and `serve`, beside a real server and on logs of every kind.

Judges: the server's own `timings`, the parser of the package prometheus-client, promtool where it is installed, and the log itself.
"""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families

from capture import PROGRAM
from server import Server, read_log

PROMPT = "The house by the water had a door of"


class Serve:
    """`llama-resource serve` on a port of its own."""

    def __init__(self, *arguments, env=None):
        command = [str(PROGRAM), "serve", *map(str, arguments), "--listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
        line = self.process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        assert found, line
        self.port = int(found[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=20)

    def get(self, path, headers=None):
        return get(self.port, path, headers)

    def rss_kib(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1])


def get(port, path, headers=None):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, reply.read().decode(), reply.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


def metrics(text):
    """Family name -> its samples, as the official parser reads them."""
    return {family.name: family.samples for family in parser.text_string_to_metric_families(text)}


def value(families, name, sample=None, **labels):
    found = [s.value for s in families.get(name, []) if s.name == (sample or s.name) and labels.items() <= s.labels.items()]
    assert len(found) <= 1, (name, labels, families[name])
    return found[0] if found else None


def until(what, seconds=20):
    end = time.monotonic() + seconds
    while not (result := what()):
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.05)
    return result


def answers(port):
    try:
        return get(port, "/health")[0] == 200
    except OSError:
        return False


def post(port, body):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


@pytest.fixture(scope="module")
def served(tmp_path_factory, smollm2, llama_server):
    """A real server under `run --serve`, six requests on two slots, one of them answered from the cache; while it runs, what was served."""
    folder = tmp_path_factory.mktemp("serve")
    log = folder / "host.jsonl"
    with socket.create_server(("127.0.0.1", 0)) as free:
        at = free.getsockname()[1]
    command = [PROGRAM, "run", "--level", "verbose", "--log", log, "--serve", "127.0.0.1:0", "--", llama_server, "-m", smollm2,
               "--port", at, "-np", 2, "-c", 1024, "-t", 2]
    told = (folder / "stderr").open("w+")
    host = subprocess.Popen([*map(str, command)], stderr=told, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        until(lambda: answers(at), seconds=60)
        told.seek(0)
        port = int(re.search(r"serving at http://127\.0\.0\.1:(\d+)/", told.read())[1])
        requests = [{"prompt": PROMPT + word, "n_predict": 12 + 3 * i, "temperature": 0, "ignore_eos": True}
                    for i, word in enumerate(["", "", " wood", " glass", " iron", " bone"])]
        replies = []
        clients = [threading.Thread(target=lambda r=r: replies.append(post(at, r))) for r in requests]
        for pair in zip(clients[::2], clients[1::2]):
            [c.start() for c in pair]
            [c.join() for c in pair]
        until(lambda: value(metrics(get(port, "/metrics")[1]), "llama_resource_requests", outcome="stopped") == 6)
        until(lambda: "llama_resource_kv_cells" in get(port, "/metrics")[1])
        time.sleep(1.3)  # an interval's totals at VERBOSE
        kept = {path: get(port, path) for path in ["/metrics", "/healthz", "/", "/api/v1/summary", "/api/v1/resource-logs?event=request_end"]}
        kept["openmetrics"] = get(port, "/metrics", {"Accept": "application/openmetrics-text; version=1.0.0,text/plain;q=0.5"})
        host.send_signal(signal.SIGTERM)
        assert host.wait(timeout=30) == 0
    finally:
        if host.poll() is None:
            os.killpg(host.pid, signal.SIGKILL)
    with pytest.raises(OSError):
        get(port, "/metrics")  # it ends with the command
    return [r["timings"] for r in replies], kept, read_log(log), log


def test_counts_are_the_servers_own(served):
    timings, kept, events, _ = served
    families = metrics(kept["/metrics"][1])
    prompt = sum(t["prompt_n"] + t["cache_n"] for t in timings)
    assert value(families, "llama_resource_tokens", phase="prompt") == prompt
    assert value(families, "llama_resource_tokens", phase="generated") == sum(t["predicted_n"] for t in timings)
    assert value(families, "llama_resource_prompt_cached_tokens") == sum(t["cache_n"] for t in timings)
    assert value(families, "llama_resource_up") == 1 and value(families, "llama_resource_requests_active") == 0
    alive = {}
    last = max(i for i, e in enumerate(events) if e["event"] == "request_end")
    for e in events[:last]:
        if e["event"] == "buffer_allocation":
            alive[e["buffer_id"]] = e
        elif e["event"] == "buffer_free":
            del alive[e["buffer_id"]]
    told = sum(s.value for s in families["llama_resource_buffer_bytes"])
    assert told == sum(e["size_bytes"] for e in alive.values()) > 100e6


def test_quantiles_lie_in_the_bucket_of_the_exact_value(served):
    _, kept, events, _ = served
    families = metrics(kept["/metrics"][1])
    ends = [e for e in events if e["event"] == "request_end"]
    gaps = sorted(e["since_previous_ms"] / 1e3 for e in events if e["event"] == "request_token" and e["index"] > 0)
    firsts = sorted(e["ttft_ms"] / 1e3 for e in ends)
    for name, exact in [("llama_resource_inter_token_seconds", gaps), ("llama_resource_time_to_first_token_seconds", firsts)]:
        buckets = [(float(s.labels["le"]), s.value) for s in families[name] if s.name.endswith("_bucket")]
        assert value(families, name, f"{name}_count") == len(exact) == buckets[-1][1]
        assert value(families, name, f"{name}_sum") == pytest.approx(sum(exact), rel=1e-3)
        for share in [0.5, 0.9, 0.99]:
            rank = share * len(exact)
            i = next(i for i, (_, n) in enumerate(buckets) if n >= rank)
            truth = exact[min(len(exact) - 1, max(0, -(-int(rank * 1000) // 1000) - 1))]
            j = next(i for i, (bound, _) in enumerate(buckets) if bound >= truth)
            assert abs(i - j) <= 1, (name, share, truth, buckets)
    for end in ends:
        assert sum(end["inter_token_buckets"]["bucket_counts"]) == end["generated_tokens"] - 1


def test_both_formats_are_what_their_readers_accept(served):
    _, kept, _, _ = served
    status, text, headers = kept["openmetrics"]
    assert status == 200 and headers["Content-Type"].startswith("application/openmetrics-text") and text.endswith("# EOF\n")
    families = {f.name: f for f in openmetrics_families(text)}
    exemplars = [s.exemplar for s in families["llama_resource_time_to_first_token_seconds"].samples if s.exemplar]
    assert exemplars and all(re.fullmatch("[0-9a-f]{32}", e.labels["trace_id"]) for e in exemplars)
    status, text, headers = kept["/metrics"]
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert {f"{f}" for f in metrics(text)} == {f for f in families}


def test_promtool_has_nothing_to_complain_of(served):
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed (Debian: prometheus)")
    _, kept, _, _ = served
    checked = subprocess.run(["promtool", "check", "metrics"], input=kept["/metrics"][1], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_events_are_those_of_the_log(served, tmp_path):
    _, kept, events, log = served
    ends = [e for e in events if e["event"] == "request_end"]
    assert [json.loads(line) for line in kept["/api/v1/resource-logs?event=request_end"][1].splitlines()] == ends
    with Serve(log) as serve:
        until(lambda: serve.get("/healthz")[0] == 200)
        lines = lambda query: [json.loads(line) for line in serve.get(f"/api/v1/resource-logs?{query}")[1].splitlines()]
        assert lines("") == events
        assert lines("request=3&event=request_start,request_end") == [e for e in events if e.get("request_id") == 3 and e["event"] in ("request_start", "request_end")]
        assert lines("layer=7&limit=5") == [e for e in events if e.get("layer_id") == 7][:5]
        start = events[0]
        middle = ends[2]["t_ns"]
        since = start["unix_us"] / 1e6 + (middle - start["t_ns"]) / 1e9
        assert lines(f"event=request_end&since={since - 1e-4}") == [e for e in ends if e["t_ns"] >= middle - 1e5]
        status, text, _ = serve.get("/api/v1/resource-logs?event=x&evnet=1")
        assert status == 400 and "evnet" in json.loads(text)["error"]
        # What is over is over: sums stay, what is true of now is gone.
        families = metrics(serve.get("/metrics")[1])
        assert value(families, "llama_resource_requests", outcome="stopped") == 6 and value(families, "llama_resource_up") == 0
        assert not {"llama_resource_buffer_bytes", "llama_resource_kv_cells", "llama_resource_log_lag_seconds"} & set(families)


def test_the_summary_and_the_page(served):
    _, kept, _, _ = served
    host = json.loads(kept["/api/v1/summary"][1])["hosts"][0]
    assert host["up"] and host["requests"]["outcomes"] == {"stopped": 6} and host["read"]["bad"] == 0
    status, page, headers = kept["/"]
    assert status == 200 and "default-src 'none'" in headers["Content-Security-Policy"] and "http" + "://" not in page and "https://" not in page


def test_a_request_that_takes_long_tells_how_far_it_has_come(smollm2, tmp_path):
    with Server(smollm2, args=["-c", "1024"], level="DETAILED", log_path=tmp_path / "a.jsonl") as server:
        began = time.monotonic()
        timings = []
        while time.monotonic() < began + 3 or not timings:
            timings.append(server.post("/completion", {"prompt": PROMPT, "n_predict": 400, "temperature": 0, "ignore_eos": True})["timings"])
        server.stop()
    events = read_log(tmp_path / "a.jsonl")
    ends = {e["request_id"]: e for e in events if e["event"] == "request_end"}
    told = {}
    for e in (e for e in events if e["event"] == "request_progress"):
        end, before = ends[e["request_id"]], told.get(e["request_id"])
        assert e["phase"] == "decode" and e["prompt_tokens"] == e["prompt_tokens_done"] == end["prompt_tokens"]
        assert e["cached_tokens"] == end["cached_tokens"] and e["cells"] >= e["generated_tokens"] > 0
        assert e["generated_tokens"] <= end["generated_tokens"] and e["t_ns"] <= end["t_ns"]
        assert before is None or (e["t_ns"] - before["t_ns"] >= 1e9 and e["generated_tokens"] > before["generated_tokens"])
        told[e["request_id"]] = e
    long = [e for e in ends.values() if e["duration_ms"] > 1500]
    assert {e["request_id"] for e in long} <= set(told), "one line a second"
    assert sum(e["generated_tokens"] for e in ends.values()) == sum(t["predicted_n"] for t in timings)


def line(event, t_ns, **fields):
    return json.dumps({"event": event, "timestamp": "1", "session_id": "s", "t_ns": t_ns, **fields}) + "\n"


def start_line(session="s", t_ns=1):
    return json.dumps({"event": "resource_session_start", "timestamp": "x", "session_id": session, "level": "DETAILED", "t_ns": t_ns,
                       "unix_us": int(time.time() * 1e6), "log_version": 2, "library_version": "0.1.0", "mode": "preload", "pid": 1,
                       "program": "p", "rate_limit": None}) + "\n"


def dropped(t_ns, n=1):
    return line("events_dropped", t_ns, reason="rate_limit", kind="x", count=n)


def test_a_log_of_every_kind_is_served(tmp_path):
    log = tmp_path / "a.jsonl"
    with Serve(log) as serve:
        count = lambda: next((s.value for s in metrics(serve.get("/metrics")[1]).get("llama_resource_events_dropped", [])), 0)
        until(lambda: serve.get("/healthz")[0] == 200)
        assert serve.get("/api/v1/resource-logs")[1] == "", "not there yet"
        log.write_text("")
        log.write_text(start_line() + dropped(2) + "garbage\n" + '{"event":"of_the_future","t_ns":3}\n' + dropped(4)[:40])
        until(lambda: count() == 1)
        with log.open("a") as out:
            out.write(dropped(4)[40:])
        until(lambda: count() == 2)
        log.rename(tmp_path / "a.jsonl.1")
        log.write_text(start_line("t") + dropped(9, 5))
        until(lambda: count() == 7)
        log.write_text(start_line("u") + dropped(9, 30) + dropped(10, 3))  # cut back and written anew
        until(lambda: count() == 40)
        families = metrics(serve.get("/metrics")[1])
        assert value(families, "llama_resource_log_lines", result="bad") == 1 and value(families, "llama_resource_log_lines", result="unknown") == 1
        assert value(families, "llama_resource_log_replacements", how="rotated") == 1
        assert value(families, "llama_resource_log_replacements", how="truncated") == 1


def test_a_folder_of_logs_tells_them_apart(tmp_path):
    (tmp_path / "one.jsonl").write_text(start_line() + dropped(2, 4))
    with Serve(tmp_path) as serve:
        until(lambda: "llama_resource_up" in serve.get("/metrics")[1])
        (tmp_path / "two.jsonl").write_text(start_line() + dropped(2, 6))
        families = until(lambda: (f := metrics(serve.get("/metrics")[1])) and len(f["llama_resource_up"]) == 2 and f)
        assert value(families, "llama_resource_events_dropped", log="one") == 4
        assert value(families, "llama_resource_events_dropped", log="two") == 6


def test_an_event_is_on_the_page_and_in_the_metrics_soon(tmp_path):
    log = tmp_path / "a.jsonl"
    log.write_text(start_line())
    delays = {"metrics": [], "events": []}
    with Serve(log) as serve:
        follow = http.client.HTTPConnection("127.0.0.1", serve.port, timeout=20)
        follow.request("GET", "/api/v1/resource-logs?event=events_dropped&follow=1")
        stream = follow.getresponse()
        for i in range(20):
            with log.open("a") as out:
                out.write(dropped(10 + i))
            began = time.monotonic()
            assert json.loads(stream.readline())["t_ns"] == 10 + i
            delays["events"].append(time.monotonic() - began)
            until(lambda: value(metrics(serve.get("/metrics")[1]), "llama_resource_events_dropped", reason="rate_limit") == i + 1)
            delays["metrics"].append(time.monotonic() - began)
        follow.close()
    for what, all_ in delays.items():
        assert sorted(all_)[-2] < 0.4, (what, sorted(all_))  # 300 ms, and the test's own look


def test_server_sent_events_go_on_from_their_id(tmp_path):
    log = tmp_path / "a.jsonl"
    log.write_text(start_line() + dropped(2) + dropped(3))
    with Serve(log) as serve:
        until(lambda: serve.get("/healthz")[0] == 200)
        text = serve.get("/api/v1/resource-logs?format=sse&event=events_dropped")[1]
        assert text.count("event: events_dropped\ndata: {") == 2
        cursor = re.search("^id: ([0-9a-f]+)$", text, re.M)[1]
        with log.open("a") as out:
            out.write(dropped(4))
        rest = serve.get(f"/api/v1/resource-logs?log=a&cursor={cursor}")[1]
        assert [json.loads(x)["t_ns"] for x in rest.splitlines()] == [4]


def test_others_need_a_token(tmp_path):
    (tmp_path / "a.jsonl").write_text(start_line())
    refused = subprocess.run([PROGRAM, "serve", tmp_path / "a.jsonl", "--listen", "0.0.0.0:0"], capture_output=True, text=True, timeout=20)
    assert refused.returncode == 1 and "LLAMA_RESOURCE_TOKEN" in refused.stderr
    with Serve(tmp_path / "a.jsonl", env={"LLAMA_RESOURCE_TOKEN": "secret"}) as serve:
        assert serve.get("/metrics")[0] == 401 and serve.get("/metrics?token=wrong!")[0] == 401
        assert serve.get("/metrics?token=secret")[0] == 200
        assert serve.get("/metrics", {"Authorization": "Bearer secret"})[0] == 200
        assert serve.get("/healthz")[0] in (200, 503)


def test_hostile_clients_get_what_they_deserve(tmp_path):
    log = tmp_path / "a.jsonl"
    log.write_text(start_line() + "".join(dropped(i) for i in range(20_000)))
    with Serve(log) as serve:
        until(lambda: serve.get("/healthz")[0] == 200)
        before = serve.rss_kib()
        idle = [socket.create_connection(("127.0.0.1", serve.port)) for _ in range(200)]
        assert serve.get("/metrics")[0] == 200, "200 idle ones take nobody's place"
        for path in ["/../../etc/passwd", "/%2e%2e/etc/passwd", "/api", "//", "/metrics/"]:
            assert serve.get(path)[0] == 404, path
        assert serve.get("/metrics", {"Host": "evil.example"})[0] == 403
        connection = http.client.HTTPConnection("127.0.0.1", serve.port, timeout=20)
        for i in range(10_000):
            connection.request("GET", f"/wrong/{i}")
            reply = connection.getresponse()
            reply.read()
            assert reply.status == 404
        for method in ["POST", "DELETE", "OPTIONS"]:
            connection.request(method, "/")
            reply = connection.getresponse()
            assert (reply.status, reply.getheader("Allow"), bool(reply.read())) == (405, "GET, HEAD", True)
        connection.close()
        with socket.create_connection(("127.0.0.1", serve.port)) as huge:
            huge.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000)
            assert b" 431 " in huge.recv(100)
        with socket.create_connection(("127.0.0.1", serve.port)) as garbage:
            garbage.sendall(b"\x00\x01garbage\r\n\r\n")
            assert garbage.recv(100).startswith(b"HTTP/1.1 400")
        readers = []
        for _ in range(70):  # they ask for everything and read nothing
            reader = socket.create_connection(("127.0.0.1", serve.port))
            reader.sendall(b"GET /api/v1/resource-logs?follow=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            readers.append(reader)
            if len(readers) >= 40:
                idle.pop().close()
        refused = 0
        for reader in readers:
            reader.settimeout(20)
            refused += b" 503 " in reader.recv(64)
        assert refused == 70 - 64, "64 may follow"
        assert serve.get("/metrics")[0] == 200
        for one in idle + readers:
            one.close()
        until(lambda: serve.get("/api/v1/resource-logs?limit=1&follow=1")[0] == 200)
        assert serve.rss_kib() - before < 100 * 1024
