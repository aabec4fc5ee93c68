"""The inductor backend: torch.compile, on GPUs and CPUs."""

from __future__ import annotations

import copy
import math
import platform
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.fx.experimental._config as fx_config

from mpcompile.backends.replays import GraphCache
from mpcompile.backends.size_buckets import count_rows, find_longest, pad_inputs_maybe
from mpcompile.backends.torch.graph import GraphBackend
from mpcompile.contract.backend import BuildConfig, Engine, Samples
from mpcompile.contract.inputs import CARRIED
from mpcompile.contract.profile import OptimizationProfile
from mpcompile.contract.segment import Segment
from mpcompile.errors import BackendError, BatchTooLarge
from mpcompile.graph.lowering import lower

_ANY_ROWS = 2**30


@dataclass(frozen=True)
class Captured:
    """A call as a captured CUDA graph.

    Attributes:
        inputs: tensors that it reads, to be filled before a replay.
        outputs: tensors that it writes.
        replay: queues it.
    """

    inputs: Mapping[str, torch.Tensor]
    outputs: Mapping[str, torch.Tensor]
    replay: Callable[[], object]


Call = Callable[..., Mapping[str, torch.Tensor]]
Capture = Callable[[Call, Mapping[str, torch.Tensor]], Captured]


class InductorEngine:
    """Runs a segment's graph, compiled at the first call, and again for the first example that is alone in a batch.

    What it hands on stays on the device. On a GPU, sizes of small calls are rounded up, and what comes again is
    replayed as a CUDA graph. A batch that does not fit into memory is refused with what may fit.

    Args:
        segment: with its graph.
        device: of torch.
        config: how many tokens a captured call may have.
        max_length: tokens that the model reads; 0 where that is not known, and no text is rounded up.
        capture: makes graphs; None for none.
    """

    def __init__(
        self, segment: Segment, device: torch.device, config: BuildConfig, max_length: int, capture: Capture | None
    ) -> None:
        lowered = lower(segment)
        assert lowered.graph_module is not None
        # A copy: what the user does to the model afterwards does not change what was compiled from it.
        graph_module = copy.deepcopy(lowered.graph_module).eval().to(device)
        self._index, self._device, self._max_length = segment.index, device, max_length
        # How many tokens pass a threshold depends on data, and a graph has fixed sizes.
        self._capture = None if segment.prunes_by_threshold else capture
        self._graph_tokens = config.graph_tokens
        self._graphs: GraphCache[Captured] = GraphCache(f"segment {segment.index}")
        self._max_tokens = math.inf
        # Sizes are symbols from the start: a new length does not compile again.
        self._call: Call = torch.compile(graph_module, dynamic=True, fullgraph=True)

    def __call__(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        num_rows, longest = count_rows(inputs), find_longest(inputs)
        # One example alone is always tried: a limit found with many short ones says little about a long one.
        if num_rows > 1 and num_rows * longest > self._max_tokens:
            raise self._find_room(num_rows, longest)
        try:
            # Without duck shapes: sizes that happen to be alike at the first call need not be at the second.
            with torch.inference_mode(), _without_duck_shapes():
                outputs = self._run(inputs)
        except torch.OutOfMemoryError as error:
            if num_rows > 1:
                self._max_tokens = num_rows // 2 * longest
            raise self._find_room(num_rows, longest) from error
        # What stays on a GPU is read by the next segment alone.
        stays = CARRIED if self._device.type != "cpu" else ()
        return {name: value if name in stays else _to_host(value[:num_rows]) for name, value in outputs.items()}

    def _run(self, inputs: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
        padded = None
        if self._capture is not None:
            padded = pad_inputs_maybe(inputs, _ANY_ROWS, self._max_length, self._graph_tokens)
        placed = {name: self._place(value) for name, value in (padded or inputs).items()}
        if padded is not None:
            key = tuple((name, tuple(value.shape)) for name, value in placed.items())
            captured = self._graphs.fetch_maybe(key, lambda: self._make_graph(placed))
            if captured is not None:
                for name, value in placed.items():
                    captured.inputs[name].copy_(value)
                captured.replay()
                return captured.outputs
        return self._call(**placed)

    def _make_graph(self, inputs: Mapping[str, torch.Tensor]) -> Captured:
        assert self._capture is not None
        try:
            return self._capture(self._call, {name: value.clone() for name, value in inputs.items()})
        except RuntimeError as error:
            raise BackendError(str(error)) from error

    def _find_room(self, num_rows: int, longest: int) -> BatchTooLarge:
        return BatchTooLarge(
            f"segment {self._index}: too little GPU memory for a batch of {num_rows} with {longest} tokens each",
            0 if num_rows == 1 else max(int(self._max_tokens // longest), 1),
        )

    def _place(self, value: Any) -> torch.Tensor:
        tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(value)
        return tensor.to(self._device, non_blocking=True)


class CudaCapture:
    """Captures calls on a GPU; the graphs of one engine share memory, since only one of their answers is read."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, call: Call, inputs: Mapping[str, torch.Tensor]) -> Captured:
        graph = torch.cuda.CUDAGraph()
        # Thread-local: what other threads of the process do with CUDA meanwhile does no harm.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = call(**inputs)
        return Captured(inputs, outputs, graph.replay)


class InductorBackend(GraphBackend):
    """Compiles graphs where they are loaded.

    Args:
        device: "auto" (the GPU where there is one), "cpu" or "cuda".

    Raises:
        BackendError: when the device is not there.
    """

    name = "inductor"
    fusion = "Inductor"

    def __init__(self, device: str = "auto") -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise BackendError("device 'cuda': torch sees no GPU here; pass device='cpu', or install torch with CUDA")
        is_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
        self._device = torch.device("cuda" if is_gpu else "cpu")
        self.device_kind = "gpu" if is_gpu else "cpu"

    def fingerprint(self) -> dict[str, str]:
        is_gpu = self._device.type == "cuda"
        where = torch.cuda.get_device_name(self._device) if is_gpu else platform.machine()
        return {"torch": torch.__version__, "device": f"{self._device.type} {where}"}

    def precisions(self) -> tuple[str, ...]:
        # The last is what "auto" takes: bf16 needs no care about ranges. CPUs have the openvino backend for it.
        return ("f32",) if self._device.type == "cpu" else ("f32", "f16", "bf16")

    def unsupported_reason(self, segment: Segment) -> str | None:
        if segment.precision not in self.precisions():
            return f"precision {segment.precision!r}: inductor runs {', '.join(self.precisions())} on this device"
        return None

    def build(
        self, segment: Segment, profile: OptimizationProfile, config: BuildConfig, samples: Samples | None = None
    ) -> bytes:
        """Nothing is compiled yet: a plan says how long texts may be."""
        return str(profile.seq_len.max).encode()

    def make_engine(self, plan: bytes, segment: Segment, config: BuildConfig) -> Engine:
        capture = CudaCapture() if self._device.type == "cuda" and config.graph_tokens else None
        return InductorEngine(segment, self._device, config, int(plan or b"0"), capture)


def _without_duck_shapes() -> AbstractContextManager[None]:
    patch: Callable[..., AbstractContextManager[None]] = fx_config.patch  # type: ignore[attr-defined]
    return patch(use_duck_shape=False)


def _to_host(value: torch.Tensor) -> np.ndarray:
    array: np.ndarray = value.cpu().numpy()
    return array
