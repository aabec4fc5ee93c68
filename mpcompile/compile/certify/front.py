"""Certifies the front: tests its points on the half of the texts that nothing was chosen on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from mpcompile.compile.certify import Certificate, check_texts, find_certified
from mpcompile.compile.job import Job
from mpcompile.compile.settings import Settings
from mpcompile.compile.texts.parts import TextPart, count_held_out
from mpcompile.contract.front import MeasuredPoint, describe_front
from mpcompile.errors import TargetUnreachable
from mpcompile.runtime.runtime import Runner


def check_amount(settings: Settings, given: int, labelled: bool) -> None:
    """Refuses a `max_drop` that the texts cannot show of any point, before anything slow is done.

    Args:
        settings: options.
        given: number of texts.
        labelled: whether they have labels that say which answers are right.

    Raises:
        DataError: when the texts are too few.
    """
    if settings.max_drop is not None:
        used = min(given, settings.max_texts)
        held_out = count_held_out(settings, used)
        check_texts(used, held_out, settings.max_drop, settings.confidence, labelled=labelled)


def sequence_of(front: Sequence[MeasuredPoint], chosen: int) -> tuple[int, ...]:
    """The order in which points are tested, decided on the texts for choosing alone.

    The chosen point is first, so that it is tested at the whole level: what is asked for is that one point. The
    others follow for `set_speedup`, the least lossy first, which on a front is from slow to fast.
    """
    others = (i for i in range(len(front)) if i != chosen and front[i].drop is not None)
    return (chosen, *sorted(others, key=lambda i: (front[i].drop, front[i].speedup)))


def certify_front(
    job: Job, runtime: Runner, front: tuple[MeasuredPoint, ...], chosen: int, part: TextPart
) -> tuple[MeasuredPoint, ...]:
    """Marks the points that lose at most `max_drop`, all of them at once with `confidence`.

    Args:
        job: the options.
        runtime: the engines.
        front: measured points.
        chosen: the one to be returned.
        part: held-out texts, with the original's answers.

    Raises:
        TargetUnreachable: when the chosen point does not pass.
    """
    settings, sequence = job.settings, sequence_of(front, chosen)
    assert settings.max_drop is not None
    original_loss = part.task.differs(part.original_answer, part.truth) if part.has_accuracy else None
    losses = _run(job, runtime, front, sequence, part)
    certificate = find_certified(losses, original_loss, settings.max_drop, settings.confidence)
    passed = sequence[: certificate.num_certified]
    front = tuple(dataclasses.replace(point, certified=i in passed) for i, point in enumerate(front))
    if not passed:
        raise TargetUnreachable(_describe_failure(settings, front, chosen, certificate), front)
    return front


def _run(
    job: Job, runtime: Runner, front: Sequence[MeasuredPoint], sequence: Sequence[int], part: TextPart
) -> Iterator[np.ndarray]:
    for number, i in enumerate(sequence):
        with job.progress.stage(f"certify point {number + 1} of {len(sequence)}") as stage:
            result = part.answer(runtime, front[i].point, stage)
        yield part.task.differs(part.task.answers(result.logits), part.truth)


def _describe_failure(settings: Settings, front: Sequence[MeasuredPoint], chosen: int, certificate: Certificate) -> str:
    return (
        f"target_speedup={settings.target_speedup:g} with max_drop={settings.max_drop:g} and "
        f"confidence={settings.confidence:g}: the point that loses least of those that are fast enough "
        f"({front[chosen].speedup:.2f}x) is not certified. {certificate.describe_failure(held_out_share=0.5)}. Give "
        f"more texts (max_texts={settings.max_texts} are used at most), ask for less speed, or allow a larger drop or "
        f"less confidence. The front, as seen on the texts for choosing:\n{describe_front(front)}"
    )
