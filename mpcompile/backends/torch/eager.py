"""The eager backend: torch runs the graph as it is. The other backends are checked against it."""

from __future__ import annotations

import copy
import platform
from collections.abc import Mapping

import numpy as np
import torch

from mpcompile.backends.torch.graph import GraphBackend
from mpcompile.contract.backend import BuildConfig, Engine
from mpcompile.contract.segment import Segment


class EagerEngine:
    """Runs a segment's graph module in fp32."""

    def __init__(self, segment: Segment) -> None:
        assert segment.graph_module is not None
        # A copy: what the user does to the model afterwards does not change what was compiled from it.
        self._graph_module = copy.deepcopy(segment.graph_module).eval()

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        with torch.inference_mode():
            outputs = self._graph_module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in outputs.items()}


class EagerBackend(GraphBackend):
    """Runs graphs as they are."""

    name = "eager"
    fusion = "per operator"

    def fingerprint(self) -> dict[str, str]:
        return {"torch": torch.__version__, "machine": platform.machine()}

    def precisions(self) -> tuple[str, ...]:
        return ("f32",)

    def unsupported_reason(self, segment: Segment) -> str | None:
        return None if segment.precision == "f32" else f"eager runs in f32, not {segment.precision}"

    def make_engine(self, plan: bytes, segment: Segment, config: BuildConfig) -> Engine:
        return EagerEngine(segment)
