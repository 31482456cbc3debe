"""A real NVIDIA GPU: llama.cpp's CUDA backend, and every figure of `gpu_sample` beside nvidia-smi and NVML's Python package.

`make test-cuda` builds the server and runs this. Skipped where there is no GPU, no such server or no package (nvidia-ml-py).
"""

import ctypes
import re
import shutil
import statistics
import subprocess
import threading
import time
from collections import Counter

import pytest

from capture import Stream, align, capture_env, compare, oracle, read_oracle
from gpu import cpu_seconds, samples, span, states, threads
from server import LIBRARY, SMOLLM2, TARGET, Server, read_log
from test_memory import check_buffers, check_life, check_weights, printed_sizes
from test_schema import check
from truth import EXACT, LETTERS, let_warm_up_pass, of_kind, served_part, sole

CUDA_SERVER = TARGET / "llama.cpp-cuda" / "bin" / "llama-server"
MIB = 2**20
EMBD, LAYERS = 576, 30
GREEDY = {"prompt": LETTERS * 4, "n_predict": 24, "temperature": 0, "ignore_eos": True, "return_tokens": True, "n_probs": 10}
LONG = {"prompt": LETTERS, "n_predict": 1500, "temperature": 0, "ignore_eos": True}
# The other GPUs of the machine are left alone; NVML and CUDA number them alike then.
ONE = {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def smi(*fields, of="gpu"):
    """Rows of `nvidia-smi --query-OF`."""
    command = ["nvidia-smi", f"--query-{of}={','.join(fields)}", "--format=csv,noheader,nounits", *(["-i", "0"] if of == "gpu" else [])]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return [dict(zip(fields, (value.strip() for value in line.split(",")))) for line in lines]


@pytest.fixture(scope="module")
def nvml():
    """NVML's Python package, started, and the device."""
    if not shutil.which("nvidia-smi") or subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode:
        pytest.skip("no NVIDIA GPU")
    if not CUDA_SERVER.exists():
        pytest.skip("no llama-server with CUDA: `make llama-cuda` builds it where nvcc is")
    pynvml = pytest.importorskip("pynvml", reason="the package nvidia-ml-py is not there")
    pynvml.nvmlInit()
    yield pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
    pynvml.nvmlShutdown()


@pytest.fixture(scope="module")
def serve(nvml):
    """Function that starts the server on the GPU, all layers there."""

    def start(env=None, preload=True, model=SMOLLM2, args=(), **options):
        args = ["-c", "2048", "-ngl", "99", *args]
        return Server(model, args=args, binary=CUDA_SERVER, env={**ONE, **(env or {})}, preload=preload, timeout=120, **options)

    return start


def answer_of(server, body=GREEDY):
    answer = server.post("/completion", body)
    assert server.stop() == 0, server.stderr[-2000:]
    return answer


def said(answer):
    """Tokens, and the ten most likely at each with their logarithms."""
    return answer["tokens"], answer["completion_probabilities"]


@pytest.fixture(scope="module")
def plainly(serve):
    """What the server says without us; the same twice, or nothing can be compared."""
    answers = []
    for _ in range(2):
        with serve(preload=False) as server:
            answers.append(said(answer_of(server)))
    assert answers[0] == answers[1], "the plain server differs from itself"
    return answers[0]


# --- What is computed ---


@pytest.fixture(scope="module")
def recorded(serve, tmp_path_factory):
    log = tmp_path_factory.mktemp("events") / "log.jsonl"
    with serve(EXACT, args=["-lv", "5"], level="VERBOSE", log_path=log) as server:
        let_warm_up_pass(server)
        answer = answer_of(server)
        stderr = server.stderr
    everything = read_log(log)
    return everything, served_part(everything)[0], answer, stderr


def test_answers_are_those_of_the_plain_server(recorded, plainly):
    assert said(recorded[2]) == plainly


def test_every_line_is_as_the_schema_says(recorded):
    check(recorded[0])


def test_operations_and_parts_name_the_device_and_have_no_invented_time(recorded):
    _, events, answer, _ = recorded
    steps = [answer["timings"]["prompt_n"]] + [1] * (answer["timings"]["predicted_n"] - 1)
    executions = of_kind(events, "compute_execution")
    places = Counter((event["device"], event["memory_type"], event["duration_us"] is None) for event in executions)
    # Only the look-up of the embeddings is left to the CPU.
    assert set(places) == {("CPU", "ram", False), ("CUDA0", "vram", True)} and places["CPU", "ram", False] == len(steps)
    parts = of_kind(events, "split_execution")
    assert [(part["device"], part["duration_us"] is None, part["timing"]) for part in parts] == \
        [("CPU", False, None), ("CUDA0", True, None)] * len(steps)
    copies = [event for event in of_kind(events, "component_handoff") if event["from_device"]]
    assert {(event["from_device"], event["device"]) for event in copies} == {("CPU", "CUDA0")}
    assert [event["bytes"] for event in copies if event["tensor"] == "embd"] == [EMBD * n * 4 for n in steps]
    totals = Counter()
    for summary in (summary for summary in of_kind(events, "step_summary") if summary["sampled_steps"]):
        for pair in summary["copies"]:
            totals[pair["from_device"], pair["to_device"]] += pair["bytes"]
    assert totals == {("CPU", "CUDA0"): sum(event["bytes"] for event in copies)}


def test_waiting_gives_times(serve, plainly, tmp_path):
    with serve({**EXACT, "LLAMA_RESOURCE_SPLIT_TIMES": "1"}, level="VERBOSE", log_path=tmp_path / "log.jsonl") as server:
        let_warm_up_pass(server)
        answer = answer_of(server)
    assert said(answer) == plainly
    events = served_part(read_log(tmp_path / "log.jsonl"))[0]
    parts = [part for part in of_kind(events, "split_execution") if part["device"] == "CUDA0"]
    assert {part["timing"] for part in parts} == {"serialized"} and all(part["duration_us"] > part["submit_us"] for part in parts)
    seen, server_ms = sum(part["duration_us"] for part in parts) / 1e3, answer["timings"]["prompt_ms"] + answer["timings"]["predicted_ms"]
    print(f"\nparts on the GPU {seen:.1f} ms of the server's {server_ms:.1f} ms")
    assert 0.3 * server_ms < seen < 1.02 * server_ms


# --- Capture ---


@pytest.mark.parametrize("route", ["retain", "callback"])
@pytest.mark.parametrize("tensors, names", [("residual", "l_out"), ("FULL_TENSOR", "")])
def test_capture_is_what_a_callback_sees(serve, route, tensors, names, tmp_path):
    """Beside: the oracle's callback in the same process, on the same graph runs."""
    stream, witness = tmp_path / "acts.stream", tmp_path / "oracle.bin"
    env = {**capture_env(stream, tensors=tensors, route=route), "LLAMA_RESOURCE_LOG_PATH": str(tmp_path / "log.jsonl"),
           "ORACLE_OUT": str(witness), "ORACLE_NAMES": names, "LD_PRELOAD": f"{LIBRARY}:{oracle()}"}
    with serve(env) as server:
        answer = answer_of(server, {**GREEDY, "n_predict": 4})
    result = compare(align(Stream(stream), read_oracle(witness)))
    print(f"\n{tensors}, {route}: {result.tensors} tensors, {result.bytes} bytes")
    assert result.tensors >= LAYERS * answer["timings"]["predicted_n"]


@pytest.mark.parametrize("tensors", ["residual", "FULL_TENSOR"])
def test_capture_of_the_graph_as_the_host_runs_it(serve, plainly, tensors, tmp_path):
    """Apart: only our library, retaining, CUDA graphs and fused kernels as they are. What is kept must be what the callback route reads.

    A tensor that is kept is computed by a kernel of its own where it would have been inside a fused one, and so the last bits may differ
    from a graph that is cut at every node: by how much is told, and how far it may be is asserted.
    """
    streams, answers = {}, {}
    for route in ("retain", "callback"):
        path = tmp_path / f"{route}.stream"
        env = {**capture_env(path, tensors=tensors, route=route), "LLAMA_RESOURCE_LOG_PATH": str(tmp_path / f"{route}.jsonl")}
        with serve(env) as server:
            answers[route] = said(answer_of(server))
        streams[route] = Stream(path)
    same = {route: answer == plainly for route, answer in answers.items()}
    names, equal, worst = 0, 0, {}
    assert set(streams["retain"].parts) == set(streams["callback"].parts)
    for name, parts in streams["retain"].parts.items():
        others = streams["callback"].parts[name]
        assert [part.step for part in parts] == [part.step for part in others], name
        for mine, other in zip(parts, others):
            assert (mine.rows == other.rows).all() and mine.values.shape == other.values.shape, name
            names += 1
            equal += mine.bytes == other.bytes
            if mine.bytes != other.bytes and mine.values.dtype.kind == "f":
                a, b = mine.values.astype("f8"), other.values.astype("f8")
                scale = max(abs(a[a > -1e30]).max(initial=0), 1e-9)
                worst[name] = max(worst.get(name, 0), abs(a - b)[abs(a) < 1e30].max(initial=0) / scale)
    print(f"\n{tensors}: answers as plain {same}; {equal} of {names} tensors byte-equal; "
          f"largest differences: {sorted(worst.items(), key=lambda w: -w[1])[:8]}")
    assert answers["retain"][0] == plainly[0], "capturing changed the tokens"
    assert all(difference < 0.05 for difference in worst.values())


# --- Memory ---


def test_buffers_and_the_memory_breakdown(recorded):
    events, _, _, stderr = recorded
    compared = check_buffers(events, stderr)
    assert {("model", "CUDA0"), ("KV", "CUDA0"), ("compute", "CUDA0")} <= {(what, where) for what, where, _ in compared}, printed_sizes(stderr)
    assert not check_life(events), "buffers that were never freed"
    # The server's own sum, printed at its end: total = free + (self = model + context + compute) + unaccounted.
    line = re.findall(r"- CUDA0 \(.*\) *\| *(\d+) = +(\d+) \+ +\( *(\d+) = +(\d+) \+ +(\d+) \+ +(\d+)\) \+ +(-?\d+)", stderr)
    assert line, f"no memory breakdown: {stderr[-3000:]}"
    total, free, own, model, context, compute, unaccounted = map(int, line[-1])
    sizes = {what: size for what, where, size in compared if where == "CUDA0"}
    assert (model, context, compute) == tuple(sizes[what] // MIB for what in ("model", "KV", "compute"))
    last = samples(events)[-1]
    print(f"\nbreakdown: total {total}, free {free}, self {own}, unaccounted {unaccounted}; "
          f"NVML: total {last['memory_total_bytes'] / MIB:.1f}, used {last['memory_used_bytes'] / MIB:.1f}, "
          f"free {last['memory_free_bytes'] / MIB:.1f}, this process {(last['process_memory_bytes'] or 0) / MIB:.1f} MiB")
    peak = max(line["process_memory_bytes"] or 0 for line in samples(events))
    # The process holds its buffers, and besides them the CUDA context and the backend's pool: "unaccounted" has those too.
    assert own <= peak / MIB <= own + unaccounted + 64


def test_memory_and_identity_are_nvidia_smi_s(serve, nvml, tmp_path):
    log = tmp_path / "log.jsonl"
    with serve(level="VERBOSE", log_path=log) as server:
        server.post("/completion", GREEDY)
        time.sleep(2)  # idle: nothing changes
        told = sole(smi("name", "uuid", "pci.bus_id", "memory.total", "memory.used", "memory.free", "memory.reserved", "pcie.link.gen.current",
                        "pcie.link.width.current", "power.draw.instant", "power.draw.average", "temperature.gpu", "clocks.sm", "clocks.mem",
                        "pstate", "clocks_event_reasons.active"), "GPUs")
        of_processes = smi("pid", "used_memory", of="compute-apps")
        time.sleep(1.2)
        pid = server.pid
        assert server.stop() == 0
    events = read_log(log)
    line = samples(events)[-8]
    print(f"\nnvidia-smi: {told}\nprocesses: {of_processes}, ours {pid}\nours: {line}")
    print([state["reason"] for state in states(events)])
    assert (line["name"], line["uuid"], line["source"]) == (told["name"], told["uuid"], "nvml")
    assert line["pci_bus_id"].lower() == told["pci.bus_id"].lower()
    for field, key in (("total", "memory.total"), ("used", "memory.used"), ("free", "memory.free")):
        assert abs(line[f"memory_{field}_bytes"] / MIB - int(told[key])) <= 1, field
    reserved = (line["memory_total_bytes"] - line["memory_used_bytes"] - line["memory_free_bytes"]) / MIB
    assert abs(reserved - int(told["memory.reserved"])) <= 1
    assert (line["pcie_link_gen"], line["pcie_link_width"]) == (int(told["pcie.link.gen.current"]), int(told["pcie.link.width.current"]))
    assert abs(line["temperature_c"] - int(told["temperature.gpu"])) <= 2
    assert (line["memory_clock_mhz"], line["performance_state"]) == (int(told["clocks.mem"]), told["pstate"])
    assert abs(line["sm_clock_mhz"] - int(told["clocks.sm"])) <= 60
    bits = int(told["clocks_event_reasons.active"], 16)
    assert ("gpu_idle" in line["throttle_reasons"]) == bool(bits & 1), (bits, line["throttle_reasons"])
    mine = [int(process["used_memory"]) for process in of_processes if process["pid"] == str(pid)]
    if mine:
        assert abs(line["process_memory_bytes"] / MIB - mine[0]) <= 1
    else:  # the driver counts processes elsewhere, or does not show them
        assert line["process_memory_bytes"] in (None, 0), of_processes


def test_weights_are_told_where_they_lie(recorded):
    events = recorded[0]
    check_weights(events, SMOLLM2, {"vram", "mmap", "ram"})
    weights = [event for event in of_kind(events, "memory_allocation") if event["usage"] == "weights"]
    # The table of embeddings stays with the host, and is on the device too where it is the output matrix.
    assert {event["device"] for event in weights if event["layer_id"] is not None} == {"CUDA0"}, weights[:2]


# --- Energy and activity ---


def test_energy_of_a_request_is_the_card_s_own_counter(serve, nvml, tmp_path):
    pynvml, device = nvml
    log = tmp_path / "log.jsonl"
    with serve(level="VERBOSE", log_path=log, args=["-c", "4096"]) as server:
        server.post("/completion", GREEDY)
        time.sleep(1)
        counters = [pynvml.nvmlDeviceGetTotalEnergyConsumption(device)]
        began = time.monotonic()
        answer = server.post("/completion", LONG)
        took = time.monotonic() - began
        counters.append(pynvml.nvmlDeviceGetTotalEnergyConsumption(device))
        time.sleep(1)
        assert server.stop() == 0
    events = read_log(log)
    end = of_kind(events, "request_end")[-1]
    use = sole(end["gpu"], "devices")
    begun, ended = span(end)
    within = [line for line in samples(events) if begun <= line["t_ns"] <= ended]
    powers = [line["power_mw"] for line in within]
    print(f"\nby the counter {counters[1] - counters[0]} mJ in {took:.2f} s; ours {use}; {len(within)} readings, power {min(powers)} .. {max(powers)} mW")
    assert use["energy_source"] == "counter" and use["samples"] == len(within)
    # The counter moves in steps; two of them, at the highest power, are what the two readings may differ by.
    assert abs(use["energy_mj"] - (counters[1] - counters[0])) < 0.25 * max(powers) + 0.03 * use["energy_mj"]
    assert use["joules_per_token"] == pytest.approx(use["energy_mj"] / 1e3 / answer["timings"]["predicted_n"])
    assert use["energy_mj"] == pytest.approx(statistics.fmean(powers) * end["duration_ms"] / 1e3, rel=0.25)
    assert use["power_max_mw"] == max(powers)


class Gpm:
    """A metric between two moments, by NVML's Python package."""

    def __init__(self, nvml):
        self.nvml, self.device = nvml
        self.samples = [self.nvml.nvmlGpmSampleAlloc() for _ in range(2)]

    def take(self, which):
        self.nvml.nvmlGpmSampleGet(self.device, self.samples[which])

    def value(self, metric):
        """(value, unit)"""
        get = self.nvml.c_nvmlGpmMetricsGet_t()
        get.version, get.numMetrics = self.nvml.NVML_GPM_METRICS_GET_VERSION, 1
        get.sample1, get.sample2 = self.samples
        get.metrics[0].metricId = metric
        self.nvml.nvmlGpmMetricsGet(get)
        return get.metrics[0].value, get.metrics[0].metricInfo.unit


def test_sm_activity_is_gpm_s(serve, nvml, tmp_path):
    pynvml, device = nvml
    if not pynvml.nvmlGpmQueryDeviceSupport(device).isSupportedDevice:
        pytest.skip("GPM is Hopper's and newer cards'")
    gpm, log = Gpm(nvml), tmp_path / "log.jsonl"
    with serve(EXACT, level="VERBOSE", log_path=log, args=["-c", "4096"]) as server:
        server.post("/completion", GREEDY)
        time.sleep(1)
        request = threading.Thread(target=server.post, args=("/completion", LONG))
        request.start()
        time.sleep(0.3)
        gpm.take(0)
        time.sleep(1)
        gpm.take(1)
        request.join()
        time.sleep(1)
        assert server.stop() == 0
    theirs, _ = gpm.value(pynvml.NVML_GPM_METRIC_SM_UTIL)
    events = read_log(log)
    lines = samples(events)
    end = of_kind(events, "request_end")[-1]
    begun, ended = span(end)
    busy = [line["sm_utilization_percent"] for line in lines[1:] if begun + 3e8 <= line["t_ns"] <= begun + 13e8]
    idle = [line["sm_utilization_percent"] for line in lines if line["t_ns"] > ended + 3e8]
    print(f"\nSM activity: NVML's package {theirs:.2f} % over 1 s of the request; ours {min(busy):.2f} .. {max(busy):.2f}, "
          f"mean {statistics.fmean(busy):.2f}; afterwards {max(idle):.2f}")
    assert statistics.fmean(busy) == pytest.approx(theirs, rel=0.1, abs=2)
    assert max(idle) < min(busy)
    # Operations are given the figure of the interval in which they lie.
    executions = [e for e in of_kind(events, "compute_execution") if e["device"] == "CUDA0" and begun + 3e8 < e["t_ns"] < begun + 13e8]
    assert executions and {e["sm_utilization_percent"] for e in executions} <= {line["sm_utilization_percent"] for line in lines}
    assert {e["sm_utilization_percent"] for e in of_kind(events, "compute_execution") if e["device"] == "CPU"} == {None}


def cudart():
    """The CUDA runtime that the server uses."""
    listed = subprocess.run(["ldd", str(CUDA_SERVER.parent / "libggml-cuda.so")], stdout=subprocess.PIPE, text=True, check=True).stdout
    return ctypes.CDLL(re.search(r"=> (\S*libcudart\.so\S*)", listed).group(1))


def test_pcie_traffic_is_what_was_copied(serve, nvml, tmp_path):
    """This program copies known bytes to the card while the server idles and reads the traffic."""
    cuda, log = cudart(), tmp_path / "log.jsonl"
    size, host, device = 256 * MIB, ctypes.c_void_p(), ctypes.c_void_p()
    assert cuda.cudaMallocHost(ctypes.byref(host), ctypes.c_size_t(size)) == 0
    assert cuda.cudaMalloc(ctypes.byref(device), ctypes.c_size_t(size)) == 0
    with serve(level="VERBOSE", log_path=log) as server:
        server.post("/completion", GREEDY)
        time.sleep(1)
        began_ns, copied = time.clock_gettime_ns(time.CLOCK_MONOTONIC), 0
        while time.clock_gettime_ns(time.CLOCK_MONOTONIC) - began_ns < 15e8:
            assert cuda.cudaMemcpy(device, host, ctypes.c_size_t(size), 1) == 0
            copied += size
        ended_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        time.sleep(0.5)
        assert server.stop() == 0
    cuda.cudaFree(device), cuda.cudaFreeHost(host)
    lines = [line for line in samples(read_log(log)) if began_ns + 2e8 < line["t_ns"] < ended_ns]
    rates = [line["pcie_rx_kb_per_s"] for line in lines if line["pcie_rx_kb_per_s"] is not None]
    truth = copied / (ended_ns - began_ns) * 1e6
    print(f"\ncopied to the card {truth / 1e6:.2f} GB/s; ours {[round(rate / 1e6, 2) for rate in rates]} GB/s, "
          f"out {[line['pcie_tx_kb_per_s'] for line in lines][:3]} KB/s")
    assert rates
    # Every packet has a header, and each is acknowledged: a few per cent more than the bytes.
    assert truth * 0.95 < statistics.median(rates) < truth * 1.25


# --- What it costs ---


def test_what_reading_costs(serve, nvml, tmp_path, capsys):
    """Figures for docs/GPU.md: time of each call, how often the card renews its figures, CPU of our thread, power of an idle card."""
    pynvml, device = nvml
    sample, gpm = pynvml.nvmlGpmSampleAlloc(), Gpm(nvml)
    gpm.take(0), time.sleep(0.2), gpm.take(1)
    calls = {
        "energy": lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(device), "power": lambda: pynvml.nvmlDeviceGetPowerUsage(device),
        "memory": lambda: pynvml.nvmlDeviceGetMemoryInfo(device, version=pynvml.nvmlMemory_v2),
        "utilization": lambda: pynvml.nvmlDeviceGetUtilizationRates(device), "GPM sample": lambda: pynvml.nvmlGpmSampleGet(device, sample),
        "temperature": lambda: pynvml.nvmlDeviceGetTemperature(device, 0), "SM clock": lambda: pynvml.nvmlDeviceGetClockInfo(device, 1),
        "memory clock": lambda: pynvml.nvmlDeviceGetClockInfo(device, 2),
        "throttle": lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(device),
        "state": lambda: pynvml.nvmlDeviceGetPerformanceState(device),
        "link": lambda: (pynvml.nvmlDeviceGetCurrPcieLinkGeneration(device), pynvml.nvmlDeviceGetCurrPcieLinkWidth(device)),
        "processes": lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(device),
        "graphics": lambda: pynvml.nvmlDeviceGetGraphicsRunningProcesses(device),
        "GPM sample made and freed": lambda: pynvml.nvmlGpmSampleFree(pynvml.nvmlGpmSampleAlloc()),
        "GPM metrics": lambda: gpm.value(pynvml.NVML_GPM_METRIC_SM_UTIL),
        "PCIe traffic": lambda: (pynvml.nvmlDeviceGetPcieThroughput(device, 0), pynvml.nvmlDeviceGetPcieThroughput(device, 1)),
    }

    def medians(n=30):
        found = {}
        for name, call in calls.items():
            times = []
            for _ in range(n):
                began = time.perf_counter_ns()
                call()
                times.append((time.perf_counter_ns() - began) / 1e3)
            found[name] = round(statistics.median(times))
        return found

    def renewals(seconds):
        """Median time between two values of each counter."""
        changes, last = {"energy": [], "power": []}, {}
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for name in changes:
                value = calls[name]()
                if value != last.get(name):
                    last[name] = value
                    changes[name].append(time.monotonic() * 1e3)
        return {name: round(statistics.median(b - a for a, b in zip(at, at[1:])), 1) if len(at) > 2 else None for name, at in changes.items()}

    told = [f"units of GPM: {[gpm.value(metric)[1] for metric in (2, 20, 21)]}"]
    with serve(level="VERBOSE", log_path=tmp_path / "log.jsonl", args=["-c", "4096"]) as server:
        server.post("/completion", GREEDY)
        time.sleep(1)
        told.append(f"idle, us a call: {medians()}")
        request = threading.Thread(target=server.post, args=("/completion", {**LONG, "n_predict": 3000}))
        request.start()
        time.sleep(0.3)
        told.append(f"busy, us a call: {medians(10)}")
        told.append(f"renewed every ms: {renewals(1.0)}")
        request.join()
    shares = {}
    for interval in ("100", "10"):
        with serve({"LLAMA_RESOURCE_GPU_INTERVAL_MS": interval}, level="DETAILED", log_path=tmp_path / f"{interval}.jsonl") as server:
            server.post("/completion", GREEDY)
            time.sleep(1)
            thread = threads(server.pid)["lri-gpu"]
            before, began = cpu_seconds(server.pid, thread), time.monotonic()
            time.sleep(3)
            share = (cpu_seconds(server.pid, thread) - before) / (time.monotonic() - began)
            rounds = [sum(line["since_last"]["samples"] for line in samples(read_log(tmp_path / f"{interval}.jsonl", running=True)))]
            shares[interval] = share
            told.append(f"one device every {interval} ms: {share:.2%} of one core, {rounds[0]} readings")
            assert server.stop() == 0
    idle = {}
    for name, env in (("read", {}), ("not read", {"LLAMA_RESOURCE_GPU_INTERVAL_MS": "0"})):
        with serve(env, level="DETAILED", log_path=tmp_path / f"{name}.jsonl") as server:
            server.post("/completion", GREEDY)
            time.sleep(2)
            first, began = calls["energy"](), time.monotonic()
            time.sleep(5)
            idle[name] = round((calls["energy"]() - first) / 1e3 / (time.monotonic() - began), 2)
            state = smi("pstate", "clocks.sm", "clocks.mem")
            told.append(f"idle server, {name}: {idle[name]} W, {state}")
            assert server.stop() == 0
    with capsys.disabled():
        print("\n" + "\n".join(told))
    assert shares["100"] < 0.05
