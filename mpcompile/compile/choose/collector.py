"""Features and held-out answers of one part of the texts under several schedules, kept in the store."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from mpcompile.compile.adapt.elastic import ElasticHeads
from mpcompile.compile.adapt.frozen import TrainedHeads
from mpcompile.compile.adapt.quantiles import find_token_thresholds
from mpcompile.compile.choose.features import FeatureCollector, Features
from mpcompile.compile.choose.held_out import HeldOut
from mpcompile.compile.choose.schedules import KeepSchedule, keep_schedules, list_schedules
from mpcompile.compile.job import Job, Model
from mpcompile.compile.recording import describe_calibration
from mpcompile.compile.texts.parts import TextPart
from mpcompile.contract.backend import Target
from mpcompile.graph.segments import tap
from mpcompile.store.results import digest_arrays

THRESHOLD_SCALES = (0.0, 0.5, 1.0, 1.5)
"""Shares of learned thresholds that are tried; at 0 nothing is pruned."""


class Collector:
    """Features of one part of the texts under several schedules, from the store where they were computed before.

    Args:
        job: settings and store.
        model: the model.
        target: what computes them.
        exits: off-ramps to tap.
        part: texts.
    """

    def __init__(self, job: Job, model: Model, target: Target, exits: tuple[int, ...], part: TextPart) -> None:
        self._job, self._model, self._target, self._exits, self._part = job, model, target, exits, part
        self.prune_layers, self._usual = keep_schedules(model.num_layers)
        self._memory: dict[KeepSchedule, Features] = {}

    @property
    def unpruned(self) -> KeepSchedule:
        """The schedule that keeps every token."""
        keeps_all = self._usual[0]
        if self._job.settings.selection == "top":
            return keeps_all
        return dataclasses.replace(keeps_all, token_thresholds=(0.0,) * len(self.prune_layers))

    @functools.cached_property
    def schedules(self) -> tuple[KeepSchedule, ...]:
        """Schedules to try, the unpruned one first."""
        settings = self._job.settings
        if not settings.pruning:
            return (self.unpruned,)
        if settings.selection == "threshold":
            return _with_thresholds(self._model, self._part, self._usual)
        return list_schedules(self._model.num_layers, True, settings.plan)

    def key(self, schedule: KeepSchedule) -> dict[str, object]:
        """Everything that the features of a schedule depend on."""
        return {
            "kind": "features",
            "model": self._model.digest,
            "texts": self._part.digest,
            "exits": self._exits,
            "prunes": schedule.prune_layers,
            "keep_ratios": schedule.keep_ratios,
            **({"token_thresholds": schedule.token_thresholds} if schedule.token_thresholds else {}),
            "backend": self._target.backend.name,
            "fingerprint": self._target.backend.fingerprint(),
            "precision": self._target.precision,
            **describe_calibration(self._target.backend, self._target.precision, self._job.calibration),
        }

    def collect(self, schedule: KeepSchedule) -> Features:
        """Features of all of the texts."""
        if schedule not in self._memory:
            ratios = schedule.keep_ratios
            keeps = "all" if min(ratios) == 1.0 else " ".join(f"{ratio:g}" for ratio in ratios)
            with self._job.progress.stage(f"features, keep {keeps}") as stage:
                arrays = self._job.store.fetch(
                    self.key(schedule), lambda: self._engine.collect(self._part.encoded, schedule, stage).to_arrays()
                )
            self._memory[schedule] = Features.from_arrays(arrays)
        return self._memory[schedule]

    def run(self, schedule: KeepSchedule, index: np.ndarray) -> Features:
        """Features of some of the texts, which are not stored."""
        return self._engine.collect(self._part.take(index).encoded, schedule, lambda _: None)

    @functools.cached_property
    def _engine(self) -> FeatureCollector:
        captured, precision = self._model.captured, self._target.precision
        segment = tap(captured, self._exits, self.prune_layers, precision, self._job.settings.selection)
        return FeatureCollector(segment, self._target, captured.max_length, self._part.tokenizer, self._job.calibration)


class HeldOutAnswers:
    """Answers of some of the texts under any schedule, from the store where they were computed before.

    Args:
        job: keeps them.
        model: the model.
        collector: of its features.
        heads: exit heads, None for no exits.
        known: logits of the texts at exits that no schedule changes, (N, C) by exit.
    """

    def __init__(
        self,
        job: Job,
        model: Model,
        collector: Collector,
        heads: TrainedHeads | ElasticHeads | None,
        known: Mapping[int, np.ndarray] | None = None,
    ) -> None:
        self._job, self._model, self._collector, self._heads = job, model, collector, heads
        self._known = dict(known or {})
        weights = {} if heads is None else {k: v.numpy() for k, v in heads.stack.state_dict().items()}
        self.heads_digest = digest_arrays({**weights, **{f"exit {k}": v for k, v in self._known.items()}})

    def __call__(self, schedule: KeepSchedule, precision: str, index: np.ndarray) -> HeldOut:
        """Answers of the texts at some positions."""
        key = {**self._collector.key(schedule), "kind": "answers", "heads": self.heads_digest, "precision": precision}
        key["part"] = [int(index[0]), int(index[-1]), len(index)]

        def compute() -> dict[str, np.ndarray]:
            features = self._collector.run(schedule, index)
            logits = {exit_layer: values[index] for exit_layer, values in self._known.items()}
            logits |= {} if self._heads is None else self._heads.predict_held_out(features.pooled, index)
            logits[self._model.num_layers] = features.logits
            return HeldOut.from_logits(schedule, logits, self._model.task).to_arrays()

        return HeldOut.from_arrays(schedule, self._job.store.fetch(key, compute))


def _with_thresholds(model: Model, part: TextPart, schedules: tuple[KeepSchedule, ...]) -> tuple[KeepSchedule, ...]:
    """Schedules of thresholds: shares of the learned ones, else thresholds that keep what given schedules keep."""
    layers, ones = schedules[0].prune_layers, schedules[0].keep_ratios
    if model.token_thresholds is not None:
        learned = [model.token_thresholds[layer] for layer in layers]
        scaled = [tuple(scale * threshold for threshold in learned) for scale in THRESHOLD_SCALES]
        return tuple(KeepSchedule(layers, ones, thresholds) for thresholds in scaled)
    captured, tokenizer, encoded = model.captured, part.tokenizer, part.encoded
    return tuple(
        KeepSchedule(layers, s.keep_ratios, find_token_thresholds(captured, tokenizer, encoded, s)) for s in schedules
    )
