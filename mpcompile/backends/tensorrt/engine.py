"""Running a plan: buffers are allocated once, the hidden state stays on the device, the host sees answers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mpcompile.backends.tensorrt.cuda import DeviceMemoryError
from mpcompile.cost.devices import ELEMENT_BYTES
from mpcompile.errors import BackendError
from mpcompile.onnx_names import name_output
from mpcompile.segment import CARRIED, Segment

_LARGEST = 2


class Device(Protocol):
    """What an engine needs of a device; `Cuda` has it."""

    @property
    def stream(self) -> int: ...
    def allocate(self, num_bytes: int) -> int: ...
    def allocate_host(self, num_bytes: int) -> np.ndarray: ...
    def copy_in(self, address: int, array: np.ndarray) -> None: ...
    def copy_out(self, array: np.ndarray, address: int) -> None: ...
    def synchronize(self) -> None: ...


@dataclass(frozen=True)
class DeviceArray:
    """What a segment hands on without the host looking at it: valid until its engine is called again."""

    address: int
    shape: tuple[int, ...]


class TensorRtEngine:
    """A plan on a device. One call queues copies in, the kernels and two small copies out, and waits once.

    Each profile has an execution context of its own, since switching the profile of one costs a wait.

    Args:
        plan: what a builder made for this GPU and version.
        segment: what it computes.
        runtime: TensorRT's, to deserialise with.
        device: to run on; engines of a chain share it.

    Raises:
        BackendError: when the plan is for another GPU or version, or damaged.
        DeviceMemoryError: when its buffers do not fit.
    """

    def __init__(self, plan: bytes, segment: Segment, runtime: Any, device: Device) -> None:
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(
                f"segment {segment.index}: TensorRT does not accept its plan: it was built for another GPU or version, "
                "or is damaged; build it again (mpcompile build)"
            )
        self._engine, self._segment, self._device = engine, segment, device
        self._contexts = [self._make_context(index) for index in range(engine.num_optimization_profiles)]
        self._ranges = [self._read_ranges(index) for index in range(engine.num_optimization_profiles)]
        largest = {name: max(r[name][_LARGEST] for r in self._ranges) for name in self._ranges[0]}
        host_inputs = [name for name in largest if name not in CARRIED]
        self._inputs = {name: device.allocate(8 * _count(largest[name])) for name in host_inputs}
        self._staging = {name: device.allocate_host(8 * _count(largest[name])) for name in host_inputs}
        self._outputs = self._allocate_outputs(largest)
        for context in self._contexts:
            for name, (address, _) in self._outputs.items():
                context.set_tensor_address(name_output(name), address)
        self._answers = {
            name: device.allocate_host(num_bytes)
            for name, (_, num_bytes) in self._outputs.items()
            if name not in CARRIED
        }

    def __call__(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        shapes = {name: tuple(inputs[name].shape) for name in self._ranges[0]}
        context = self._contexts[self._find_profile(shapes)]
        for name, shape in shapes.items():
            context.set_input_shape(name, shape)
            context.set_tensor_address(name, self._place(name, inputs[name]))
        results: dict[str, Any] = {}
        if not context.execute_async_v3(self._device.stream):
            raise BackendError(f"segment {self._segment.index}: TensorRT could not run it at {shapes}")
        for name, (address, _) in self._outputs.items():
            shape = tuple(context.get_tensor_shape(name_output(name)))
            if name in CARRIED:
                results[name] = DeviceArray(address, shape)
            else:
                answer = self._answers[name].view(np.float32)[: _count(shape)].reshape(shape)
                self._device.copy_out(answer, address)
                results[name] = answer
        self._device.synchronize()
        return results

    def _place(self, name: str, value: Any) -> int:
        """Where an input lies on the device; what the host made is copied there by way of page-locked memory."""
        if isinstance(value, DeviceArray):
            return value.address
        staged = self._staging[name][: value.nbytes].view(value.dtype).reshape(value.shape)
        np.copyto(staged, value)
        self._device.copy_in(self._inputs[name], staged)
        return self._inputs[name]

    def _find_profile(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        for index, ranges in enumerate(self._ranges):
            if all(_holds(ranges[name], shape) for name, shape in shapes.items()):
                return index
        name = next(n for n, shape in shapes.items() if not any(_holds(ranges[n], shape) for ranges in self._ranges))
        built = " or ".join(f"{ranges[name][0]} to {ranges[name][_LARGEST]}" for ranges in self._ranges)
        raise BackendError(
            f"segment {self._segment.index}: {name} of shape {shapes[name]}, but its engine was built for {built}; "
            "send smaller batches or shorter texts, or export with a larger --max-batch-size"
        )

    def _make_context(self, index: int) -> Any:
        context = self._engine.create_execution_context()
        if context is None:
            raise DeviceMemoryError(
                f"segment {self._segment.index}: the GPU has too little memory for its engine; export with a smaller "
                "--max-batch-size"
            )
        context.set_optimization_profile_async(index, self._device.stream)
        return context

    def _read_ranges(self, index: int) -> dict[str, Sequence[tuple[int, ...]]]:
        """Smallest, best and largest shape of each input that the engine has: one that nothing reads is not there."""
        count = self._engine.num_io_tensors
        names = {self._engine.get_tensor_name(i) for i in range(count)}
        return {
            name: [tuple(shape) for shape in self._engine.get_tensor_profile_shape(name, index)]
            for name in self._segment.input_names
            if name in names
        }

    def _allocate_outputs(self, largest: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
        """Address and size of each output, for the largest inputs of the widest profile."""
        context = self._contexts[-1]
        for name in largest:
            context.set_input_shape(name, self._ranges[-1][name][_LARGEST])
        outputs = {}
        for name in self._segment.output_names:
            item = ELEMENT_BYTES[self._segment.precision] if name == "hidden" else 8 if name == "token_positions" else 4
            num_bytes = item * _count(tuple(context.get_tensor_shape(name_output(name))))
            outputs[name] = (self._device.allocate(num_bytes), num_bytes)
        return outputs


def _count(shape: Sequence[int]) -> int:
    return int(np.prod(shape))


def _holds(ends: Sequence[tuple[int, ...]], shape: tuple[int, ...]) -> bool:
    low, high = ends[0], ends[_LARGEST]
    return len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
