"""GPU figures of a real llama-server, against a stand-in for NVML whose script says what is true (see gpu.py).

The stand-in logs every answer it gave; energy is worked out again here, from the log's own readings and from the script.
"""

import os
import threading
import time

import pytest

from gpu import FULL, Gpus, at, build, cpu_seconds, has_real_driver, samples, script, span, states, threads
from server import Server, read_log
from truth import LETTERS, QUIET, of_kind, sole, start

GENERATED = 60
REQUEST = {"prompt": LETTERS, "n_predict": GENERATED, "ignore_eos": True, "temperature": 0}
# What the stand-in is asked once only, when the device is found.
IDENTITY = ("device", "name", "uuid", "pci_bus_id", "mig_instance", "source")


@pytest.fixture(scope="session")
def standin(tmp_path_factory):
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def gpus(standin, tmp_path):
    return lambda text, folder=None: Gpus(folder or standin, tmp_path, text)


@pytest.fixture
def record(gpus, tmp_path, smollm2, library):
    """Runs a server with a script and requests; its events."""

    def run(text, work=None, level="VERBOSE", env=None, args=(), folder=None):
        made = gpus(text, folder)
        with made.start(smollm2, tmp_path / "log.jsonl", level=level, env=env, args=args) as server:
            (work or (lambda s: s.post("/completion", REQUEST)))(server)
            assert server.stop() == 0
            made.stderr = server.stderr
        made.events = read_log(tmp_path / "log.jsonl")
        return made

    return run


# --- Values ---


