"""Chooses points once more on the segments that are deployed: quantising a chain is not quantising the whole.

Each int8 segment is calibrated on what it is given, and smoothed within itself, so that its hidden states differ from
those of the model that was quantised in one piece. Where to cut is found on the latter; who leaves where is then
searched on the features that the chain of segments itself computes.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from mpcompile.compile.build import Blueprint, build_plans
from mpcompile.compile.choose.candidates import Candidate
from mpcompile.compile.choose.collector import Collector
from mpcompile.compile.choose.features import Features
from mpcompile.compile.choose.held_out import HeldOut
from mpcompile.compile.choose.point_search import PointSearch
from mpcompile.compile.choose.points import Chosen, Question, keep_prunes
from mpcompile.compile.choose.schedules import KeepSchedule
from mpcompile.compile.exit_log import LoggingRuntime
from mpcompile.compile.job import Job, Model
from mpcompile.compile.texts.parts import TextPart
from mpcompile.contract.backend import Target
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.profile import default_profile
from mpcompile.graph.segments import partition
from mpcompile.runtime.runner import make_runtime
from passes import FeatureTap


def choose_on_segments(job: Job, model: Model, target: Target, question: Question, chosen: Chosen) -> Chosen:
    """Points of a chain, searched on what its segments compute; the chain stays as it is.

    Args:
        job: settings, store and progress.
        model: the model.
        target: with the precision of the segments.
        question: the texts and the speed that is wanted.
        chosen: the chain.
    """
    if not chosen.heads or question.heads is None:
        return chosen  # one segment: it was quantised in one piece
    part, layers = question.part, chosen.prune_layers
    ratios = dict.fromkeys((tuple(1.0 for _ in layers), *(c.point.keep_ratios for c in chosen.candidates)))
    chain = Chain(job, model, target, chosen)
    held_out = []
    for each in ratios:
        features = chain.collect(part, each)
        logits = dict(question.logits_before) if chosen.ngrams is not None else {}
        logits |= question.heads.predict_held_out(features.pooled)
        if chosen.last_exit is None:
            logits[model.num_layers] = features.logits
        held_out.append(HeldOut.from_logits(KeepSchedule(layers, each), logits, part.task))
    pricer = question.price(job.settings.batch_size, target.precision)
    target_s = pricer.full_s / question.target_gain

    def uses(candidate: Candidate) -> tuple[int, int, float]:
        pruned = sum(ratio < 1.0 for ratio in candidate.point.keep_ratios)
        return len(candidate.point.exit_layers), pruned, -abs(math.log(candidate.seconds / target_s))

    with job.progress.stage("search operating points"):
        # All exits and prunes of the chain are there, used or not.
        aim = max(chosen.candidates, key=uses)
        candidates = PointSearch(held_out, pricer).search_around(aim, question.target_gain)
    found = tuple(dataclasses.replace(c, point=keep_prunes(c.point, layers)) for c in candidates)
    return dataclasses.replace(chosen, candidates=found)


class Chain:
    """The segments of a chain with taps in place of its exit heads.

    Args:
        job: settings, store and progress.
        model: the model.
        target: with the precision of the segments.
        chosen: the chain.
    """

    def __init__(self, job: Job, model: Model, target: Target, chosen: Chosen) -> None:
        self._job, self._model, self._target, self._chosen = job, model, target, chosen
        self._runtime: LoggingRuntime | None = None

    def collect(self, part: TextPart, keep_ratios: tuple[float, ...]) -> Features:
        """Features of all of the texts, from the store where they were computed before."""
        job, chosen = self._job, self._chosen
        exits = tuple(sorted(chosen.heads))
        schedule = KeepSchedule(chosen.prune_layers, keep_ratios)
        key = Collector(job, self._model, self._target, exits, part).key(schedule)
        with job.progress.stage("features of the segments") as stage:

            def run() -> dict[str, np.ndarray]:
                end = self._model.num_layers if chosen.last_exit is None else chosen.last_exit
                point = OperatingPoint((end,), (), chosen.prune_layers, keep_ratios, self._target.precision)
                log = self._load().log_texts(part.tokenizer, part.encoded, point, stage)
                return Features(log.logits[-1], dict(zip(exits, log.logits, strict=False))).to_arrays()

            arrays = job.store.fetch({**key, "kind": "features of segments", "last exit": chosen.last_exit}, run)
        return Features.from_arrays(arrays)

    def _load(self) -> LoggingRuntime:
        """Engines, built when they are needed."""
        if self._runtime is None:
            job, captured, chosen, target = self._job, self._model.captured, self._chosen, self._target
            taps = {layer: FeatureTap() for layer in chosen.heads}
            segments = partition(captured, taps, chosen.prune_layers, chosen.last_exit, target.precision)
            digest = f"tapped {self._model.digest} {chosen.prune_layers} {chosen.last_exit}"
            blueprint = Blueprint(segments, default_profile(captured.max_length), digest, job.calibration)
            plans = build_plans(target, blueprint, job.store)
            widths = [2 * captured.hidden_size] * len(segments)
            if chosen.last_exit is None:
                widths[-1] = captured.num_labels
            runtime = make_runtime(target, segments, plans, widths[-1], [np.inf] * len(segments))
            self._runtime = LoggingRuntime(runtime, widths)
        return self._runtime
