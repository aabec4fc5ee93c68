"""Runs a plan: buffers are allocated once, the hidden state stays on the device, the host reads answers alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpcompile.backends.replays import GraphCache
from mpcompile.backends.size_buckets import count_rows, pad_inputs_maybe
from mpcompile.backends.tensorrt.cuda import DeviceMemoryError
from mpcompile.backends.tensorrt.session import Buffer, Session
from mpcompile.contract.backend import BuildConfig
from mpcompile.contract.inputs import CARRIED, name_output, size_names
from mpcompile.contract.precision import ELEMENT_BYTES, encode_floats
from mpcompile.contract.segment import Segment
from mpcompile.errors import BackendError, BatchTooLarge

logger = logging.getLogger(__name__)

_LARGEST = 2
Shape = tuple[int, ...]


@dataclass(frozen=True)
class DeviceArray:
    """An output that stays on the device for the next segment; valid until its engine is called again."""

    address: int
    shape: Shape


@dataclass(frozen=True)
class _Buffers:
    """Memory for batches up to some size.

    Attributes:
        inputs: what the host sends, on the device, by name.
        staging: `inputs` in page-locked memory of the host, by name.
        outputs: by name.
        answers: those that the host reads, in page-locked memory.
    """

    inputs: dict[str, Buffer]
    staging: dict[str, np.ndarray]
    outputs: dict[str, Buffer]
    answers: dict[str, np.ndarray]


@dataclass(frozen=True)
class _Captured:
    """A graph, with the context and the scratch buffer that are fixed in it: no other call may change that context."""

    graph: Any
    context: Any
    scratch: Buffer


class TensorRtEngine:
    """A plan on a device. One call queues copies in, the kernels and two small copies out, and waits once.

    Sizes of small calls are rounded up, and what comes again is replayed as a CUDA graph. Each profile and each graph
    has an execution context of its own, as NVIDIA advises; all share one scratch buffer. Where memory is short, the
    engine takes smaller batches than it was built for.

    Args:
        plan: what a builder made for this GPU and version.
        segment: what it computes.
        session: of the chain.
        config: how many tokens a captured call may have.

    Raises:
        BackendError: when the plan is for another GPU or version, or damaged.
        DeviceMemoryError: when not even the buffers for one example fit.
    """

    def __init__(self, plan: bytes, segment: Segment, session: Session, config: BuildConfig | None = None) -> None:
        engine = session.runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(
                f"segment {segment.index}: TensorRT does not accept its plan: it was built for another GPU or version, "
                "or is damaged; build it again (mpcompile build)"
            )
        self._engine, self._segment, self._session, self._device = engine, segment, session, session.device
        self._graph_tokens = (config or BuildConfig()).graph_tokens
        self._graphs: GraphCache[_Captured] = GraphCache(f"segment {segment.index}")
        self._ranges = [self._read_ranges(index) for index in range(engine.num_optimization_profiles)]
        self._contexts = [self._make_context(index) for index in range(engine.num_optimization_profiles)]
        largest = {name: max(r[name][_LARGEST] for r in self._ranges) for name in self._ranges[0]}
        self._built_rows = largest["rows" if "rows" in segment.input_names else "input_ids"][0]
        self._max_length = largest["positions" if "rows" in segment.input_names else "input_ids"][-1]
        self._max_rows = self._built_rows
        self._uploads: dict[str, tuple[Buffer, np.ndarray]] = {}
        self._buffers = self._allocate_what_fits()
        for context in self._contexts:
            self._bind(context)

    def __call__(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        num_rows = count_rows(inputs)
        if num_rows > self._max_rows:
            raise BatchTooLarge(
                f"segment {self._segment.index}: its engine takes batches of at most {self._max_rows}", self._max_rows
            )
        padded = pad_inputs_maybe(inputs, self._max_rows, self._max_length, self._graph_tokens)
        given = inputs if padded is None else padded
        shapes = {name: tuple(given[name].shape) for name in self._ranges[0]}
        profile = self._find_profile(shapes)
        addresses = {name: self._stage(name, given[name]) for name in shapes}
        results = self._run(profile, shapes, addresses, padded is not None and not self._session.found.is_rtx)
        self._device.synchronize()
        return {name: value if name in CARRIED else value[:num_rows] for name, value in results.items()}

    def _run(
        self, profile: int, shapes: Mapping[str, Shape], addresses: Mapping[str, int], may_capture: bool
    ) -> dict[str, Any]:
        """Queues a call, as a graph where there is one; the results are there when the device is done."""
        if may_capture:
            key = (tuple(shapes.values()), tuple(addresses.values()))
            captured = self._graphs.fetch_maybe(key, lambda: self._capture(profile, shapes, addresses))
            if captured is not None:
                self._device.launch(captured.graph)
                return self._read(captured.context)
        context = self._contexts[profile]
        self._set(context, shapes, addresses)
        self._queue(context, shapes)
        return self._read(context)

    def _capture(self, profile: int, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> _Captured:
        context = self._make_context(profile)
        self._bind(context)
        self._set(context, shapes, addresses)
        # Once without a graph: a context's first run with new sizes does work that must not be captured.
        self._queue(context, shapes)
        self._device.synchronize()
        graph = self._device.capture(lambda: self._queue(context, shapes))
        return _Captured(graph, context, self._session.scratch)

    def _set(self, context: Any, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> None:
        for name, shape in shapes.items():
            context.set_input_shape(name, shape)
            context.set_tensor_address(name, addresses[name])
        if self._max_rows < self._built_rows:  # scratch memory is enough for such sizes alone, and TensorRT has to know
            context.update_device_memory_size_for_shapes()
        scratch = self._session.scratch
        context.set_device_memory(scratch.address, scratch.num_bytes)

    def _queue(self, context: Any, shapes: Mapping[str, Shape]) -> None:
        """Copies in, kernels, copies out."""
        buffers = self._buffers
        for name, buffer in buffers.inputs.items():
            num_bytes = 8 * _count(shapes[name])
            self._device.copy_in(buffer.address, buffers.staging[name][:num_bytes])
        if not context.execute_async_v3(self._device.stream):
            raise BackendError(f"segment {self._segment.index}: TensorRT could not run it at {dict(shapes)}")
        for name in buffers.answers:
            shape = tuple(context.get_tensor_shape(name_output(name)))
            self._device.copy_out(self._find_answer(name, shape), buffers.outputs[name].address)

    def _read(self, context: Any) -> dict[str, Any]:
        results: dict[str, Any] = {}
        for name, buffer in self._buffers.outputs.items():
            shape = tuple(context.get_tensor_shape(name_output(name)))
            is_carried = name in CARRIED
            results[name] = DeviceArray(buffer.address, shape) if is_carried else self._find_answer(name, shape)
        return results

    def _find_answer(self, name: str, shape: Shape) -> np.ndarray:
        return self._buffers.answers[name].view(np.float32)[: _count(shape)].reshape(shape)

    def _stage(self, name: str, value: Any) -> int:
        """Where an input lies on the device; what the host made goes there by way of page-locked memory."""
        if isinstance(value, DeviceArray):
            return value.address
        if name in CARRIED:
            return self._upload(name, value)
        np.copyto(self._buffers.staging[name][: value.nbytes].view(value.dtype).reshape(value.shape), value)
        return self._buffers.inputs[name].address

    def _upload(self, name: str, value: np.ndarray) -> int:
        """Queues the copy of what the segment before usually hands on, for calls that time a segment alone."""
        raw = encode_floats(value, self._segment.precision) if name == "hidden" else value
        data = np.ascontiguousarray(raw).reshape(-1).view(np.uint8)
        if name not in self._uploads or self._uploads[name][0].num_bytes < data.nbytes:
            self._uploads[name] = self._device.allocate(data.nbytes), self._device.allocate_host(data.nbytes)
        buffer, staging = self._uploads[name]
        np.copyto(staging[: data.nbytes], data)
        self._device.copy_in(buffer.address, staging[: data.nbytes])
        return buffer.address

    def _find_profile(self, shapes: Mapping[str, Shape]) -> int:
        for index, ranges in enumerate(self._ranges):
            if all(_holds(ranges[name], shape) for name, shape in shapes.items()):
                return index
        name = next(n for n, shape in shapes.items() if not any(_holds(ranges[n], shape) for ranges in self._ranges))
        built = " or ".join(f"{ranges[name][0]} to {ranges[name][_LARGEST]}" for ranges in self._ranges)
        raise BackendError(
            f"segment {self._segment.index}: {name} of shape {shapes[name]}, but its engine was built for {built}; "
            "send smaller batches or shorter texts, or export with a larger --max-batch-size"
        )

    def _make_context(self, profile: int) -> Any:
        context = self._session.create_context(self._engine)
        if context is None:
            raise DeviceMemoryError(
                f"segment {self._segment.index}: the GPU has too little memory for its engine; export with a smaller "
                "--max-batch-size"
            )
        context.set_optimization_profile_async(profile, self._device.stream)
        return context

    def _bind(self, context: Any) -> None:
        """Gives a context the outputs, which are the same in every call."""
        for name, buffer in self._buffers.outputs.items():
            context.set_tensor_address(name_output(name), buffer.address)

    def _read_ranges(self, index: int) -> dict[str, Sequence[Shape]]:
        """Smallest, best and largest shape of each input that the engine has: one that nothing reads is not there."""
        count = self._engine.num_io_tensors
        names = {self._engine.get_tensor_name(i) for i in range(count)}
        return {
            name: [tuple(shape) for shape in self._engine.get_tensor_profile_shape(name, index)]
            for name in self._segment.input_names
            if name in names
        }

    def _allocate_what_fits(self) -> _Buffers:
        """Buffers for the largest batches, or for a half, a quarter, ... of them where memory is short."""
        while True:
            try:
                return self._allocate()
            except DeviceMemoryError:
                if self._max_rows == 1:
                    raise
                self._max_rows //= 2
                logger.warning(
                    "segment %d: the GPU has too little memory for batches of %d; batches of more than %d run in parts",
                    self._segment.index, 2 * self._max_rows, self._max_rows,
                )  # fmt: skip

    def _allocate(self) -> _Buffers:
        """Buffers for inputs of the widest profile, but for no more rows than it takes."""
        device, engine, context = self._device, self._engine, self._contexts[-1]
        largest = {}
        for name, ends in self._ranges[-1].items():
            largest[name] = ends[_LARGEST]
            if name not in CARRIED:  # the segment before may hand on more than enter this one
                rows = [dim for dim, size in size_names(name).items() if size in ("rows", "batch")]
                largest[name] = tuple(
                    min(n, self._max_rows) if dim in rows else n for dim, n in enumerate(ends[_LARGEST])
                )
            context.set_input_shape(name, largest[name])
        is_whole = self._max_rows == self._built_rows
        self._session.reserve(
            engine.device_memory_size_v2 if is_whole else context.update_device_memory_size_for_shapes()
        )
        sizes = {name: 8 * _count(shape) for name, shape in largest.items() if name not in CARRIED}
        outputs = {}
        for name in self._segment.output_names:
            item = ELEMENT_BYTES[self._segment.precision] if name == "hidden" else 8 if name == "token_positions" else 4
            outputs[name] = item * _count(tuple(context.get_tensor_shape(name_output(name))))
        return _Buffers(
            inputs={name: device.allocate(size) for name, size in sizes.items()},
            staging={name: device.allocate_host(size) for name, size in sizes.items()},
            outputs={name: device.allocate(size) for name, size in outputs.items()},
            answers={name: device.allocate_host(size) for name, size in outputs.items() if name not in CARRIED},
        )


def _count(shape: Sequence[int]) -> int:
    return int(np.prod(shape))


def _holds(ends: Sequence[Shape], shape: Shape) -> bool:
    low, high = ends[0], ends[_LARGEST]
    return len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
