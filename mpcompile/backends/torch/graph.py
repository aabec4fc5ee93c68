"""The base of backends that run a segment's graph module through torch."""

from __future__ import annotations

import torch

from mpcompile.contract.backend import BuildConfig, Engine, Samples
from mpcompile.contract.profile import OptimizationProfile
from mpcompile.contract.segment import Segment
from mpcompile.errors import BackendError


class GraphBackend:
    """Builds nothing ahead of time: a plan is next to nothing and an engine needs the segment's graph module.

    An author gives `make_engine`, and what is left of `Backend`.
    """

    name: str
    needs_graph = True
    fusion: str
    device_kind = "cpu"

    def make_engine(self, plan: bytes, segment: Segment, config: BuildConfig) -> Engine:
        """An engine of a segment that has its graph."""
        raise NotImplementedError

    def find_quantiser(self) -> str:
        raise BackendError(f"precision 'int8': the {self.name} backend runs none; pass backend='auto'")

    def count_threads(self) -> int:
        return torch.get_num_threads()

    def build(
        self, segment: Segment, profile: OptimizationProfile, config: BuildConfig, samples: Samples | None = None
    ) -> bytes:
        return b""

    def load(self, plan: bytes, segment: Segment, config: BuildConfig) -> Engine:
        if segment.graph_module is None:
            raise BackendError(f"segment {segment.index}: the {self.name} backend runs a graph and none was given")
        return self.make_engine(plan, segment, config)

    def load_streams(self, plan: bytes, segment: Segment, config: BuildConfig) -> tuple[Engine, ...]:
        return tuple(self.load(plan, segment, config) for _ in range(config.num_streams))
