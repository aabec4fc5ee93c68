"""Tests of what is called of CUDA: on a fake of cuda-python, and by name against the real one where it is installed."""

import ast
import gc
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mpcompile.backends.tensorrt import cuda
from mpcompile.backends.tensorrt.cuda import Cuda, DeviceMemoryError
from mpcompile.errors import BackendError

Calls = list[tuple[Any, ...]]


class FakeApi:
    """Notes what is called; `failing` names a function and what it answers."""

    cudaError_t = SimpleNamespace(cudaSuccess=0, cudaErrorMemoryAllocation=2)  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815
    answers = {"cudaGetDeviceCount": 1, "cudaStreamCreate": 7, "cudaMalloc": 4096, "cudaGraphInstantiate": "exec"}

    def __init__(self, failing: dict[str, int] | None = None) -> None:
        self.calls: Calls = []
        self._failing = failing or {}

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, b"error %d" % status

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            return self._failing.get(name, 0), *([self.answers[name]] if name in self.answers else [])

        if name == "cudaStreamEndCapture":
            return lambda stream: (call(stream)[0], "graph")
        return call


def make_device(monkeypatch: pytest.MonkeyPatch, failing: dict[str, int] | None = None) -> tuple[Cuda, FakeApi]:
    api = FakeApi(failing)
    monkeypatch.setattr(cuda, "_import_runtime", lambda: api)
    return Cuda(), api


def names(api: FakeApi) -> list[str]:
    return [call[0] for call in api.calls]


def test_memory_is_given_back_with_the_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    device, api = make_device(monkeypatch)
    buffer = device.allocate(100)
    assert (buffer.address, buffer.num_bytes) == (4096, 100) and "cudaFree" not in names(api)
    del buffer
    gc.collect()
    assert ("cudaFree", 4096) in api.calls


def test_page_locked_memory_lives_as_long_as_its_views(monkeypatch: pytest.MonkeyPatch) -> None:
    device, api = make_device(monkeypatch)
    memory = np.zeros(16, np.uint8)
    monkeypatch.setitem(FakeApi.answers, "cudaMallocHost", memory.ctypes.data)
    view = device.allocate_host(16).view(np.float32)[:2]
    gc.collect()
    assert "cudaFreeHost" not in names(api)
    view[0] = 1.0
    del view
    gc.collect()
    assert ("cudaFreeHost", memory.ctypes.data) in api.calls and memory.any()


def test_want_of_memory_is_told_from_other_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    device, _ = make_device(monkeypatch, {"cudaMalloc": 2, "cudaStreamSynchronize": 9})
    with pytest.raises(DeviceMemoryError, match="cudaMalloc: the GPU is out of memory"):
        device.allocate(1)
    with pytest.raises(BackendError, match="cudaStreamSynchronize: error 9"):
        device.synchronize()


def test_graph_is_captured_launched_and_destroyed(monkeypatch: pytest.MonkeyPatch) -> None:
    device, api = make_device(monkeypatch)
    graph = device.capture(device.synchronize)
    device.launch(graph)
    del graph
    gc.collect()
    assert names(api)[2:] == [
        "cudaStreamBeginCapture", "cudaStreamSynchronize", "cudaStreamEndCapture", "cudaGraphInstantiate",
        "cudaGraphDestroy", "cudaGraphLaunch", "cudaGraphExecDestroy",
    ]  # fmt: skip
    assert ("cudaGraphLaunch", "exec", 7) in api.calls


def test_capture_that_fails_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    device, api = make_device(monkeypatch, {"cudaStreamSynchronize": 9})
    with pytest.raises(BackendError, match="error 9"):
        device.capture(device.synchronize)
    assert names(api)[-1] == "cudaStreamEndCapture"


def test_graph_that_cannot_be_made_runnable_is_destroyed(monkeypatch: pytest.MonkeyPatch) -> None:
    device, api = make_device(monkeypatch, {"cudaGraphInstantiate": 9})
    with pytest.raises(BackendError, match="cudaGraphInstantiate: error 9"):
        device.capture(lambda: None)
    assert names(api)[-1] == "cudaGraphDestroy"


def test_machine_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FakeApi.answers, "cudaGetDeviceCount", 0)
    with pytest.raises(BackendError, match="no NVIDIA GPU is visible"):
        make_device(monkeypatch)


def test_cuda_python_has_every_name_that_is_called() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    tree = ast.parse(inspect.getsource(cuda))
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    words |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    called = {word for word in words if word.startswith("cuda") and word.isalnum() and word != "cuda"}
    known = set(dir(runtime)).union(*(dir(getattr(runtime, kind)) for kind in ("cudaMemcpyKind", "cudaError_t")))
    assert len(called) > 12 and called <= known | set(dir(runtime.cudaStreamCaptureMode))
