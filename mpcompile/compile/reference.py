"""Answers of the original model, computed by an engine that is checked against it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

import numpy as np

from mpcompile.compile.build import Blueprint, build_plans
from mpcompile.compile.job import Job, Model
from mpcompile.compile.texts.parts import TextPart
from mpcompile.contract.backend import Target
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.profile import default_profile
from mpcompile.cost.model import CostModel
from mpcompile.graph.segments import partition
from mpcompile.runtime.runner import make_runtime
from mpcompile.runtime.runtime import Runtime
from mpcompile.runtime.tokens import batches_by_length

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Largest difference of a logit between the original and its fp32 engine: rounding in another order."""
NUM_CHECKED = 16


def unpruned_point(model: Model, precision: str) -> OperatingPoint:
    """The whole model, nothing pruned, no exit."""
    return OperatingPoint((model.num_layers,), precision=precision)


def build_unpruned(job: Job, model: Model, target: Target) -> Runtime:
    """The whole model as one engine: the baseline, and in fp32 the stand-in for the original."""
    segments = partition(model.captured, {}, precision=target.precision)
    profile = default_profile(model.captured.max_length)
    blueprint = Blueprint(segments, profile, f"unpruned {model.digest}", job.calibration)
    plans = build_plans(target, blueprint, job.store)
    never = [np.inf]  # the baseline is what people run today: one call for the batch as it came
    return make_runtime(target, segments, plans, model.captured.num_labels, never)


def group_by_length(unpruned: Runtime, cost: CostModel, num_labels: int, length: int) -> Runtime:
    """The same engine, with batches split by length where padding costs more than another call.

    Args:
        unpruned: one engine.
        cost: calibrated on the model.
        num_labels: C.
        length: tokens that are typical.
    """
    split_tokens = cost.split_tokens((unpruned.segments[-1].exit_layer,), length)
    return Runtime(unpruned.segments, unpruned.engines, num_labels, split_tokens)


def ask_original(job: Job, model: Model, target: Target, part: TextPart, name: str) -> TextPart:
    """Some texts with the logits of the original on them.

    An fp32 engine of the unpruned model answers, which is several times faster; it is compared with the
    original on `NUM_CHECKED` texts first, and where it differs the original itself answers all.
    """
    fingerprint = target.backend.fingerprint()
    key = {"kind": "original", "model": model.digest, "texts": part.digest, "backend": fingerprint}
    in_f32 = dataclasses.replace(target, precision="f32")
    with job.progress.stage(f"answers of the original ({name})") as stage:
        answers = job.store.fetch(key, lambda: {"logits": _answer(job, model, in_f32, part, stage)})
    return dataclasses.replace(part, original=answers["logits"])


def _answer(job: Job, model: Model, target: Target, part: TextPart, stage: Callable[[float], None]) -> np.ndarray:
    runtime, point = build_unpruned(job, model, target), unpruned_point(model, target.precision)
    checked = part.take(np.linspace(0, len(part.encoded) - 1, min(NUM_CHECKED, len(part.encoded))).astype(int))
    ours, theirs = checked.answer(runtime, point).logits, _run_original(job, model, checked, lambda _: None)
    difference = float(np.abs(ours - theirs).max())
    if difference <= TOLERANCE:
        return part.answer(runtime, point, stage).logits
    logger.warning("the fp32 engine differs from the original by %.2g in a logit; the original answers", difference)
    return _run_original(job, model, part, stage)


def _run_original(job: Job, model: Model, part: TextPart, stage: Callable[[float], None]) -> np.ndarray:
    logits = np.empty((len(part.encoded), model.captured.num_labels), np.float32)
    done = 0
    for batch in batches_by_length([len(tokens) for tokens in part.encoded], 16):
        logits[batch] = job.original.run(job.original.prepare(part.pad(batch), model.captured.input_names))
        done += len(batch)
        stage(done / len(part.encoded))
    return logits
