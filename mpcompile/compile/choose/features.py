"""Cached features: logits, and what exit heads read at every off-ramp, from one pass over the texts.

Everything after this (training heads, searching thresholds) reads these arrays and runs no model.

Shapes: N texts, D hidden size, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpcompile.compile.choose.schedules import KeepSchedule
from mpcompile.compile.recording import CalibrationTexts, record_inputs
from mpcompile.contract.backend import Engine, Target
from mpcompile.contract.inputs import LayerSetting, fill_inputs
from mpcompile.contract.operating_point import count_kept
from mpcompile.contract.profile import OptimizationProfile, Range
from mpcompile.contract.segment import Segment
from mpcompile.progress import Stage
from mpcompile.runtime.tokens import TokenIds, Tokenizer, batches_by_length

BATCH_SIZE = 32


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


def join_features(parts: Sequence[Features]) -> Features:
    """The texts of the first part, then those of the second, and so on."""
    arrays = [part.to_arrays() for part in parts]
    return Features.from_arrays({name: np.concatenate([each[name] for each in arrays]) for name in arrays[0]})


class FeatureCollector:
    """One engine of the whole model that returns features at every off-ramp.

    Args:
        segment: the model with taps, see `graph.segments.tap`.
        target: builds the engine, so that features come from the numerics that are deployed.
        max_length: tokens that the model reads.
        tokenizer: pads the texts.
        calibration: texts, for an engine in int8.
    """

    def __init__(
        self,
        segment: Segment,
        target: Target,
        max_length: int,
        tokenizer: Tokenizer,
        calibration: CalibrationTexts | None = None,
    ) -> None:
        self._segment, self._tokenizer = segment, tokenizer
        profile = OptimizationProfile(Range(1, BATCH_SIZE, BATCH_SIZE), Range(2, 128, max_length))
        samples = None
        if segment.precision == "int8" and calibration is not None:
            (samples,) = record_inputs((segment,), (), calibration.batches)
        plan = target.backend.build(segment, profile, target.config, samples)
        self._engine: Engine = target.backend.load(plan, segment, target.config)

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
        length, by_threshold = batch["attention_mask"].sum(1), self._segment.prunes_by_threshold
        ratios = dict(zip(schedule.prune_layers, schedule.keep_ratios, strict=True))
        thresholds = dict(zip(schedule.prune_layers, schedule.token_thresholds, strict=by_threshold))
        for layer in self._segment.prune_layers:
            if not by_threshold:
                length = count_kept(ratios.get(layer, 1.0), length)
            setting = LayerSetting(layer, length, int(length.max()), thresholds.get(layer, 0.0))
            inputs |= fill_inputs(self._segment.input_names, setting)
        return inputs
