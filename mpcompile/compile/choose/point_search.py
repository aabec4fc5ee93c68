"""The search: exits, thresholds and keep ratios -> a Pareto front of operating points around a target.

Shapes: N texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mpcompile.compile.choose.candidates import SMALL_LOSS, Candidate, bridge, pareto_front, thin
from mpcompile.compile.choose.exit_thresholds import fill_gaps, search_thresholds
from mpcompile.compile.choose.held_out import HeldOut
from mpcompile.compile.choose.pricing import PRICES, Pricer
from mpcompile.compile.choose.schedules import KeepSchedule

AIM = 1.1
"""Predicted speed that is aimed at, over the target: what a prediction may be off."""
MIN_AIM = 2.0
"""Times the unpruned model that is aimed at, at least: the exits of a model at full speed are no front."""
AIM_PRICES = PRICES[::4]


@dataclass(frozen=True)
class Aim:
    """The point that a chain of engines is built for.

    Attributes:
        candidate: the point.
        price: of an error that led to it, times the seconds of the unpruned model.
    """

    candidate: Candidate
    price: float


class PointSearch:
    """Searches one model's operating points on held-out texts, from cached answers alone.

    All points of a front run through one chain of engines, and what one of them uses, all of them pay for: an exit
    is a call more, a prune sorts tokens also where it keeps all of them. So the chain is built for one point, the
    best at the target, and the front is searched within its exits and prunes. What comes after its last exit costs
    it nothing: the rest of the model stays, for the slow end of the front.

    Args:
        held_out: one per schedule; the first does not prune.
        pricer: of the same texts.
    """

    def __init__(self, held_out: Sequence[HeldOut], pricer: Pricer) -> None:
        self._held_out = tuple(held_out)
        self._pricer = pricer
        self._full_s = pricer.full_s

    def search(self, target_gain: float, on_step: Callable[[float], None] = lambda _: None) -> tuple[Candidate, ...]:
        """The Pareto front, slowest first; all its points share the exits and prunes of the best one at the target.

        Args:
            target_gain: times the speed of the unpruned model that is wanted.
            on_step: told the share done.
        """
        return self.search_around(self.find_aim(target_gain, on_step).candidate, target_gain)

    def find_aim(self, target_gain: float, on_step: Callable[[float], None] = lambda _: None) -> Aim:
        """The point that loses least among those that are predicted to meet a target, each in a chain of its own.

        Where none does, the fastest.
        """
        solved: list[Aim] = []
        for i, held_out in enumerate(self._held_out):
            solved.extend(Aim(self._pricer.solve(held_out, price * self._full_s), price) for price in AIM_PRICES)
            on_step((i + 1) / len(self._held_out))
        target_s = self._full_s / max(target_gain * AIM, MIN_AIM)
        meeting = [aim for aim in solved if aim.candidate.seconds <= target_s]
        if not meeting:
            return min(solved, key=lambda aim: aim.candidate.seconds)
        return min(meeting, key=lambda aim: (aim.candidate.loss, aim.candidate.seconds))

    def search_around(self, aim: Candidate, target_gain: float) -> tuple[Candidate, ...]:
        """The front within the exits and prunes of one point, and of what comes after its last exit.

        Its slow end is the whole model with every token, also where a faster point happens to lose as little on these
        texts: of all it is the surest to lose little on others. It is left out where it loses plainly more, and where
        enough texts show that the faster point answers as it does.
        """
        last = max(self._held_out[0].entropy)
        exits = tuple(sorted({*aim.point.exit_layers, last}))
        prunes = KeepSchedule(aim.point.prune_layers, aim.point.keep_ratios).pruned_layers()
        everyone = np.array([0.0] * (len(exits) - 1) + [2.0])  # all run to the last layer
        candidates: list[Candidate] = []
        for held_out in self._held_out:
            if not set(held_out.schedule.pruned_layers()) <= set(prunes):
                continue
            table = self._pricer.table(held_out, exits, prunes)
            solved = [search_thresholds(table, price * self._full_s) for price in PRICES]
            for thresholds in (everyone, *solved, *fill_gaps(table, [*solved, everyone])):
                candidates.append(self._pricer.candidate(held_out, table, exits, thresholds))
        front, whole = pareto_front(candidates), candidates[0]  # the first schedule keeps every token
        if whole.seconds > front[0].seconds and _is_surer(whole, front[0]):
            front = (whole, *front)
        return thin(bridge(front, candidates), self._full_s / target_gain, aim.seconds)


def _is_surer(whole: Candidate, fast: Candidate) -> bool:
    """Whether the whole model may lose less on other texts than a faster point that loses least on these.

    Where both answer N texts alike, they differ on at most 3 / N of all, with 95% confidence ("rule of three", Hanley
    and Lippman-Hand 1983).
    """
    if whole.loss > fast.loss + SMALL_LOSS:
        return False
    return bool((whole.answer != fast.answer).any()) or 3.0 / len(whole.answer) > SMALL_LOSS
