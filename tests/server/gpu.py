"""A llama-server with made-up GPUs: the stand-in for libnvidia-ml.so.1 of tests/nvml, compiled here, answering from a script.

Nothing of this has seen a real driver: it shows that what NVML answers comes out of the log, not that NVML answers it.
"""

import ctypes
import os
import subprocess
from collections import defaultdict
from pathlib import Path

from server import REPOSITORY
from truth import QUIET, Server, of_kind

SOURCE = REPOSITORY / "tests" / "nvml" / "standin.c"

# Everything that a device can be asked, of a card that answers all.
FULL = {
    "name": "Stand-in A", "uuid": "GPU-00000000-aaaa", "bus": "00000000:41:00.0", "memory_used": 3_000_000_000,
    "memory_total": 80_000_000_000, "memory_reserved": 500_000_000, "process": "77:4096 self:2000000000", "graphics": "self:2000000000",
    "busy": 87, "memory_busy": 41, "sm": 63.5, "power": 250_000, "energy": "linear:5000000:250000", "temperature": 61, "sm_clock": 1755,
    "memory_clock": 2619, "pcie_out": 123_456, "pcie_in": 654_321, "link_gen": 5, "link_width": 16, "throttle": 4 + 32, "state": 2,
}


def build(folder, *flags):
    """Compiles the stand-in; the folder is for LD_LIBRARY_PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["cc", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", *flags, "-o", folder / "libnvidia-ml.so.1", SOURCE, "-lpthread"]
    subprocess.run(list(map(str, command)), check=True)
    return folder


def script(*devices, **keys):
    """Text of a script: one dict a device."""
    lines = [f"{key} = {value}" for key, value in {"devices": len(devices), **keys}.items()]
    lines += [f"{i}.{key} = {value}" for i, device in enumerate(devices) for key, value in device.items()]
    return "\n".join(lines) + "\n"


def has_real_driver():
    """Whether this machine has NVML of its own: then its absence cannot be tested."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
        return True
    except OSError:
        return bool(list(Path("/sys/class/drm").glob("card*/device/mem_info_vram_total")))


class Gpus:
    """How to start servers with made-up GPUs, and what the stand-in says that it was asked."""

    def __init__(self, library_folder, folder, text):
        self.trace_path = folder / "trace"
        path = folder / "script"
        path.write_text(text)
        # The server is to compute on the CPU where there is a real GPU: its requests are over too soon there.
        self.env = {**QUIET, "CUDA_VISIBLE_DEVICES": "", "STANDIN_SCRIPT": str(path), "STANDIN_TRACE": str(self.trace_path),
                    "LD_LIBRARY_PATH": ":".join(filter(None, [str(library_folder), os.environ.get("LD_LIBRARY_PATH")]))}

    def start(self, model, log_path, level="VERBOSE", args=(), env=None, **options):
        return Server(model, args=["-c", "1024", *args], env={**self.env, **(env or {})}, level=level, log_path=log_path, **options)

    def trace(self):
        """(device, key) -> [(t_ns, value)] in order, and function -> calls."""
        answers, calls = defaultdict(list), {}
        for line in self.trace_path.read_text().splitlines():
            words = line.split()
            if words[0] == "calls":
                calls[words[1]] = int(words[2])
            else:
                answers[words[1], words[2]].append((int(words[0]), float(words[3])))
        return answers, calls


def samples(events, device=0):
    return [event for event in of_kind(events, "gpu_sample") if event["device"] == device]


def states(events):
    return [event for event in of_kind(events, "instrumentation_state") if event["component"] == "gpu"]


def at(points, t):
    """The value at the moment `t`, on a straight line between the points (t, value) around it."""
    for (t0, v0), (t1, v1) in zip(points, points[1:]):
        if t0 <= t <= t1:
            return v0 + (v1 - v0) * (t - t0) / (t1 - t0)
    raise AssertionError(f"{t} lies outside {points[0]} to {points[-1]}")


def span(request_end):
    return request_end["t_ns"] - request_end["duration_ms"] * 1e6, request_end["t_ns"]


def threads(pid):
    """Names of the process's threads -> their ids."""
    return {(Path(path) / "comm").read_text().strip(): Path(path).name for path in Path(f"/proc/{pid}/task").iterdir()}


def cpu_seconds(pid, thread):
    fields = Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()
    return int(fields[0]) / 1e9
