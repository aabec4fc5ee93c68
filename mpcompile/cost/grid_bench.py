"""Engines of small random encoders, timed over a grid of sizes: what the rates of a machine are fitted to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from mpcompile.contract.backend import Engine, Target
from mpcompile.contract.inputs import LayerSetting, fill_inputs
from mpcompile.contract.operating_point import OperatingPoint, count_kept
from mpcompile.contract.profile import default_profile
from mpcompile.contract.segment import Segment
from mpcompile.cost.grids import Grid
from mpcompile.cost.rates import Rates
from mpcompile.cost.regions import GraphWork, Work
from mpcompile.cost.roofline import predict_region
from mpcompile.cost.timing import measure_interleaved
from mpcompile.cost.work import estimate_work
from mpcompile.graph.capture import CapturedModel, capture
from mpcompile.graph.segments import partition
from passes import ExitHead

NUM_LAYERS = 3
MIXED_RUNS = 5
SETTLE_S = 0.01
"""Calls of the same sizes come in a row: for this long untimed, until caches and memory are theirs, then timed."""


Key = tuple[int, int, int, float]
"""Index of a segment, batch size, length, keep ratio."""


@dataclass(frozen=True)
class Sample:
    """One engine at one size.

    Attributes:
        name: model, segment and size.
        parts: what it computes.
        weight_bytes: parameters that it reads, fp32.
        num_launches: kernels that it is run as.
        measured_s: median seconds of a call after one of the same sizes.
    """

    name: str
    parts: tuple[Work, ...]
    weight_bytes: float
    num_launches: int
    measured_s: float

    def predict(self, rates: Rates) -> float:
        """Seconds by the cost model."""
        return rates.engine_s + sum(float(predict_region(rates, part, self.weight_bytes)) for part in self.parts)


class GridBench:
    """Engines of an encoder with exits and prunes, and what they compute.

    Args:
        target: what the engines are built for.
        grid: sizes to time them at, and the size of the encoder.
        captured: the encoder; None is a random one of the grid's size.
        exit_layers: where it is cut into engines.
        prune_layers: layers that prune.
    """

    def __init__(
        self,
        target: Target,
        grid: Grid,
        captured: CapturedModel | None = None,
        exit_layers: Sequence[int] = (1,),
        prune_layers: tuple[int, ...] = (1,),
    ) -> None:
        backend, precision, config = target.backend, target.precision, target.config
        captured = captured or random_encoder(grid.hidden_size, grid.num_heads)
        heads = {layer: ExitHead(captured.hidden_size, captured.num_labels).eval() for layer in exit_layers}
        self.segments = partition(captured, heads, prune_layers, None, precision)
        profile = default_profile(captured.max_length)
        samples = [_random_samples(s) if precision == "int8" else None for s in self.segments]
        plans = [backend.build(s, profile, config, given) for s, given in zip(self.segments, samples, strict=True)]
        self._engines = [backend.load(plan, s, config) for plan, s in zip(plans, self.segments, strict=True)]
        self._work = estimate_work(captured, backend.fusion)
        self._grid = grid

    def calls(self) -> dict[Key, Callable[[], object]]:
        """A call of every engine at every size of the grid."""
        calls: dict[Key, Callable[[], object]] = {}
        for batch_size, length in self._grid.shapes():
            for index, segment in enumerate(self.segments):
                for ratio in self._grid.keep_ratios if segment.prune_layers else (1.0,):
                    key = (index, batch_size, length, ratio)
                    calls[key] = make_call(segment, self._engines[index], *key[1:])
        return calls

    def describe(self, seconds: Mapping[Key, float]) -> list[Sample]:
        """Measured calls with the work that explains them."""
        return [describe_sample(self._work, self.segments, key, taken) for key, taken in seconds.items()]

    def measure_reshape(self, runs: int) -> float:
        """Seconds per kernel that a call takes more after one of other sizes; see `Rates.reshape_s`.

        Sizes are many and mixed, as in service.
        """
        extra = []
        for index, segment in enumerate(self.segments):
            keys = [(index, size, length, 1.0) for size in (1, 2, 4, 8) for length in (24, 40, 56, 72)]
            calls = {key: make_call(segment, self._engines[index], *key[1:]) for key in keys}
            steady_s = np.mean(list(measure_steady(calls, runs).values()))
            mixed = [calls[keys[i]] for i in np.random.default_rng(0).permutation(len(keys))]
            mixed_s = measure_interleaved({"mixed": mixed}, MIXED_RUNS)["mixed"].median_s
            extra.append((mixed_s - steady_s) / describe_sample(self._work, self.segments, keys[0], 1.0).num_launches)
        return max(float(np.mean(extra)), 0.0)


K = TypeVar("K")


def measure_steady(
    calls: Mapping[K, Callable[[], object]], runs: int, on_step: Callable[[float], None] = lambda _: None
) -> dict[K, float]:
    """Median seconds of each call among calls of its own sizes."""
    rows: dict[str, list[Callable[[], object]]] = {}
    for key, call in calls.items():
        probe_s = measure_interleaved({"probe": [call]}, 1)["probe"].median_s
        count = int(np.clip(SETTLE_S / probe_s, 2, 30))
        rows[f"settle {key}"], rows[str(key)] = [call] * count, [call] * (count + 1)
    timings = measure_interleaved(rows, runs, warm_up=0, on_run=on_step)
    return {key: timings[str(key)].p50_s for key in calls}


def random_encoder(hidden_size: int, num_heads: int) -> CapturedModel:
    """A classifier of three layers whose time is that of a trained one; its answers mean nothing."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=1000,
        hidden_size=hidden_size,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=num_heads,
        intermediate_size=4 * hidden_size,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return capture(BertForSequenceClassification(config).eval())