def test_every_answer_is_in_the_log_as_it_was_given(record):
    steps = {"memory_used": "1000000000@0 3500000000@0.6 2000000000@1.2", "power": "80000@0 310000@0.5 270000@1", "busy": "0@0 97@0.7"}
    made = record(script({**FULL, **steps}), work=lambda server: (server.post("/completion", REQUEST), time.sleep(1.2)))
    lines = samples(made.events)
    assert len(lines) > 15
    expected = {
        "name": "Stand-in A", "uuid": "GPU-00000000-aaaa", "pci_bus_id": "00000000:41:00.0", "mig_instance": None, "source": "nvml",
        "memory_total_bytes": 80_000_000_000, "process_memory_bytes": 2_000_000_000, "memory_busy_percent": 41, "temperature_c": 61,
        "sm_clock_mhz": 1755, "memory_clock_mhz": 2619, "pcie_link_gen": 5, "pcie_link_width": 16,
        "throttle_reasons": ["sw_power_cap", "sw_thermal"], "performance_state": "P2",
    }
    for line in lines:
        assert {key: line[key] for key in expected} == expected
        assert line["memory_free_bytes"] == 80_000_000_000 - 500_000_000 - line["memory_used_bytes"]
    assert {line["sm_utilization_percent"] for line in lines[1:]} == {63.5} and lines[0]["sm_utilization_percent"] is None
    answers, calls = made.trace()
    for field, key in [("power_mw", "power"), ("energy_mj", "energy"), ("memory_used_bytes", "memory_used"), ("gpu_busy_percent", "busy")]:
        given = answers["0", key]
        asked = [line for line in lines if line[field] is not None]
        assert [line[field] for line in asked] == [int(value) for _, value in given], field
        if key == "energy":  # slow to read: once a second, and when a request (or the session) begins or ends
            seconds = (lines[-1]["t_ns"] - lines[0]["t_ns"]) / 1e9
            assert 4 <= len(asked) <= 6 + seconds, (field, seconds)
        else:
            assert len(asked) == len(lines), field
        # Readings are of the moment that they name. Our clock may differ from the kernel's by a millisecond, and a busy machine from both.
        late = sorted(t - line["t_ns"] for line, (t, _) in zip(asked, given))
        assert late[0] > -1e6 and late[len(late) // 2] < 20e6, (field, late)
    assert {line["power_mw"] for line in lines} == {80_000, 310_000, 270_000}
    # Without GPM's word for it PCIe is read once in ten seconds, and not repeated.
    assert [line["pcie_tx_kb_per_s"] for line in lines if line["pcie_tx_kb_per_s"] is not None] == [v for _, v in answers["0", "pcie_out"]]
    assert {line["pcie_rx_kb_per_s"] for line in lines} == {None, 654_321}
    assert len(answers["0", "pcie_out"]) == 1
    assert sole(states(made.events), "states")["state"] == "ok"


@pytest.mark.parametrize("unit, kilobytes", [("MiB/s", 1048.576), ("KiB/s", 1.024), ("furlongs", None)])
def test_pcie_traffic_is_gpm_s_where_it_tells_it(record, unit, kilobytes):
    made = record(script({**FULL, "gpm_pcie_out": 3, "gpm_pcie_in": 250.5}, gpm_unit=unit))
    lines = samples(made.events)
    _, calls = made.trace()
    if kilobytes is None:  # a unit that nobody knows: the other way, which is slow
        assert calls["nvmlDeviceGetPcieThroughput"] == 2 and {line["pcie_tx_kb_per_s"] for line in lines} == {None, 123_456}
        return
    assert "nvmlDeviceGetPcieThroughput" not in calls
    assert {(line["pcie_tx_kb_per_s"], line["pcie_rx_kb_per_s"]) for line in lines[1:]} == {(round(3 * kilobytes), round(250.5 * kilobytes))}
    assert lines[0]["pcie_tx_kb_per_s"] is None


def test_energy_of_a_request_is_the_difference_of_the_counter(record):
    made = record(script({**FULL, "energy": "linear:77000000:250000"}), work=lambda s: [s.post("/completion", REQUEST) for _ in range(3)])
    ends = of_kind(made.events, "request_end")
    assert len(ends) == 3
    points = [(line["t_ns"], line["energy_mj"]) for line in samples(made.events) if line["energy_mj"] is not None]
    for end in ends:
        use = sole(end["gpu"], "devices")
        begun, ended = span(end)
        by_hand = at(points, ended) - at(points, begun)
        assert use["energy_mj"] == pytest.approx(by_hand, abs=0.01) and use["energy_source"] == "counter"
        # 250 W for so long; the counter counts whole millijoules, and is read within a fraction of a millisecond.
        assert use["energy_mj"] == pytest.approx(250 * end["duration_ms"], rel=0.02, abs=2)
        assert use["joules_per_token"] == pytest.approx(by_hand / 1e3 / GENERATED, rel=1e-4) and end["generated_tokens"] == GENERATED
        within = [line for line in samples(made.events) if begun <= line["t_ns"] <= ended]
        assert use["samples"] == len(within) >= 1
        assert (use["power_mean_mw"], use["power_max_mw"], use["busy_mean_percent"]) == (250_000, 250_000, 87)
        assert (use["memory_peak_bytes"], use["process_memory_peak_bytes"]) == (3_000_000_000, 2_000_000_000)
        assert use["sm_utilization_mean_percent"] == 63.5 or within[0] is samples(made.events)[0]


def test_without_a_counter_power_is_integrated_and_peaks_are_found(record):
    power = "100000@0 " + " ".join(f"{100_000 + 7_000 * (i % 9)}@{i / 10}" for i in range(1, 200))
    text = script({**FULL, "power": power, "memory_used": power, "fail.nvmlDeviceGetTotalEnergyConsumption": 3})
    made = record(text)
    end = sole(of_kind(made.events, "request_end"), "requests")
    use = sole(end["gpu"], "devices")
    lines = samples(made.events)
    assert {line["energy_mj"] for line in lines} == {None}
    integral = [(lines[0]["t_ns"], 0.0)]
    for a, b in zip(lines, lines[1:]):
        integral.append((b["t_ns"], integral[-1][1] + (a["power_mw"] + b["power_mw"]) / 2 * (b["t_ns"] - a["t_ns"]) / 1e9))
    begun, ended = span(end)
    assert use["energy_mj"] == pytest.approx(at(integral, ended) - at(integral, begun), abs=0.01)
    assert use["energy_source"] == "power"
    within = [line["power_mw"] for line in lines if begun <= line["t_ns"] <= ended]
    assert use["power_mean_mw"] == pytest.approx(sum(within) / len(within), abs=0.001)
    assert use["power_max_mw"] == max(within) == use["memory_peak_bytes"]
    summary = sole(of_kind(made.events, "gpu_summary"), "summaries")
    assert summary["energy_mj"] == pytest.approx(integral[-1][1], abs=0.01) and summary["energy_source"] == "power"


def test_overlapping_requests_are_each_given_the_whole_device(record):
    def both(server):
        clients = [threading.Thread(target=server.post, args=("/completion", REQUEST)) for _ in range(2)]
        [client.start() for client in clients]
        [client.join() for client in clients]

    made = record(script(FULL), work=both, args=["-np", "2"])
    ends = of_kind(made.events, "request_end")
    assert len(ends) == 2 and span(ends[1])[0] < span(ends[0])[1]
    for end in ends:
        assert sole(end["gpu"], "devices")["energy_mj"] == pytest.approx(250 * end["duration_ms"], rel=0.02, abs=2)


def test_the_session_is_summed_up(record):
    made = record(script({**FULL, "power": "100000@0 400000@0.3 200000@0.6", "temperature": "50@0 71@0.4 60@0.7"}))
    lines, summary = samples(made.events), sole(of_kind(made.events, "gpu_summary"), "summaries")
    powers = [line["power_mw"] for line in lines]
    assert (summary["samples"], summary["power_max_mw"]) == (len(lines), 400_000)
    assert summary["power_mean_mw"] == pytest.approx(sum(powers) / len(powers), abs=0.001)
    assert summary["energy_mj"] == lines[-1]["energy_mj"] - lines[0]["energy_mj"]
    assert summary["duration_ms"] == pytest.approx((lines[-1]["t_ns"] - lines[0]["t_ns"]) / 1e6, abs=0.001)
    assert (summary["temperature_max_c"], summary["lost"], summary["device"]) == (71, None, 0)
    assert summary["joules_per_token"] == pytest.approx(summary["energy_mj"] / 1e3 / GENERATED)


# --- What a driver does not tell ---

SILENCED = {
    "nvmlDeviceGetTotalEnergyConsumption": {"energy_mj"}, "nvmlDeviceGetPowerUsage": {"power_mw"},
    "nvmlDeviceGetMemoryInfo_v2": {"memory_used_bytes", "memory_free_bytes", "memory_total_bytes"},
    "nvmlDeviceGetUtilizationRates": {"gpu_busy_percent", "memory_busy_percent"}, "nvmlGpmQueryDeviceSupport": {"sm_utilization_percent"},
    "nvmlGpmSampleGet": {"sm_utilization_percent"}, "nvmlDeviceGetTemperature": {"temperature_c"},
    "nvmlDeviceGetClockInfo": {"sm_clock_mhz", "memory_clock_mhz"}, "nvmlDeviceGetPcieThroughput": {"pcie_tx_kb_per_s", "pcie_rx_kb_per_s"},
    "nvmlDeviceGetCurrPcieLinkGeneration": {"pcie_link_gen"}, "nvmlDeviceGetCurrPcieLinkWidth": {"pcie_link_width"},
    "nvmlDeviceGetCurrentClocksThrottleReasons": {"throttle_reasons"}, "nvmlDeviceGetPerformanceState": {"performance_state"},
    "nvmlDeviceGetName": {"name"}, "nvmlDeviceGetUUID": {"uuid"}, "nvmlDeviceGetPciInfo_v3": {"pci_bus_id"},
}


def known(lines):
    """Fields that any line of a device has; a value of its own is on the second line at the latest."""
    fields = set(lines[0]) - {"event", "timestamp", "session_id", "t_ns", "since_last", "mig_instance"}
    return {field for field in fields if any(line[field] is not None for line in lines)}


@pytest.mark.parametrize("code", [3, 999], ids=["not supported", "unknown error"])
def test_each_value_that_a_driver_refuses_is_null_and_the_others_go_on(record, code):
    devices = [{**FULL, "process": "self:1", f"fail.{function}": code} for function in SILENCED]
    made = record(script(FULL, *devices), work=lambda s: (s.post("/completion", REQUEST), time.sleep(1)))
    everything = known(samples(made.events))
    assert len(everything) == 23
    for number, (function, fields) in enumerate(SILENCED.items(), start=1):
        assert everything - known(samples(made.events, number)) == fields, function
    _, calls = made.trace()
    lines = len(samples(made.events))
    # The whole and the healthy devices ask for power every time, the one that refuses it once, or until it is given up.
    refused = calls["nvmlDeviceGetPowerUsage"] - lines * len(devices)
    assert refused == 1 if code == 3 else 10 <= refused <= 20, refused
    if code == 3:
        told = sole(states(made.events), "states")["reason"]
        assert "2: Stand-in A (not supported: power_mw)" in told and "; 14: unnamed" in told


def test_an_old_driver_lacks_functions_altogether(record, tmp_path):
    made = record(script(FULL), folder=build(tmp_path / "old", "-DSTANDIN_OLD"))
    lost = {"memory_used_bytes", "memory_free_bytes", "memory_total_bytes", "process_memory_bytes", "sm_utilization_percent"}
    lines = samples(made.events)
    assert {field for field in lines[0] if lines[0][field] is None} == lost | {"mig_instance"}
    use = sole(sole(of_kind(made.events, "request_end"), "requests")["gpu"], "devices")
    assert (use["memory_peak_bytes"], use["process_memory_peak_bytes"]) == (None, None) and use["energy_mj"] > 0


@pytest.mark.parametrize("processes, expected", [("self:5000 self:6000 99:1", 11_000), ("self:unknown", None), ("99:1 98:2", 0)])
def test_the_share_of_this_process(record, processes, expected):
    made = record(script({**FULL, "process": processes, "graphics": ""}))
    if expected == 0 and os.readlink("/proc/self/ns/pid") != "pid:[4026531836]":
        expected = None  # in a container NVML's process ids are not ours: nobody can tell
    assert {line["process_memory_bytes"] for line in samples(made.events)} == {expected}
    uses = sole(of_kind(made.events, "request_end"), "requests")["gpu"]
    assert [use["process_memory_peak_bytes"] for use in uses] == ([] if expected == 0 else [expected])


# --- Drivers and devices that fail ---


def test_a_lost_device_is_told_once_and_the_others_go_on(record):
    lost = {**FULL, "name": "Stand-in B", "lost_at": 1.2}
    made = record(script(FULL, lost, {**FULL, "name": "Stand-in C"}), work=lambda s: [s.post("/completion", REQUEST) for _ in range(4)])
    told = [state for state in states(made.events) if state["state"] == "degraded"]
    assert "device 1 (Stand-in B) was lost" in sole(told, "states")["reason"]
    assert made.stderr.count("Stand-in B") == 1
    counts = [len(samples(made.events, device)) for device in range(3)]
    assert counts[0] == counts[2] > counts[1] > 2
    last = of_kind(made.events, "request_end")[-1]
    assert last["t_ns"] > told[0]["t_ns"]
    energies = {use["device"]: use["energy_mj"] for use in last["gpu"]}
    assert energies[0] == pytest.approx(energies[2], rel=0.01) and energies[1] is None
    summaries = of_kind(made.events, "gpu_summary")
    assert [summary["lost"] is not None for summary in summaries] == [False, True, False]
    assert summaries[1]["samples"] == counts[1] and summaries[1]["duration_ms"] < summaries[0]["duration_ms"]


def test_when_all_devices_are_lost_requests_are_told_without_delay(record, tmp_path):
    def work(server):
        time.sleep(1)
        server.post("/completion", REQUEST)
        time.sleep(0.5)
        ends = of_kind(read_log(tmp_path / "log.jsonl", running=True), "request_end")
        assert sole(ends, "requests")["gpu"][0]["energy_mj"] is None

    made = record(script({**FULL, "lost_after": 60}), work=work)
    assert len([state for state in states(made.events) if state["state"] == "degraded"]) == 1


@pytest.mark.parametrize("text, reason", [
    (script(FULL, driver_init=9), "NVIDIA driver is not loaded"), (script(), "lists no GPU"),
    (script({**FULL, "fail.nvmlDeviceGetHandleByIndex_v2": 4}), "GPU 0 of NVML does not answer"),
], ids=["driver", "empty", "forbidden"])
def test_a_driver_that_gives_nothing_is_told_and_leaves_null(record, text, reason):
    if has_real_driver():
        pytest.skip("this machine has a GPU of another kind")
    made = record(text)
    state = sole(states(made.events), "states")
    assert state["state"] == "unavailable" and reason in state["reason"]
    assert sole(of_kind(made.events, "request_end"), "requests")["gpu"] is None
    assert not of_kind(made.events, "gpu_sample", "gpu_summary")


def test_without_a_driver_there_is_one_line_no_thread_and_not_a_word_on_stderr(tmp_path, smollm2, library):
    if has_real_driver():
        pytest.skip("this machine has a GPU")
    with Server(smollm2, env=QUIET, level="VERBOSE", log_path=tmp_path / "log.jsonl") as server:
        server.post("/completion", REQUEST)
        assert "lri-writer" in threads(server.pid) and "lri-gpu" not in threads(server.pid)
        assert server.stop() == 0
        assert not [line for line in server.stderr.splitlines() if "llama-resource" in line and "gpu" in line.lower()]
    events = read_log(tmp_path / "log.jsonl")
    state = sole(states(events), "states")
    assert (state["state"], state["lost"]) == ("unavailable", "GPU figures") and "libnvidia-ml.so.1" in state["reason"]
    assert sole(of_kind(events, "request_end"), "requests")["gpu"] is None
    assert not of_kind(events, "gpu_sample", "gpu_summary")


def test_a_driver_that_starts_slowly_does_not_hold_up_the_host(gpus, tmp_path, smollm2, library):
    made = gpus(script(FULL, init_seconds=30))
    began = time.monotonic()
    with made.start(smollm2, tmp_path / "log.jsonl") as server:
        server.post("/completion", REQUEST)
        assert server.stop() == 0
    assert time.monotonic() - began < 20
    events = read_log(tmp_path / "log.jsonl")
    assert sole(of_kind(events, "request_end"), "requests")["gpu"] is None and of_kind(events, "resource_session_end")


# --- MIG, levels, the setting ---


def test_mig_instances_are_devices_of_their_own(record):
    whole = {**FULL, "mig": 2, "process": "", "graphics": "", "fail.nvmlDeviceGetUtilizationRates": 3}
    for i in range(2):
        part = {"name": f"Stand-in A MIG 1g.{i}", "uuid": f"MIG-{i}", "memory_used": 1000 + i, "memory_total": 10_000, "sm": 10 + i,
                "process": f"self:{50 + i}", "graphics": ""}
        whole.update({f"mig{i}.{key}": value for key, value in part.items()})
    made = record(script(whole, {**FULL, "name": "Stand-in B"}))
    gpu, one, two, other = (samples(made.events, device)[-1] for device in range(4))
    assert [line["mig_instance"] for line in (gpu, one, two, other)] == [None, 0, 1, None]
    assert (one["uuid"], one["memory_used_bytes"], one["sm_utilization_percent"], one["process_memory_bytes"]) == ("MIG-0", 1000, 10, 50)
    assert (two["uuid"], two["memory_used_bytes"], two["sm_utilization_percent"], two["process_memory_bytes"]) == ("MIG-1", 1001, 11, 51)
    assert one["pci_bus_id"] == gpu["pci_bus_id"] and (gpu["power_mw"], one["power_mw"]) == (250_000, None)
    assert other["name"] == "Stand-in B" and gpu["gpu_busy_percent"] is None
    uses = {use["device"]: use for use in sole(of_kind(made.events, "request_end"), "requests")["gpu"]}
    assert set(uses) == {0, 1, 2, 3} and uses[0]["energy_mj"] > 0  # the energy of an instance is its GPU's
    assert uses[1]["memory_peak_bytes"] == 1000 and uses[1]["energy_mj"] is None and uses[3]["energy_mj"] > 0


@pytest.mark.parametrize("level, most_a_second", [("MINIMAL", 0.2), ("DETAILED", 1)])
def test_what_a_level_does_not_write_is_in_the_next_line(record, level, most_a_second):
    power = " ".join(f"{100_000 + 1_000 * i}@{i / 10}" for i in range(200))
    made = record(script({**FULL, "power": power, "memory_used": power, "busy": power}), level=level,
                  work=lambda s: (s.post("/completion", REQUEST), time.sleep(5.5)))
    lines, given = samples(made.events), [value for _, value in made.trace()[0]["0", "power"]]
    seconds = (lines[-1]["t_ns"] - lines[0]["t_ns"]) / 1e9
    assert 2 <= len(lines) <= 3 + (seconds + 1) * most_a_second
    assert sum(line["since_last"]["samples"] for line in lines) == len(given)
    assert sum(line["since_last"]["interval_ms"] for line in lines) == pytest.approx(seconds * 1e3, abs=0.1)
    for line in lines:
        part, given = given[:line["since_last"]["samples"]], given[line["since_last"]["samples"]:]
        assert line["power_mw"] == part[-1]
        assert line["since_last"]["power_mean_mw"] == pytest.approx(sum(part) / len(part), abs=0.001)
        assert line["since_last"]["power_max_mw"] == line["since_last"]["memory_peak_bytes"] == max(part)
        assert line["since_last"]["busy_max_percent"] == max(part)
        # GPM compares two readings, so the very first has none.
        assert line["since_last"]["sm_utilization_mean_percent"] == 63.5 or (line is lines[0] and len(part) == 1)
    # A request's figures do not depend on the level.
    assert sole(of_kind(made.events, "request_end"), "requests")["gpu"][0]["samples"] > 1


def test_the_interval_can_be_set_and_the_reading_be_switched_off(gpus, tmp_path, smollm2, library):
    for interval, expected in [("0", range(1)), ("500", range(2, 12)), ("20", range(40, 1000))]:
        made = gpus(script(FULL))
        log = tmp_path / f"{interval}.jsonl"
        with made.start(smollm2, log, env={"LLAMA_RESOURCE_GPU_INTERVAL_MS": interval}) as server:
            server.post("/completion", REQUEST)
            time.sleep(1)
            assert ("lri-gpu" in threads(server.pid)) == (interval != "0")
            assert server.stop() == 0
        events = read_log(log)
        assert len(samples(events)) in expected, interval
        assert (sole(of_kind(events, "request_end"), "requests")["gpu"] is None) == (interval == "0")
        assert len(states(events)) == (interval != "0")


# --- A guest ---


def test_the_host_is_not_touched(gpus, tmp_path, smollm2, library):
    """Same answer as without us, no signal for our thread, and little of its time: of a stand-in that answers at once."""
    with start(smollm2, preload=False) as server:
        plain = server.post("/completion", REQUEST)["content"]
    made = gpus(script(*[FULL] * 8))
    with made.start(smollm2, tmp_path / "log.jsonl") as server:
        assert server.post("/completion", REQUEST)["content"] == plain
        thread = threads(server.pid)["lri-gpu"]
        status = dict(line.split(":\t", 1) for line in open(f"/proc/{server.pid}/task/{thread}/status").read().splitlines() if ":\t" in line)
        assert int(status["SigBlk"], 16) == 0xFFFFFFFE7FFBFEFF  # all but SIGKILL, SIGSTOP and glibc's own two
        assert os.getpriority(os.PRIO_PROCESS, int(thread)) == 10
        before, began = cpu_seconds(server.pid, thread), time.monotonic()
        time.sleep(3)
        share = (cpu_seconds(server.pid, thread) - before) / (time.monotonic() - began)
        print(f"eight stand-in devices, ten readings a second: {share:.2%} of one core")
        assert share < 0.05
        assert server.stop() == 0
