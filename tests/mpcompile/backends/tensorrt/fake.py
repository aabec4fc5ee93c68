"""A GPU and TensorRT's runtime on paper: memory is the host's, a plan is an ONNX model, and ONNX Runtime runs it."""

from __future__ import annotations

import ctypes
import functools
import math
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import onnxruntime

from mpcompile.backends.tensorrt.cuda import DeviceMemoryError
from mpcompile.backends.tensorrt.loader import TensorRt
from mpcompile.backends.tensorrt.session import Session

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
Shapes = dict[str, tuple[tuple[int, ...], ...]]
Profiles = dict[bytes, list[Shapes]]
USER_MANAGED = "user managed"


class FakeBuffer:
    """Memory that counts as taken until nobody refers to it."""

    def __init__(self, device: FakeDevice, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._memory = np.full(max(num_bytes, 1), 0xFF, np.uint8)  # nobody may rely on zeros
        self.address = self._memory.ctypes.data
        weakref.finalize(self, device.free, num_bytes)


class FakeDevice:
    """Counts what is allocated, copied, captured and launched.

    Args:
        capacity: bytes that are there.
    """

    stream = 7

    def __init__(self, capacity: float = math.inf) -> None:
        self.capacity = capacity
        self._recording: list[Callable[[], None]] | None = None
        self._pending: list[Callable[[], None]] = []
        self.num_allocated = self.num_captured = self.num_launched = 0
        self.bytes_in = self.bytes_out = self.num_waits = self.bytes_taken = 0

    def allocate(self, num_bytes: int) -> FakeBuffer:
        assert self._recording is None
        if self.bytes_taken + num_bytes > self.capacity:
            raise DeviceMemoryError("out of memory")
        self.bytes_taken += num_bytes
        self.num_allocated += 1
        return FakeBuffer(self, num_bytes)

    def free(self, num_bytes: int) -> None:
        self.bytes_taken -= num_bytes

    def allocate_host(self, num_bytes: int) -> np.ndarray:
        self.num_allocated += 1
        return np.empty(max(num_bytes, 1), np.uint8)

    def copy_in(self, address: int, array: np.ndarray) -> None:
        def copy() -> None:
            ctypes.memmove(address, array.ctypes.data, array.nbytes)
            self.bytes_in += array.nbytes

        self.queue(copy)

    def copy_out(self, array: np.ndarray, address: int) -> None:
        def copy() -> None:
            ctypes.memmove(array.ctypes.data, address, array.nbytes)
            self.bytes_out += array.nbytes

        array.fill(np.nan)  # until the device is waited for, nobody may read it
        self.queue(copy)

    def queue(self, work: Callable[[], None]) -> None:
        """Puts it off until the device is waited for, or records it."""
        (self._pending if self._recording is None else self._recording).append(work)

    @property
    def is_capturing(self) -> bool:
        return self._recording is not None

    def capture(self, queue: Callable[[], object]) -> list[Callable[[], None]]:
        self._recording = recorded = []
        try:
            queue()
        finally:
            self._recording = None
        self.num_captured += 1
        return recorded

    def launch(self, graph: list[Callable[[], None]]) -> None:
        self.num_launched += 1
        self._pending += graph

    def synchronize(self) -> None:
        assert self._recording is None
        pending, self._pending = self._pending, []
        for work in pending:
            work()
        self.num_waits += 1

    def describe(self) -> str:
        return "fake"


def make_session(device: FakeDevice, profiles: Profiles, flavour: str = "tensorrt") -> Session:
    """A session on a fake device, with engines of the profiles given by plan."""
    module = SimpleNamespace(
        __version__="0",
        Logger=FakeLogger,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=USER_MANAGED),
        CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole"),
        Runtime=lambda logger: FakeRuntime(profiles, device),
    )
    return Session(TensorRt(module, flavour), device)


class FakeLogger:
    WARNING = 0

    def __init__(self, severity: int) -> None:
        assert severity == self.WARNING


class FakeRuntime:
    """Deserialises what `plan` was given: an ONNX model and the shapes of its profiles; b"" is refused."""

    def __init__(self, profiles: Profiles, device: FakeDevice) -> None:
        self._profiles, self._device = profiles, device

    def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine | None:
        return FakeEngine(plan, self._profiles[plan], self._device) if plan else None


class FakeRuntimeConfig:
    """Of TensorRT-RTX."""

    cuda_graph_strategy: str | None = None
    strategy: str | None = None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy


class FakeEngine:
    def __init__(self, plan: bytes, profiles: list[Shapes], device: FakeDevice) -> None:
        self.session, self.device = onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"]), device
        self._profiles = profiles
        self.num_optimization_profiles = len(profiles)
        self._names = [value.name for value in (*self.session.get_inputs(), *self.session.get_outputs())]
        self.num_io_tensors = len(self._names)
        self.device_memory_size_v2 = count_scratch({name: ends[-1] for name, ends in profiles[-1].items()})

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_profile_shape(self, name: str, index: int) -> tuple[tuple[int, ...], ...]:
        return self._profiles[index][name]

    def create_runtime_config(self) -> FakeRuntimeConfig:
        return FakeRuntimeConfig()

    def create_execution_context(self, how: str | FakeRuntimeConfig) -> FakeContext:
        if isinstance(how, FakeRuntimeConfig):
            assert how.cuda_graph_strategy == "whole"
            how = str(how.strategy)
        assert how == USER_MANAGED
        return FakeContext(self)


class FakeContext:
    """Refuses what a real one would, or would do wrong: no scratch, or a change behind a graph's back."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch, self._needed = 0, engine.device_memory_size_v2
        self._ran_at: dict[str, tuple[int, ...]] | None = None
        self._is_captured = False

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        return index < self._engine.num_optimization_profiles and stream == FakeDevice.stream

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self._needed and not self._is_captured
        self._scratch = address

    def update_device_memory_size_for_shapes(self) -> int:
        self._needed = count_scratch(self._shapes)
        return self._needed

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert not self._is_captured
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert not self._is_captured
        self._addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Of an output: its named sizes are those of the inputs."""
        session, sizes = self._engine.session, {}
        for value in session.get_inputs():
            sizes.update({d: self._shapes[value.name][i] for i, d in enumerate(value.shape) if isinstance(d, str)})
        (output,) = (value for value in session.get_outputs() if value.name == name)
        return tuple(sizes[size] if isinstance(size, str) else size for size in output.shape)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == FakeDevice.stream and self._scratch
        if self._engine.device.is_capturing:
            assert self._ran_at == self._shapes, "a context has to run with new sizes before it is captured"
            self._is_captured = True
        self._ran_at = dict(self._shapes)
        self._engine.device.queue(functools.partial(self._run, dict(self._shapes), dict(self._addresses)))
        return True

    def _run(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        session = self._engine.session
        feed = {v.name: _read(addresses[v.name], shapes[v.name], _TYPES[v.type]) for v in session.get_inputs()}
        for value, result in zip(session.get_outputs(), session.run(None, feed), strict=True):
            assert result.shape == self.get_tensor_shape(value.name)
            ctypes.memmove(addresses[value.name], np.ascontiguousarray(result).ctypes.data, result.nbytes)


def count_scratch(shapes: dict[str, tuple[int, ...]]) -> int:
    """As many bytes as activations of every token might take."""
    return 512 * math.prod(shapes.get("input_ids", (*shapes.get("rows", ()), *shapes.get("positions", ()))))


def _read(address: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    count = int(np.prod(shape))
    raw = (ctypes.c_uint8 * (count * np.dtype(dtype).itemsize)).from_address(address)
    return np.frombuffer(raw, dtype).reshape(shape).copy()
