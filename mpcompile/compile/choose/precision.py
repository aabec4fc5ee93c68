"""Chooses a precision: points that keep every token are searched in each, and the better one is searched further.

All points of an artifact share one precision, as they share their engines.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpcompile.backends import find_backend
from mpcompile.compile.adapt.elastic import ElasticHeads
from mpcompile.compile.adapt.finetune import Adapted
from mpcompile.compile.choose.candidates import Candidate
from mpcompile.compile.choose.cost import measure_cost_model
from mpcompile.compile.choose.deployed import choose_on_segments
from mpcompile.compile.choose.heads import Taught, train_heads
from mpcompile.compile.choose.ngrams import NGramExit, teach_ngrams
from mpcompile.compile.choose.points import Chosen, Question, choose_from_texts
from mpcompile.compile.job import Job, Model, in_precision
from mpcompile.compile.measure.front import GAIN_BATCHES, Baseline, Pace, measure_engine_gains
from mpcompile.compile.measure.workload import Traffic
from mpcompile.compile.reference import build_unpruned, unpruned_point
from mpcompile.compile.settings import Settings
from mpcompile.compile.texts.parts import TextPart, Texts
from mpcompile.contract.backend import Target
from mpcompile.contract.front import Ranked, pick
from mpcompile.contract.precision import fastest_float
from mpcompile.cost.expected import predict_whole
from mpcompile.errors import BackendError, SettingError
from mpcompile.runtime.runtime import Runtime

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Offer:
    """What a precision promises, before engines are built.

    Attributes:
        target: with the precision.
        unpruned: the whole original as one engine.
        engine_gain: times the speed of the original that it has.
        chains: candidates for the front, see `choose_from_texts`.
    """

    target: Target
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

    def reaches(self, target_speedup: float) -> bool:
        """Whether it is that fast."""
        return self.speedup >= target_speedup


def check_precision(settings: Settings, has_texts: bool) -> None:
    """Refuses int8 where it cannot be made, before anything slow.

    Raises:
        SettingError: when there are no texts to calibrate on.
        BackendError: when the backend or what quantises for it is not installed.
    """
    if settings.precision != "int8":
        return
    if not has_texts:
        raise SettingError("precision: 'int8' is calibrated on texts; pass texts=... of the model's domain")
    backend = find_backend(settings.backend, settings.device, settings.builder)
    if "int8" in backend.precisions():
        backend.find_quantiser()


def choose_precision(
    job: Job, model: Model, target: Target, adapted: Adapted, parts: Texts, timing: tuple[Traffic, Pace]
) -> tuple[Offer, tuple[str, ...]]:
    """Searches points in the precision of the target, and in int8 too where precision is "auto".

    Args:
        job: settings, store and progress.
        model: the original.
        target: with the precision that was asked for, or the fastest float.
        adapted: the model that is deployed, fine-tuned or the original, and heads that were trained with it.
        parts: the texts, with the original's answers.
        timing: what is timed, and the pace of the original.

    Returns:
        The better one by `pick_offer`, and what is to be said about it.
    """
    part, settings, (traffic, pace) = parts.choosing, job.settings, timing
    precisions, notes = list_precisions(settings, target)
    taught = train_heads(job, adapted.model, target, parts)
    heads = (adapted.heads if settings.exits else None) or taught.heads
    workload = traffic.draw(min(pace.num_batches, GAIN_BATCHES))
    baselines = {}
    for name in precisions:
        with job.progress.stage(f"unpruned engine in {name}"):
            unpruned, point = build_unpruned(job, model, in_precision(target, name)), unpruned_point(model, name)
        names = model.captured.input_names
        baselines[name] = Baseline(pace.original, pace.num_threads, unpruned, point, workload, names)
    gains = measure_engine_gains(job.progress, baselines)
    fastest_first = sorted(zip(gains, baselines.items(), strict=True), key=lambda row: -row[0])
    engines = {name: baseline.unpruned for _, (name, baseline) in fastest_first}
    ngrams = teach_ngrams(job, model, parts, engines, taught.logits)
    notes = (*notes, *describe_teaching(taught, ngrams))
    questions = []
    for name, gain in zip(precisions, gains, strict=True):
        cost = measure_cost_model(job, model, in_precision(target, name), baselines[name].unpruned, traffic.length)
        questions.append(Question(part, cost, settings.target_speedup / gain, heads, ngrams))

    def choose(index: int, *, prunes: bool) -> Offer:
        ours = in_precision(target, precisions[index])
        question = dataclasses.replace(questions[index], prunes=prunes)
        chains = choose_from_texts(job, adapted.model, ours, question)
        if prunes and ours.precision == "int8":
            chains = tuple(choose_on_segments(job, adapted.model, ours, question, chosen) for chosen in chains)
        return Offer(ours, baselines[precisions[index]].unpruned, gains[index], chains)

    if len(precisions) == 1:
        return choose(0, prunes=True), notes
    # Keeping every token is enough to compare precisions: a pass over the texts for each, in place of six.
    drafts = [choose(index, prunes=False) for index in range(len(precisions))]
    expected = [_expect(offer, part, settings.batch_size) for offer in drafts]
    best = pick_offer(expected, settings.target_speedup, part.allowed_drop(settings))
    note = f"precision: {precisions[best]} was taken of {' and '.join(precisions)}, by what both do without pruning"
    logger.info(note)
    return choose(best, prunes=True), (*notes, note)


def describe_teaching(taught: Taught, ngrams: NGramExit | None) -> tuple[str, ...]:
    """How many texts exits were taught on, where they are others than those for choosing."""
    if not len(taught.logits) or ngrams is None:
        return ()
    heads = f"heads on {len(taught.logits):,} texts, " if isinstance(taught.heads, ElasticHeads) else ""
    return (f"exits were taught what the model answers: {heads}the one before the model on {ngrams.num_taught:,}",)


def list_precisions(settings: Settings, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Precisions to search points in, the float first, and what is to be said about those left out."""
    native = target.backend.precisions()
    if settings.precision != "auto" or "int8" not in native:
        return (target.precision,), ()
    if settings.selection == "threshold":
        return (target.precision,), ("int8 was not tried: engines that prune by threshold are not quantised",)
    try:
        target.backend.find_quantiser()
    except BackendError as error:
        return (target.precision,), (f"int8 was not tried: {error}",)
    return (fastest_float(native), "int8"), ()


