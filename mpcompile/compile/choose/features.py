"""Cached features: logits, and what exit heads read at every off-ramp, from one pass over the texts.

Everything after this (training heads, searching thresholds) reads these arrays and runs no model.

Shapes: N texts, D hidden size, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpcompile.compile.recording import CalibrationTexts, record_inputs
from mpcompile.contract.backend import Backend, BuildConfig, Engine
from mpcompile.contract.operating_point import count_kept
from mpcompile.contract.profile import OptimizationProfile, Range
from mpcompile.contract.segment import Segment
from mpcompile.graph.capture import CapturedModel
from mpcompile.graph.segments import tap
from mpcompile.progress import Stage
from mpcompile.runtime.tokens import TokenIds, Tokenizer, batches_by_length

BATCH_SIZE = 32


@dataclass(frozen=True)
class KeepSchedule:
    """Keep ratios of the layers that may prune.

    Attributes:
        prune_layers: layers that may prune.
        keep_ratios: share of tokens that each layer keeps; with thresholds, the share that they were measured to keep.
        token_thresholds: threshold of each layer, where tokens are kept by the attention that they receive; else empty.
    """

    prune_layers: tuple[int, ...]
    keep_ratios: tuple[float, ...]
    token_thresholds: tuple[float, ...] = ()

    def pruned_layers(self) -> tuple[int, ...]:
        """Layers that do not keep everything."""
        rows = zip(self.prune_layers, self.keep_ratios, strict=True)
        return tuple(layer for layer, ratio in rows if ratio < 1.0)

    def measured(self, features: Features, lengths: np.ndarray) -> KeepSchedule:
        """This schedule with the keep ratios that its thresholds came to on texts of some lengths (N,)."""
        if not self.token_thresholds:
            return self
        before, ratios = lengths, []
        for layer in self.prune_layers:
            ratios.append(float(features.kept[layer].sum() / before.sum()))
            before = features.kept[layer]
        return dataclasses.replace(self, keep_ratios=tuple(ratios))


@dataclass(frozen=True)
class Features:
    """The results of one forward pass over all texts.

    Attributes:
        logits: of the model's own classifier, (N, C).
        pooled: by exit layer, what a head there reads, (N, 2D).
        kept: by layer that prunes by a threshold, tokens left after it, (N,).
    """

    logits: np.ndarray
    pooled: dict[int, np.ndarray]
    kept: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Named arrays, for the store."""
        kept = {f"kept_{layer}": value for layer, value in self.kept.items()}
        return {"logits": self.logits, **kept, **{f"features_{layer}": value for layer, value in self.pooled.items()}}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Features:
        """The features that `to_arrays` named."""
        pooled = {int(k.removeprefix("features_")): v for k, v in arrays.items() if k.startswith("features_")}
        kept = {int(k.removeprefix("kept_")): v for k, v in arrays.items() if k.startswith("kept_")}
        return cls(arrays["logits"], pooled, kept)


class FeatureCollector:
    """One engine of the whole model that returns features at every off-ramp.

    Args:
        captured: the model.
        exit_layers: off-ramps to tap.
        prune_layers: layers that may prune.
        backend: builds the engine, so that features come from the numerics that are deployed.
        precision: of the engine.
        tokenizer: pads the texts.
        config: for the backend.
        calibration: texts, for an engine in int8.
        selection: what prunes keep, see `partition.rewrite`.
    """

    def __init__(
        self,
        captured: CapturedModel,
        exit_layers: Sequence[int],
        prune_layers: tuple[int, ...],
        backend: Backend,
        precision: str,
        tokenizer: Tokenizer,
        config: BuildConfig,
        calibration: CalibrationTexts | None = None,
        selection: str = "top",
    ) -> None:
        self._segment: Segment = tap(captured, exit_layers, prune_layers, precision, selection)
        size = Range(1, BATCH_SIZE, BATCH_SIZE), Range(2, 128, captured.max_length)
        samples = None
        if precision == "int8" and calibration is not None:
            (samples,) = record_inputs((self._segment,), (), calibration.batches)
        plan = backend.build(self._segment, OptimizationProfile(*size), config, samples)
        self._engine: Engine = backend.load(plan, self._segment, config)
        self._tokenizer = tokenizer

    def collect(self, encoded: Sequence[TokenIds], schedule: KeepSchedule, stage: Stage) -> Features:
        """Runs all texts with one schedule of keep ratios."""
        arrays: dict[str, np.ndarray] = {}
        done = 0
        for batch in batches_by_length([len(tokens) for tokens in encoded], BATCH_SIZE):
            outputs = self._engine(self._inputs([encoded[i] for i in batch], schedule))
            for name, value in outputs.items():
                if name not in arrays:
                    arrays[name] = np.empty((len(encoded), *value.shape[1:]), np.float32)
                arrays[name][batch] = value
            done += len(batch)
            stage(done / len(encoded))
        return Features.from_arrays(arrays)

    def _inputs(self, encoded: Sequence[TokenIds], schedule: KeepSchedule) -> dict[str, np.ndarray]:
        batch = self._tokenizer.pad(encoded)
        inputs = {name: batch[name] for name in self._segment.input_names if name in batch}
        if self._segment.prunes_by_threshold:
            thresholds = dict(zip(schedule.prune_layers, schedule.token_thresholds, strict=True))
            for layer in self._segment.prune_layers:
                inputs[f"token_threshold_{layer}"] = np.array([thresholds.get(layer, 0.0)], np.float32)
            return inputs
        length = batch["attention_mask"].sum(1)
        ratios = dict(zip(schedule.prune_layers, schedule.keep_ratios, strict=True))
        for layer in self._segment.prune_layers:
            length = count_kept(ratios.get(layer, 1.0), length)
            inputs[f"num_kept_{layer}"], inputs[f"slots_{layer}"] = length, np.arange(int(length.max()))
        return inputs


def keep_schedules(num_layers: int) -> tuple[tuple[int, ...], tuple[KeepSchedule, ...]]:
    """Layers that may prune, and schedules of keep ratios to try: none, uniform, and late ones.

    Up to six layers prune, evenly spread, never the first: importance is worth little there.
    """
    step = -(-num_layers // 6)
    layers = tuple(range(1, num_layers, step)) or (0,)
    uniform = [(ratio,) * len(layers) for ratio in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)]
    late = [tuple(0.5 if layer >= num_layers // 3 else 1.0 for layer in layers)]
    return layers, tuple(KeepSchedule(layers, ratios) for ratios in dict.fromkeys((*uniform, *late)))


def exit_candidates(num_layers: int) -> tuple[int, ...]:
    """Off-ramps to train heads for: every layer of the first third, then every second one."""
    dense = max(2, num_layers // 3)
    return tuple(layer for layer in range(num_layers) if layer <= dense or (layer - dense) % 2 == 0)
