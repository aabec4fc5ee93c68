"""The exit before the model, as points are chosen with it: taught, answered on texts that it was not taught on, timed.

Shapes: N texts for choosing, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mpcompile.compile.adapt.ngrams import Grams, train_ngrams
from mpcompile.compile.choose.heads import TEACH_SHARE
from mpcompile.compile.choose.teaching import chunks_in_time
from mpcompile.compile.job import Job, Model
from mpcompile.compile.reference import unpruned_point
from mpcompile.compile.texts.parts import TextPart, Texts
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.cost.timing import measure_interleaved
from mpcompile.runtime.ngrams import FirstExit, NGramClassifier
from mpcompile.runtime.runtime import Runtime
from mpcompile.runtime.tokens import TokenIds, batches_by_length

BATCH_SIZE = 32
NUM_COMPARED, MOST_OTHER = 256, 0.02
"""Texts, and share of them, that an engine may answer otherwise than the original and still teach."""
NUM_FOLDS = 4
TIMED_BATCHES = 32


@dataclass(frozen=True)
class NGramExit:
    """An exit before the model.

    Attributes:
        first_exit: what is deployed.
        held_out: logits on the texts for choosing, each by a classifier that was not taught on the text, (N, C).
        num_taught: texts that it was taught on.
        call_s: seconds of a call, whatever it holds.
        text_s: seconds of each text in it.
    """

    first_exit: FirstExit
    held_out: np.ndarray
    num_taught: int
    call_s: float
    text_s: float

    def predict_s(self, batch_size: float) -> float:
        """Seconds of a batch."""
        return self.call_s + self.text_s * batch_size


def teach_ngrams(
    job: Job, model: Model, parts: Texts, engines: Mapping[str, Runtime], known: np.ndarray
) -> NGramExit | None:
    """Teaches a classifier of n-grams what the model answers; None where that is not wanted or there are no classes.

    Args:
        job: settings, store and progress.
        model: the original.
        parts: the texts; those that nothing else needs are taught on, for `teach_minutes` at most.
        engines: the whole model by precision, the fastest first.
        known: logits of the first of the texts to teach on, (M, C).
    """
    settings = job.settings
    if not settings.exits or not settings.teach_minutes or settings.adapt == "none" or not model.task.has_exits:
        return None
    choosing = parts.choosing
    assert choosing.original is not None
    taught, logits = _ask_engines(job, model, parts, engines, known)
    multi_label, tokenizer = model.task.kind == "multi_label", choosing.tokenizer
    with job.progress.stage("teach the exit before the model") as stage:
        if len(taught) >= len(choosing.encoded):
            classifier = train_ngrams(Grams.count(tokenizer, taught), logits, multi_label, stage)
            held_out = answer_before(classifier, choosing)
        else:
            taught, logits = (*choosing.encoded, *taught), np.concatenate([choosing.original, logits])
            grams = Grams.count(tokenizer, taught)
            classifier, held_out = _cross_fit(grams, logits, choosing, multi_label, settings.seed)
    first_exit = FirstExit(classifier, model.task)
    return NGramExit(first_exit, held_out, len(taught), *_time(first_exit, choosing))


def _ask_engines(
    job: Job, model: Model, parts: Texts, engines: Mapping[str, Runtime], known: np.ndarray
) -> tuple[Sequence[TokenIds], np.ndarray]:
    """Texts, as many as there is time for, and answers: known ones, then of the fastest engine that agrees enough."""
    part, minutes = parts.teaching, job.settings.teach_minutes
    if part is None:
        return (), known
    key = {"kind": "taught", "model": model.digest, "texts": part.digest, "minutes": minutes, "known": len(known)}
    found = job.store.fetch(key, lambda: {"logits": _ask_in_time(job, model, parts, engines, known)})["logits"]
    return part.encoded[: len(found)], found


def _ask_in_time(job: Job, model: Model, parts: Texts, engines: Mapping[str, Runtime], known: np.ndarray) -> np.ndarray:
    """Logits of the known texts and of those that there is time for; a run that was stopped goes on with the next."""
    part = parts.teaching
    assert part is not None
    precision = _find_teacher(model, parts.choosing, engines)
    engine, point, logits = engines[precision], unpruned_point(model, precision), [known]
    seconds = 60.0 * job.settings.teach_minutes * (1.0 - TEACH_SHARE if len(known) else 1.0)
    with job.progress.stage("answers to teach on") as stage:
        for index in chunks_in_time(len(known), len(part.encoded), seconds, stage):
            logits.append(ask_chunk(job, model, part.take(np.array(index)), engine, point))
    return np.concatenate(logits)


def ask_chunk(job: Job, model: Model, chunk: TextPart, engine: Runtime, point: OperatingPoint) -> np.ndarray:
    """Logits of texts, (N, C), from the store where they were asked for before."""
    key = {"kind": "taught chunk", "model": model.digest, "texts": chunk.digest, "precision": point.precision}
    return job.store.fetch(key, lambda: {"logits": chunk.answer(engine, point).logits})["logits"]


def _find_teacher(model: Model, choosing: TextPart, engines: Mapping[str, Runtime]) -> str:
    """The precision of the first engine that answers some texts as the original does, else of the last one."""
    some = choosing.take(np.arange(min(NUM_COMPARED, len(choosing.encoded))))
    for precision, engine in engines.items():
        answers = model.task.answers(some.answer(engine, unpruned_point(model, precision)).logits)
        if model.task.differs(answers, some.original_answer).mean() <= MOST_OTHER:
            break
    return precision


def _cross_fit(
    grams: Grams, targets: np.ndarray, choosing: TextPart, multi_label: bool, seed: int
) -> tuple[NGramClassifier, np.ndarray]:
    """A classifier taught on all texts, and logits of the first ones, those for choosing, by others not taught on them.

    Args:
        grams: of the texts for choosing, and of more.
        targets: logits of the model on them.
        choosing: the texts for choosing.
        multi_label: whether each label holds by itself.
        seed: of the parts.
    """
    count = len(choosing.encoded)
    folds = np.full(len(targets), -1)
    folds[:count] = np.random.default_rng(seed).permutation(count) % NUM_FOLDS
    held_out = np.empty((count, targets.shape[1]), np.float32)
    for fold in range(NUM_FOLDS):
        others, own = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        classifier = train_ngrams(grams.take(others), targets[others], multi_label)
        held_out[own] = answer_before(classifier, choosing.take(own))
    return train_ngrams(grams, targets, multi_label), held_out


def answer_before(classifier: NGramClassifier, part: TextPart) -> np.ndarray:
    """Logits of texts, (N, C)."""
    logits = np.empty((len(part.encoded), len(classifier.bias)), np.float32)
    for batch in batches_by_length([len(tokens) for tokens in part.encoded], BATCH_SIZE):
        logits[batch] = classifier(part.pad(batch))
    return logits


def _time(first_exit: FirstExit, part: TextPart) -> tuple[float, float]:
    """Seconds of a call, and of each text in it."""
    order, calls = np.random.default_rng(0).permutation(len(part.encoded)), {}
    for size in (1, BATCH_SIZE):
        starts = range(0, max(min(TIMED_BATCHES * size, len(order) - size), 1), size)
        batches = [part.pad(order[start : start + size]) for start in starts]
        calls[size] = [partial(first_exit, batch) for batch in batches]
    timings = measure_interleaved({str(size): each for size, each in calls.items()}, runs=3)
    one, many = timings["1"].median_s, timings[str(BATCH_SIZE)].median_s
    text_s = max(many - one, 0.0) / (BATCH_SIZE - 1)
    return max(one - text_s, 0.0), text_s
