"""The older system's own code (`llm-instrumentation` 1.3.1) for the tests, without PyTorch.

Its reader needs none, but its package imports it. So `torch` is a STAND-IN here: tensors are numpy arrays, `to(float16)` is numpy's
rounding. Reader, framing and compression are the wheel's own code, unchanged.
"""

import asyncio
import importlib
import subprocess
import sys
import types
import zipfile

import numpy as np

from server import TARGET

WHEEL = "llm-instrumentation==1.3.1"
FOLDER = TARGET / "older"


class _Tensor:
    """What the older system's serializer asks of a tensor."""

    def __init__(self, array):
        self.array = array

    @property
    def dtype(self):
        return self.array.dtype

    def to(self, dtype):
        return _Tensor(self.array.astype(dtype))

    def cpu(self):
        return self

    def numpy(self):
        return self.array


class _Collector:
    """In place of the ring buffer, which is a PyTorch tensor: takes packets in order."""

    def __init__(self):
        self.data = b""

    def put(self, data, timeout):
        self.data += data
        return True


def load():
    """The wheel's modules `core.compression`, `core.streaming`, `analysis.visualization`, `core.framework`."""
    if not (FOLDER / "llm_instrumentation").exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(FOLDER), WHEEL]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(FOLDER.glob("llm_instrumentation-*.whl"))) as wheel:
            wheel.extractall(FOLDER)
    for name in ["torch", "torch.nn", "aiofiles"]:
        sys.modules.setdefault(name, types.ModuleType(name))
    torch = sys.modules["torch"]
    if not hasattr(torch, "Tensor"):
        torch.Tensor, torch.nn = _Tensor, sys.modules["torch.nn"]
        torch.nn.Module = object
        torch.float32, torch.float16, torch.uint8 = np.dtype("f4"), np.dtype("f2"), np.dtype("u1")
        torch.empty = np.empty
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    names = ["core.compression", "core.streaming", "analysis.visualization", "core.framework"]
    return {name: importlib.import_module(f"llm_instrumentation.{name}") for name in names}


def write(modules, algorithm, tensors):
    """A stream of `(name, array)` pairs as the older system's serializer writes it."""

    async def run():
        serializer = modules["core.streaming"].StreamingSerializer(buffer_size=1, num_workers=1, compression_algo=algorithm)
        serializer.ring_buffer, serializer.running = _Collector(), True
        for name, array in tensors:
            await serializer.enqueue_tensor(name, _Tensor(array))
        await serializer.input_queue.put(None)
        await serializer._compression_worker()
        return serializer.ring_buffer.data

    return asyncio.run(run())
