"""Chooses a precision: searches points in each that may be taken, and keeps the better front.

All points of an artifact share one precision, as they share their engines.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpcompile.backends.openvino.quantise import find_missing_maybe, find_quantiser
from mpcompile.compile.adapt.elastic import ElasticHeads
from mpcompile.compile.choose.choosing import Chosen, choose_from_texts, measure_cost_model, train_heads
from mpcompile.compile.context import Context, TextPart
from mpcompile.compile.measure.front import Pace, measure_engine_gains
from mpcompile.compile.recording import CalibrationTexts
from mpcompile.compile.reference import build_unpruned
from mpcompile.compile.settings import Settings
from mpcompile.contract.precision import fastest_float
from mpcompile.cost.expected import predict_whole
from mpcompile.errors import SettingError
from mpcompile.runtime.runtime import Runtime

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InPrecision:
    """The result of optimizing in one precision, before engines are built.

    Attributes:
        context: with that precision, and the fine-tuned model where there is one.
        unpruned: the whole original as one engine.
        engine_gain: times the speed of the original that it has.
        chains: candidates for the front, see `choose_from_texts`.
    """

    context: Context
    unpruned: Runtime
    engine_gain: float
    chains: tuple[Chosen, ...]


@dataclass(frozen=True)
class Expected:
    """Expected speedup and loss of a candidate.

    Attributes:
        speedup: over the original.
        drop: loss beyond the original's on held-out texts.
    """

    speedup: float
    drop: float


def check_precision(settings: Settings, has_texts: bool) -> None:
    """Refuses int8 where it cannot be made, before anything slow.

    Raises:
        SettingError: when there are no texts to calibrate on.
        BackendError: when nncf is not installed.
    """
    if settings.precision != "int8":
        return
    if not has_texts:
        raise SettingError("precision: 'int8' is calibrated on texts; pass texts=... of the model's domain")
    find_quantiser()


def choose_precision(
    context: Context, adapted: Context, trained: ElasticHeads | None, part: TextPart, length: int, pace: Pace
) -> tuple[InPrecision, tuple[str, ...]]:
    """Searches points in the precision of the context, and in int8 too where precision is "auto".

    Args:
        context: with the precision that was asked for, or the fastest float.
        adapted: the context with a fine-tuned model, or `context` itself.
        trained: exit heads that were trained with it.
        part: texts for choosing, with the original's answers.
        length: their typical one.
        pace: of the original.

    Returns:
        The better one by `pick_offer`, and what is to be said about it.
    """
    assert context.tokenizer is not None
    calibration = CalibrationTexts.draw(context.tokenizer, part.encoded)
    precisions, notes = list_precisions(context)
    heads = trained if trained is not None and context.settings.exits else train_heads(adapted, part)
    context, adapted = (dataclasses.replace(c, calibration=calibration) for c in (context, adapted))
    unpruned = {}
    for name in precisions:
        with context.progress.stage(f"unpruned engine in {name}"):
            unpruned[name] = build_unpruned(context, name)
    gains = measure_engine_gains(context, unpruned, part, pace)
    offers = []
    for (name, engine), gain in zip(unpruned.items(), gains, strict=True):
        cost = measure_cost_model(dataclasses.replace(context, precision=name), engine, length)
        ours = dataclasses.replace(adapted, precision=name)
        chains = choose_from_texts(ours, cost, part, context.settings.target_speedup / gain, heads)
        offers.append(InPrecision(ours, engine, gain, chains))
    if len(offers) == 1:
        return offers[0], notes
    expected = [_expect(offer, part) for offer in offers]
    best = pick_offer(expected, context.settings.target_speedup, context.settings.max_drop)
    note = f"precision: {precisions[best]} was taken of {' and '.join(precisions)}, by what was predicted"
    logger.info(note)
    return offers[best], (*notes, note)


def list_precisions(context: Context) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Precisions to search points in, the float first, and what is to be said about those left out."""
    native = context.backend.precisions()
    if context.settings.precision != "auto" or "int8" not in native:
        return (context.precision,), ()
    if context.settings.selection == "threshold":
        return (context.precision,), ("int8 was not tried: engines that prune by threshold are not quantised",)
    missing = find_missing_maybe()
    if missing is not None:
        return (context.precision,), (f"int8 was not tried: {missing}",)
    return (fastest_float(native), "int8"), ()


def pick_offer(offers: Sequence[Sequence[Expected]], target_speedup: float, max_drop: float | None) -> int:
    """Index of the offer with the best candidate.

    With `max_drop` that is the fastest candidate that loses no more; without, the one that loses least among
    those that reach the target, or the fastest where none does. Where no candidate loses as little as
    `max_drop`, it is the one that loses least. Equals go to the offer that comes first.

    Args:
        offers: candidates of each precision, the more exact one first, or of each chain of engines.
        target_speedup: times the original.
        max_drop: loss allowed.
    """
    every = [(index, candidate) for index, candidates in enumerate(offers) for candidate in candidates]
    if max_drop is None:
        fitting = [(i, c) for i, c in every if c.speedup >= target_speedup]
        if not fitting:
            return max(every, key=lambda item: item[1].speedup)[0]
        return min(fitting, key=lambda item: (item[1].drop, -item[1].speedup))[0]
    fitting = [(i, c) for i, c in every if c.drop <= max_drop]
    if not fitting:
        return min(every, key=lambda item: (item[1].drop, -item[1].speedup))[0]
    return max(fitting, key=lambda item: item[1].speedup)[0]


def _expect(offer: InPrecision, part: TextPart) -> list[Expected]:
    original_loss = float(np.mean(part.task.differs(part.original_answer, part.truth)))
    size, cost = offer.context.settings.batch_size, offer.chains[0].cost
    unpruned_s = predict_whole(cost, part.lengths, size) / size
    return [
        Expected(offer.engine_gain * unpruned_s / candidate.seconds, candidate.loss - original_loss)
        for chosen in offer.chains
        for candidate in chosen.candidates
    ]
