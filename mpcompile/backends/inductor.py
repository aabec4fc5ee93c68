"""The inductor backend: torch.compile, for GPUs without TensorRT and as the baseline beside it. Runs on CPUs, too."""

from __future__ import annotations

import copy
import platform
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import torch.fx.experimental._config as fx_config

from mpcompile.backends.graph import GraphBackend
from mpcompile.errors import BackendError
from mpcompile.lowering import lower
from mpcompile.segment import CARRIED, Engine, Segment


class InductorEngine:
    """Runs a segment's graph, compiled at the first call, and again for the first example that is alone in a batch.

    What it hands on stays on the device.

    Args:
        segment: with its graph.
        device: of torch.
    """

    def __init__(self, segment: Segment, device: torch.device) -> None:
        lowered = lower(segment)
        assert lowered.graph_module is not None
        # A copy: what the user does to the model afterwards does not change what was compiled from it.
        graph_module = copy.deepcopy(lowered.graph_module).eval().to(device)
        self._device = device
        # Sizes are symbols from the start: a new length does not compile again.
        self._call = torch.compile(graph_module, dynamic=True, fullgraph=True)

    def __call__(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        # Without duck shapes: sizes that happen to be alike at the first call need not be at the second.
        with torch.inference_mode(), _without_duck_shapes():
            outputs = self._call(**{name: self._place(value) for name, value in inputs.items()})
        # One that stays on a GPU is read by the next segment alone.
        stays = CARRIED if self._device.type != "cpu" else ()
        return {name: value if name in stays else _to_host(value) for name, value in outputs.items()}

    def _place(self, value: Any) -> torch.Tensor:
        tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(value)
        return tensor.to(self._device, non_blocking=True)


class InductorBackend(GraphBackend):
    """Compiles graphs where they are loaded.

    Args:
        device: "auto" (the GPU where there is one), "cpu" or "cuda".

    Raises:
        BackendError: when the device is not there.
    """

    name = "inductor"

    def __init__(self, device: str = "auto") -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise BackendError("device 'cuda': torch sees no GPU here; pass device='cpu', or install torch with CUDA")
        is_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
        self._device = torch.device("cuda" if is_gpu else "cpu")

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

    def make_engine(self, segment: Segment) -> Engine:
        return InductorEngine(segment, self._device)


def _without_duck_shapes() -> AbstractContextManager[None]:
    patch: Callable[..., AbstractContextManager[None]] = fx_config.patch  # type: ignore[attr-defined]
    return patch(use_duck_shape=False)


def _to_host(value: torch.Tensor) -> np.ndarray:
    array: np.ndarray = value.cpu().numpy()
    return array
