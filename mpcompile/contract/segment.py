"""What a segment is: the contract between graph, backends and runtime. Imports no torch.

Inputs of segment 0: `input_ids`, `attention_mask` and maybe `token_type_ids`, (B, S) int64.
Inputs of the others: `hidden` (B, S, D) and `mask` (B, 1, 1, S) of the segment before, `rows` (R,)
int64, the survivors, and `positions` (L,) int64, 0..L-1 for the longest of them. For each layer N
that prunes: `num_kept_N` (R,) int64 and `slots_N` (K,) int64, 0..K-1 for the largest of them.
Where layer N prunes by a threshold: `token_threshold_N` (1,) fp32 instead of these two.
Outputs: `hidden`, `mask`, `logits` (R, C) and `entropy` (R,); the last segment gives `logits` alone.
For each layer N that prunes by a threshold: `kept_N` (R,) int64, tokens that each example has left behind it.
Where layers tell by position how far apart tokens are (MPNet, ModernBERT, DeBERTa), `token_positions`
(B, S) int64 goes along with `mask`: where each token stood in the text, whatever was dropped since.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mpcompile.errors import SettingError

if TYPE_CHECKING:
    from torch.fx import GraphModule

FIRST_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
CARRIED = ("hidden", "mask", "token_positions")
"""What a segment may hand on to the next."""


def size_names(name: str) -> dict[int, str]:
    """Names of the dynamic sizes of an input, by dimension.

    `batch` and `seq_len` of what the segment before hands on, `rows` survivors, `positions` tokens of the longest,
    `kept_N` tokens kept in layer N.
    """
    if name.startswith("token_threshold_"):
        return {}
    if name == "mask":
        return {0: "batch", 3: "seq_len"}
    if name in ("hidden", "token_positions", *FIRST_INPUTS):
        return {0: "batch", 1: "seq_len"}
    if name.startswith("slots_"):
        return {0: f"kept_{name.removeprefix('slots_')}"}
    return {0: "positions" if name == "positions" else "rows"}


@dataclass(frozen=True)
class Segment:
    """A piece of graph that becomes one engine.

    Attributes:
        index: position in the chain, from 0.
        exit_layer: encoder layers run when it ends.
        prune_layers: layers inside it that prune, ascending.
        hidden_size: D.
        input_names: its inputs in order, see the module's legend.
        output_names: its outputs in order.
        precision: "f32", "bf16", "f16" or "int8": what products with weights run in. The rest of an int8 segment runs
            in the fastest float precision of the machine.
        graph_module: the graph, None when the segment was read from an artifact.
    """

    index: int
    exit_layer: int
    prune_layers: tuple[int, ...]
    hidden_size: int
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    precision: str = "f32"
    graph_module: GraphModule | None = None

    @functools.cached_property
    def prunes_by_threshold(self) -> bool:
        """Whether its text decides how many tokens are kept, and not the host."""
        return any(name.startswith("token_threshold_") for name in self.input_names)


class Engine(Protocol):
    """A compiled segment. Arrays it returns are valid until it is called again."""

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]: ...


@dataclass(frozen=True)
class Range:
    """Sizes that a dimension may take; `opt` is the one to be fastest at."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class OptimizationProfile:
    """Shapes that an engine is built for.

    Attributes:
        batch_size: survivors that enter.
        seq_len: tokens of the longest survivor.
    """

    batch_size: Range
    seq_len: Range


def default_profile(max_length: int) -> OptimizationProfile:
    """What engines are built for when the workload is not known: single requests and small batches."""
    return OptimizationProfile(Range(1, 8, 128), Range(2, min(128, max_length), max_length))


@dataclass(frozen=True)
class BuildConfig:
    """Settings that change how fast an engine is and never what it answers; plans do not depend on them.

    Attributes:
        num_threads: CPU threads, shared by the streams; None for all cores.
        num_streams: lanes that a batch is split over, see `Lanes`.
        graph_tokens: on a GPU, calls of at most as many tokens, padding included, are padded to sizes that come again
            and replayed as CUDA graphs; 0 for none. The default is an estimate and was not measured: a layer of
            BERT-base has 29 GFLOP at 2,048 tokens, which keeps an A100 busy for longer than its launches take.

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
    """Turns segments into engines."""

    name: str

    def fingerprint(self) -> dict[str, str]:
        """What makes a built engine stale when it changes."""
        ...

    def precisions(self) -> tuple[str, ...]:
        """Precisions that this machine runs natively, most exact first; "int8" is the last where there is one."""
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
        """Builds a plan. Slow. Raises BackendError, for one when a segment in int8 comes without samples."""
        ...

    def load(self, plan: bytes, segment: Segment, config: BuildConfig) -> Engine:
        """Makes a plan callable. Raises BackendError."""
        ...

    def load_streams(self, plan: bytes, segment: Segment, config: BuildConfig) -> tuple[Engine, ...]:
        """The same as `config.num_streams` engines that may run at the same time. Raises BackendError."""
        ...


def fastest_float(precisions: Sequence[str]) -> str:
    """The least exact precision of a backend that needs no calibration."""
    return [precision for precision in precisions if precision != "int8"][-1]
