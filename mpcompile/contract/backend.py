"""The protocol of backends, which turn segments into engines. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mpcompile.contract.precision import fastest_float
from mpcompile.contract.profile import OptimizationProfile
from mpcompile.contract.segment import Segment
from mpcompile.errors import SettingError


class Engine(Protocol):
    """A compiled segment. Arrays it returns are valid until it is called again."""

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]: ...


@dataclass(frozen=True)
class BuildConfig:
    """Settings that change how fast an engine is and never what it answers; plans do not depend on them.

    Attributes:
        num_threads: CPU threads, shared by the streams; None for all cores.
        num_streams: lanes that a batch is split over, see `Lanes`.
        graph_tokens: GPU only: calls of up to this many tokens, padding included, are padded to recurring sizes and
            replayed as CUDA graphs; 0 disables. The default is an estimate and was not measured: a layer of BERT-base
            has 29 GFLOP at 2,048 tokens, which keeps an A100 busy for longer than its launches take.

    Raises:
        SettingError: when a value is not allowed.
    """

    num_threads: int | None = None
    num_streams: int = 1
    graph_tokens: int = 2048

    def __post_init__(self) -> None:
        if self.num_threads is not None and self.num_threads < 1:
            raise SettingError(f"num_threads: {self.num_threads}; a whole number from 1, or None for all cores")
        if self.num_streams < 1 or self.num_streams > (self.num_threads or self.num_streams):
            raise SettingError(
                f"num_streams: {self.num_streams} with {self.num_threads or 'all'} threads; a whole number from 1 is "
                "expected, with at least one thread for each"
            )
        if self.graph_tokens < 0:
            raise SettingError(f"graph_tokens: {self.graph_tokens}; a whole number from 0 is expected")


Samples = Sequence[Mapping[str, np.ndarray]]
"""Inputs that a segment was given, call by call: what an int8 engine is calibrated on."""


class Backend(Protocol):
    """Turns segments into engines.

    Attributes:
        name: by which it is found.
        needs_graph: whether `load` runs the segment's graph, so that an artifact needs torch to be loaded.
        fusion: which rules of `cost.fusion.FUSIONS` its kernels follow, for the cost model.
        device_kind: "cpu" or "gpu": where its engines run.
    """

    name: str
    needs_graph: bool
    fusion: str

    @property
    def device_kind(self) -> str: ...

    def fingerprint(self) -> dict[str, str]:
        """Names and versions that make a built engine stale when they change."""
        ...

    def precisions(self) -> tuple[str, ...]:
        """Precisions that this machine runs natively, most exact first; "int8" is the last where there is one."""
        ...

    def find_quantiser(self) -> str:
        """Name and version of the tool that makes int8 engines: another one makes other plans.

        Raises BackendError, with what to do, when it is not installed or there is no int8.
        """
        ...

    def count_threads(self) -> int:
        """CPU threads that an engine runs on when its config does not say."""
        ...

    def unsupported_reason(self, segment: Segment) -> str | None:
        """Why a segment cannot be built here, or None."""
        ...

    def build(
        self, segment: Segment, profile: OptimizationProfile, config: BuildConfig, samples: Samples | None = None
    ) -> bytes:
        """Builds a plan. Slow. Raises BackendError, also when a segment in int8 comes without samples."""
        ...

    def load(self, plan: bytes, segment: Segment, config: BuildConfig) -> Engine:
        """Makes a plan callable. Raises BackendError."""
        ...

    def load_streams(self, plan: bytes, segment: Segment, config: BuildConfig) -> tuple[Engine, ...]:
        """Makes a plan callable as `config.num_streams` engines that may run at the same time. Raises BackendError."""
        ...


@dataclass(frozen=True)
class Target:
    """The target of engines: backend, precision and config.

    Attributes:
        backend: builds the engines.
        precision: of the engines.
        config: for the backend.
    """

    backend: Backend
    precision: str
    config: BuildConfig = BuildConfig()

    @property
    def float_precision(self) -> str:
        """The precision, or the fastest float of the backend where the precision is int8."""
        return self.precision if self.precision != "int8" else fastest_float(self.backend.precisions())
