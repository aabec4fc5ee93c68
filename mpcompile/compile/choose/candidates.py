"""Candidates: operating points with predicted time and loss, and the fronts that they form."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpcompile.contract.operating_point import OperatingPoint

MAX_POINTS = 16
USEFUL_LOSS = 0.02
"""Points that lose more than this beyond the best one are kept to show the end of the front, not to be used."""
GAP = 1.2
"""Times that neighbours on a front may differ by without another point between them."""
SMALL_LOSS = 0.01
"""A difference of losses that some hundred texts do not tell."""
NEAR = (0.6, 1.15)
"""Times of points that count as near a target, over the target's: those that may be taken for it once measured."""


@dataclass(frozen=True)
class Candidate:
    """An operating point with its predicted time and its loss.

    Attributes:
        point: its settings.
        seconds: predicted mean per text, for comparing candidates.
        loss: mean over the held-out texts.
        exit_layer: where each held-out text leaves, (N,).
        answer: answer to each held-out text, see `Task.answers`, (N, ...).
    """

    point: OperatingPoint
    seconds: float
    loss: float
    exit_layer: np.ndarray
    answer: np.ndarray


def pareto_front(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Candidates that no other one beats on both time and loss, slowest first."""
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.seconds, c.loss)):
        if not front or candidate.loss < front[-1].loss:
            front.append(candidate)
    return tuple(reversed(front))


def bridge(front: Sequence[Candidate], candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """A front with candidates in its gaps that are beaten by less than texts can tell.

    A fast point that happens to lose hardly more on these texts than one that takes twice its time leaves nothing
    between them on the front; on other texts it may lose more than is allowed.

    Args:
        front: slowest first.
        candidates: all there are.

    Returns:
        Slowest first: the front, and between two of its points the least lossy candidates about `GAP` apart in time.
    """
    between, apart = [], math.sqrt(GAP)
    for slow, fast in itertools.pairwise(front):
        steps = math.floor(math.log(slow.seconds / fast.seconds) / math.log(GAP))
        if steps == 0:
            continue
        # Half a gap from both: their likes, of which there are many, fill nothing.
        edges = np.geomspace(fast.seconds * apart, slow.seconds / apart, steps + 1)
        for low, high in itertools.pairwise(edges):
            inside = [c for c in candidates if low <= c.seconds < high and c.loss <= fast.loss + SMALL_LOSS]
            between += [min(inside, key=lambda c: (c.loss, c.seconds))] if inside else []
    return tuple(sorted((*front, *between), key=lambda c: -c.seconds))


def thin(
    front: Sequence[Candidate], target_s: float | None = None, aim_s: float | None = None
) -> tuple[Candidate, ...]:
    """At most `MAX_POINTS` of a front, spread in log time: most of them where little is lost, both ends stay.

    Args:
        front: slowest first.
        target_s: time that is wanted; half of the points are then kept near it.
        aim_s: time that was aimed at; the slowest point that takes no longer is kept, too.
    """
    least = min(candidate.loss for candidate in front)
    near = {
        i for i, c in enumerate(front) if target_s is not None and NEAR[0] * target_s <= c.seconds <= NEAR[1] * target_s
    }
    useful = [i for i, c in enumerate(front) if i not in near and not c.loss > least + USEFUL_LOSS]
    beyond = [i for i in range(len(front)) if i not in near and i not in set(useful)]
    kept = _spread(front, sorted(near), MAX_POINTS // 2 - (aim_s is not None))
    kept |= _spread(front, useful, MAX_POINTS - 3 - len(kept)) | _spread(front, beyond, 3)
    if aim_s is not None:
        kept |= set([i for i, c in enumerate(front) if c.seconds <= aim_s][:1])
    return tuple(front[i] for i in sorted(kept))


def _spread(front: Sequence[Candidate], indices: Sequence[int], count: int) -> set[int]:
    """At most `count` of some candidates, evenly spread in log time, first and last among them."""
    if len(indices) <= count:
        return set(indices)
    log_s = np.log([front[i].seconds for i in indices])
    return {indices[int(np.abs(log_s - wanted).argmin())] for wanted in np.linspace(log_s[0], log_s[-1], count)}