def make_call(
    segment: Segment, engine: Engine, batch_size: int, seq_len: int, keep_ratio: float
) -> Callable[[], Mapping[str, np.ndarray]]:
    """A call of an engine with inputs of a size, without padding."""
    inputs = random_inputs(segment, batch_size, seq_len, keep_ratio)
    return lambda: engine(inputs)


def random_inputs(segment: Segment, batch_size: int, seq_len: int, keep_ratio: float) -> dict[str, np.ndarray]:
    """Inputs of a segment without padding."""
    rng = np.random.default_rng(0)
    if segment.index == 0:
        ids = rng.integers(0, 1000, (batch_size, seq_len))
        inputs: dict[str, np.ndarray] = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
    else:
        inputs = {
            "hidden": rng.standard_normal((batch_size, seq_len, segment.hidden_size), np.float32),
            "mask": np.zeros((batch_size, 1, 1, seq_len), np.float32),
            "rows": np.arange(batch_size),
            "positions": np.arange(seq_len),
        }
    kept = np.full(batch_size, seq_len)
    for layer in segment.prune_layers:
        kept = count_kept(keep_ratio, kept)
        inputs |= fill_inputs(segment.input_names, LayerSetting(layer, kept, int(kept[0])))
    return {name: inputs[name] for name in segment.input_names}


def _random_samples(segment: Segment) -> list[dict[str, np.ndarray]]:
    """What an int8 engine is calibrated on whose time alone matters."""
    return [random_inputs(segment, 1, seq_len, 0.5) for seq_len in (8, 16, 24, 32)]


def describe_sample(work: GraphWork, segments: Sequence[Segment], key: Key, measured_s: float) -> Sample:
    """A measurement with the work that explains it."""
    index, batch_size, seq_len, keep_ratio = key
    segment = segments[index]
    first = segments[index - 1].exit_layer if index else 0
    point = OperatingPoint((segment.exit_layer,), (), segment.prune_layers, (keep_ratio,) * len(segment.prune_layers))
    size, parts = (
        np.float64(batch_size),
        list(work.list_parts(index == 0, first, segment.exit_layer, np.float64(seq_len), point)),
    )
    return Sample(
        name=f"layers {first}-{segment.exit_layer}, batch {batch_size}, length {seq_len}, keep {keep_ratio:g}",
        parts=tuple(p.region.evaluate(size, p.seq_len, count_kept(p.keep_ratio, p.seq_len)) for p in parts),
        weight_bytes=sum(part.region.weight_bytes for part in parts),
        num_launches=sum(part.region.num_launches for part in parts),
        measured_s=measured_s,
    )
