"""A GPU and TensorRT's runtime on paper: memory is the host's, a plan is an ONNX model, and ONNX Runtime runs it."""

from __future__ import annotations

import ctypes

import numpy as np
import onnxruntime

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


class FakeDevice:
    """Counts what is allocated and copied; `capacity` bytes are there."""

    stream = 7

    def __init__(self) -> None:
        self._memory: dict[int, np.ndarray] = {}
        self.num_allocated = 0
        self.bytes_in = self.bytes_out = self.num_waits = 0

    def allocate(self, num_bytes: int) -> int:
        buffer = np.full(max(num_bytes, 1), 0xFF, np.uint8)  # nobody may rely on zeros
        self._memory[buffer.ctypes.data] = buffer
        self.num_allocated += 1
        return buffer.ctypes.data

    def allocate_host(self, num_bytes: int) -> np.ndarray:
        self.num_allocated += 1
        return np.empty(max(num_bytes, 1), np.uint8)

    def copy_in(self, address: int, array: np.ndarray) -> None:
        assert array.nbytes <= self._memory[address].nbytes
        ctypes.memmove(address, array.ctypes.data, array.nbytes)
        self.bytes_in += array.nbytes

    def copy_out(self, array: np.ndarray, address: int) -> None:
        assert array.nbytes <= self._memory[address].nbytes
        ctypes.memmove(array.ctypes.data, address, array.nbytes)
        self.bytes_out += array.nbytes

    def synchronize(self) -> None:
        self.num_waits += 1


class FakeRuntime:
    """Deserialises what `plan` was given: an ONNX model and the shapes of its profiles; b"" is refused.

    Args:
        profiles: by plan.
    """

    def __init__(self, profiles: dict[bytes, list[dict[str, tuple[tuple[int, ...], ...]]]]) -> None:
        self._profiles = profiles

    def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine | None:
        return FakeEngine(plan, self._profiles[plan]) if plan else None


class FakeEngine:
    def __init__(self, plan: bytes, profiles: list[dict[str, tuple[tuple[int, ...], ...]]]) -> None:
        self.session = onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"])
        self._profiles = profiles
        self.num_optimization_profiles = len(profiles)
        self._names = [value.name for value in (*self.session.get_inputs(), *self.session.get_outputs())]
        self.num_io_tensors = len(self._names)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_profile_shape(self, name: str, index: int) -> tuple[tuple[int, ...], ...]:
        return self._profiles[index][name]

    def create_execution_context(self) -> FakeContext:
        return FakeContext(self)


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        return index < self._engine.num_optimization_profiles and stream == FakeDevice.stream

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
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
        assert stream == FakeDevice.stream
        session = self._engine.session
        feed = {
            v.name: _read(self._addresses[v.name], self._shapes[v.name], _TYPES[v.type]) for v in session.get_inputs()
        }
        for value, result in zip(session.get_outputs(), session.run(None, feed), strict=True):
            assert result.shape == self.get_tensor_shape(value.name)
            ctypes.memmove(self._addresses[value.name], np.ascontiguousarray(result).ctypes.data, result.nbytes)
        return True


def _read(address: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    count = int(np.prod(shape))
    raw = (ctypes.c_uint8 * (count * np.dtype(dtype).itemsize)).from_address(address)
    return np.frombuffer(raw, dtype).reshape(shape).copy()
