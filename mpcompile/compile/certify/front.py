"""Tests the front on texts that nothing was chosen on: which points keep within the loss that is allowed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mpcompile.compile.certify.drop import Counts
from mpcompile.compile.certify.point_answers import PointAnswers
from mpcompile.compile.certify.sequence import Certificate, find_certified
from mpcompile.compile.certify.sizes import check_texts, texts_needed
from mpcompile.compile.choose.candidates import Candidate
from mpcompile.compile.settings import Settings
from mpcompile.compile.texts.parts import TextPart, count_held_out
from mpcompile.contract.front import Choice, MeasuredPoint, choose_point, describe_front, pick
from mpcompile.errors import TargetUnreachable

FAR_SLOWER = 2.5
"""Times slower than the point that is wanted: such points are not tested."""
ALMOST = 0.2
"""Share of the loss that is allowed, by which a point counts as hardly lossier than another."""
MOST_BETWEEN = 4
"""Points tested between the least lossy one and the one that is wanted."""


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


def count_needed(settings: Settings, point: Candidate, part: TextPart) -> int:
    """About how many held-out texts certify a point nine times in ten, from what it loses on the texts for choosing.

    Args:
        settings: options.
        point: that is wanted; it loses at most `max_drop` there.
        part: texts for choosing, with the original's answers.
    """
    assert settings.max_drop is not None
    original_loss = part.original_loss if part.has_accuracy else None
    counts = Counts.of(part.task.differs(point.answer, part.truth), original_loss)
    # A text more of each kind: where none was lost, that is not known to be impossible.
    lost, won = (counts.lost + 1) / counts.texts, None if counts.won is None else (counts.won + 1) / counts.texts
    needed = texts_needed(lost, won, settings.max_drop, settings.confidence)
    # (1.64 + 1.28)**2 / 1.64**2 = 3.2, of a normal error at 95%: `needed` is for half of the times.
    return 0 if needed is None else 3 * needed


def sequence_of(front: Sequence[MeasuredPoint], target: int, max_drop: float) -> tuple[int, ...]:
    """The order in which points are tested, decided by time and by the texts for choosing alone.

    The first one is the slowest of those that lose hardly more than the least lossy one, see `ALMOST`: where it fails,
    nothing is certified. Then come others from slow to fast: what is faster loses more, or will on other texts. So
    where one fails, the fastest of those before it is returned. Far slower ones than the one that is wanted are left
    out, and of those between at most `MOST_BETWEEN` are tested, for the time that it takes to run them.

    Args:
        front: measured points.
        target: the one that is wanted.
        max_drop: loss that is allowed.
    """
    known = [i for i, point in enumerate(front) if point.drop is not None]
    by_speed = sorted(known, key=lambda i: front[i].speedup)
    least = min(front[i].drop or 0.0 for i in known)
    first = next(i for i in by_speed if (front[i].drop or 0.0) <= least + ALMOST * max_drop)
    slowest = max(front[target].speedup / FAR_SLOWER, front[first].speedup)
    slower = [i for i in by_speed if slowest <= front[i].speedup < front[target].speedup and i != first]
    picked = np.linspace(0, len(slower) - 1, min(MOST_BETWEEN, len(slower))).round().astype(int)
    faster = [i for i in by_speed if front[i].speedup >= front[target].speedup and i != first]
    return (first, *(slower[i] for i in picked), *faster)


def certify_front(
    settings: Settings, front: tuple[MeasuredPoint, ...], answers: PointAnswers
) -> tuple[tuple[MeasuredPoint, ...], Choice]:
    """Marks the points that lose at most `max_drop`, all of them at once with `confidence`, and picks one of them.

    Args:
        settings: options.
        front: measured points.
        answers: to held-out texts.

    Returns:
        The front, and the certified point that loses least among those that reach the target, or the fastest one.

    Raises:
        TargetUnreachable: when no point passes.
    """
    assert settings.max_drop is not None
    wanted = pick(front, settings.target_speedup, settings.max_drop)
    sequence = sequence_of(front, wanted, settings.max_drop)
    certificate = find_certified(
        map(answers.loss, sequence), answers.original_loss, settings.max_drop, settings.confidence
    )
    passed = sequence[: certificate.num_certified]
    front = tuple(dataclasses.replace(point, certified=i in passed) for i, point in enumerate(front))
    if not passed:
        raise TargetUnreachable(_describe_none(settings, front, sequence[0], certificate), front)
    choice = choose_point([front[i] for i in passed], settings.target_speedup)
    index = passed[choice.index]
    if choice.warning is None:
        return front, Choice(index)
    failed = sequence[len(passed)] if len(passed) < len(sequence) else None
    return front, Choice(index, _describe_shortfall(settings, front, index, failed, certificate))


def confirm_front(settings: Settings, front: tuple[MeasuredPoint, ...], bound: float, answers: PointAnswers) -> Choice:
    """Picks a point whose loss is within a bound, on held-out texts, too.

    A point that loses more there, by more than the standard error, is left, and what the texts for choosing hid of
    its loss is added to all that are lossier, or as lossy and no slower.

    Args:
        settings: options.
        front: measured points.
        bound: loss that is allowed.
        answers: to held-out texts.
    """
    rows, seen = list(front), set[int]()
    while True:
        choice = choose_point(rows, settings.target_speedup, bound)
        if choice.index in seen:
            return choice
        seen.add(choice.index)
        counts, taken = answers.count(choice.index), rows[choice.index]
        assert taken.drop is not None
        if counts.drop - counts.standard_error <= bound:
            return choice
        hidden, least = max(counts.drop - taken.drop, 0.0), (taken.drop, taken.speedup)
        rows = [
            dataclasses.replace(row, drop=row.drop + hidden)
            if row.drop is not None and (row.drop, row.speedup) >= least
            else row
            for row in rows
        ]


def _describe_none(settings: Settings, front: Sequence[MeasuredPoint], first: int, certificate: Certificate) -> str:
    return (
        f"max_drop={settings.max_drop:g} with confidence={settings.confidence:g}: no point is certified. Of the one "
        f"that loses least ({front[first].speedup:.2f}x) "
        f"{certificate.describe_failure()}. Allow a larger drop or less confidence, or raise max_texts. The "
        f"front, as seen on the texts for choosing:\n{describe_front(front)}"
    )


def _describe_shortfall(
    settings: Settings, front: Sequence[MeasuredPoint], taken: int, failed: int | None, certificate: Certificate
) -> str:
    said = (
        f"target_speedup={settings.target_speedup:g} is not reached with max_drop={settings.max_drop:g} and "
        f"confidence={settings.confidence:g}: the fastest certified point was taken: {front[taken].describe()}"
    )
    if failed is None:
        return f"{said}. No point is faster"
    return f"{said}. The next one, {front[failed].speedup:.2f}x, is not certified: {certificate.describe_failure()}"