def pick_offer(offers: Sequence[Sequence[Ranked]], target_speedup: float, max_drop: float | None) -> int:
    """Index of the offer with the point that `pick` takes of all; equals go to the offer that comes first.

    Args:
        offers: points of each precision, the more exact one first, or of each chain of engines.
        target_speedup: times the original.
        max_drop: loss that is allowed, None for any.
    """
    every = [(index, point) for index, points in enumerate(offers) for point in points]
    return every[pick([point for _, point in every], target_speedup, max_drop)][0]


def find_wanted(offer: Offer, part: TextPart, settings: Settings) -> Candidate:
    """The candidate of the first chain of engines that is expected to be returned.

    Args:
        offer: candidates.
        part: texts for choosing, with the original's answers.
        settings: the target, and what may be lost.
    """
    first = dataclasses.replace(offer, chains=offer.chains[:1])
    expected = _expect(first, part, settings.batch_size)
    return offer.chains[0].candidates[pick(expected, settings.target_speedup, part.allowed_drop(settings))]


def _expect(offer: Offer, part: TextPart, batch_size: int) -> list[Expected]:
    original_loss = float(np.mean(part.original_loss))
    unpruned_s = predict_whole(offer.chains[0].cost, part.lengths, batch_size) / batch_size
    return [
        Expected(offer.engine_gain * unpruned_s / candidate.seconds, candidate.loss - original_loss)
        for chosen in offer.chains
        for candidate in chosen.candidates
    ]
