"""Answers of the original, from an engine that is checked against it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

import numpy as np

from mpcompile.compile.build import build_plans
from mpcompile.compile.context import Context, TextPart
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.profile import default_profile
from mpcompile.graph.segments import partition
from mpcompile.runtime.answer import answer_texts
from mpcompile.runtime.runner import make_runtime
from mpcompile.runtime.runtime import Runtime
from mpcompile.runtime.tokens import batches_by_length

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Largest difference of a logit between the original and its fp32 engine: rounding in another order."""
NUM_CHECKED = 16


def unpruned_point(context: Context) -> OperatingPoint:
    """The whole model, nothing pruned, no exit."""
    return OperatingPoint((context.captured.num_layers,), precision=context.precision)


def build_unpruned(context: Context, precision: str) -> Runtime:
    """The whole model as one engine: the baseline, and in fp32 the stand-in for the original."""
    segments = partition(context.captured, {}, precision=precision)
    profile = default_profile(context.captured.max_length)
    plans = build_plans(
        context.backend,
        segments,
        profile,
        context.config,
        context.store,
        f"unpruned {context.digest}",
        calibration=context.calibration,
    )
    never = [np.inf]  # the baseline is what people run today: one call for the batch as it came
    return make_runtime(context.backend, segments, plans, context.config, context.captured.num_labels, never)


def ask_original(context: Context, part: TextPart, name: str) -> TextPart:
    """Some texts with the logits of the original on them.

    An fp32 engine of the unpruned model answers, which is several times faster; it is compared with the
    original on `NUM_CHECKED` texts first, and where it differs the original itself answers all.
    """
    key = {"kind": "original", "model": context.digest, "texts": part.digest, "backend": context.backend.fingerprint()}
    with context.progress.stage(f"answers of the original ({name})") as stage:
        answers = context.store.fetch(key, lambda: {"logits": _answer(context, part, stage)})
    return dataclasses.replace(part, original=answers["logits"])


def _answer(context: Context, part: TextPart, stage: Callable[[float], None]) -> np.ndarray:
    assert context.tokenizer is not None
    runtime, point = build_unpruned(context, "f32"), unpruned_point(context)
    checked = part.take(np.linspace(0, len(part.encoded) - 1, min(NUM_CHECKED, len(part.encoded))).astype(int))
    ours = answer_texts(runtime, point, context.tokenizer, checked.encoded).logits
    theirs = _run_original(context, checked, lambda _: None)
    difference = float(np.abs(ours - theirs).max())
    if difference <= TOLERANCE:
        return answer_texts(runtime, point, context.tokenizer, part.encoded, on_batch=stage).logits
    logger.warning("the fp32 engine differs from the original by %.2g in a logit; the original answers", difference)
    return _run_original(context, part, stage)


def _run_original(context: Context, part: TextPart, stage: Callable[[float], None]) -> np.ndarray:
    assert context.tokenizer is not None
    encoded = part.encoded
    logits = np.empty((len(encoded), context.captured.num_labels), np.float32)
    done = 0
    for batch in batches_by_length([len(tokens) for tokens in encoded], 16):
        inputs = context.tokenizer.pad([encoded[i] for i in batch])
        logits[batch] = context.original.run(context.original.prepare(inputs, context.captured.input_names))
        done += len(batch)
        stage(done / len(encoded))
    return logits
