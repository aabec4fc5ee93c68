"""The eager backend: the graph as it is, run by torch. The oracle of the others."""

from __future__ import annotations

import copy
import platform
from collections.abc import Mapping

import numpy as np
import torch

from mpcompile.errors import BackendError
from mpcompile.segment import BuildConfig, Engine, OptimizationProfile, Samples, Segment


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


class EagerBackend:
    """Builds nothing: a plan is empty and an engine needs the segment's graph module."""

    name = "eager"

    def fingerprint(self) -> dict[str, str]:
        return {"torch": torch.__version__, "machine": platform.machine()}

    def precisions(self) -> tuple[str, ...]:
        return ("f32",)

    def count_threads(self) -> int:
        return torch.get_num_threads()

    def unsupported_reason(self, segment: Segment) -> str | None:
        return None if segment.precision == "f32" else f"eager runs in f32, not {segment.precision}"

    def build(
        self, segment: Segment, profile: OptimizationProfile, config: BuildConfig, samples: Samples | None = None
    ) -> bytes:
        return b""

    def load(self, plan: bytes, segment: Segment, config: BuildConfig) -> Engine:
        if segment.graph_module is None:
            raise BackendError(f"segment {segment.index}: the eager backend runs a graph and none was given")
        return EagerEngine(segment)

    def load_streams(self, plan: bytes, segment: Segment, config: BuildConfig) -> tuple[Engine, ...]:
        return tuple(self.load(plan, segment, config) for _ in range(config.num_streams))
