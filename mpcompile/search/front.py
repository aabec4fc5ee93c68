"""The search: exits, thresholds and keep ratios -> a Pareto front of operating points.

Shapes: N texts, C classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

from mpcompile.cost.model import CostModel
from mpcompile.features import KeepSchedule
from mpcompile.operating_point import OperatingPoint, count_left
from mpcompile.search.thresholds import ExitTable, search_thresholds

MAX_EXITS = 4
"""Off-ramps besides the last: each costs a call of an engine (DESIGN.md: 2 to 4 exits earn their sync)."""
PRICES = tuple(float(price) for price in np.geomspace(0.3, 300.0, 44))
"""Errors are priced at these many times the seconds of the unpruned model."""
MAX_POINTS = 16
USEFUL_LOSS = 0.02
"""Points that lose more than this beyond the best one are kept to show the end of the front, not to be used."""


@dataclass(frozen=True)
class HeldOut:
    """What held-out texts answer at every exit under one schedule.

    Attributes:
        schedule: its keep ratios.
        entropy: by exit layer, normalised, (N,).
        answer: by exit layer, class ids, (N,).
    """

    schedule: KeepSchedule
    entropy: Mapping[int, np.ndarray]
    answer: Mapping[int, np.ndarray]

    @classmethod
    def from_logits(cls, schedule: KeepSchedule, logits: Mapping[int, np.ndarray]) -> HeldOut:
        """Entropies and answers of logits (N, C) by exit layer."""
        return cls(
            schedule,
            {layer: _entropy(values) for layer, values in logits.items()},
            {layer: values.argmax(1) for layer, values in logits.items()},
        )


@dataclass(frozen=True)
class Candidate:
    """An operating point with what is expected of it.

    Attributes:
        point: its settings.
        seconds: predicted mean per text, for comparing candidates.
        loss: mean over the held-out texts.
        exit_layer: where each held-out text leaves, (N,).
        answer: what it is told, (N,).
    """

    point: OperatingPoint
    seconds: float
    loss: float
    exit_layer: np.ndarray
    answer: np.ndarray


class PointSearch:
    """Searches one model's operating points on held-out texts, from cached answers alone.

    Args:
        held_out: one per schedule; the first does not prune.
        truth: labels, or the original's answers where there are none, (N,).
        lengths: tokens of each text, (N,).
        cost: predicts time.
        batch_size: examples that run together; a text's time is its share of such a batch.
        precision: of the points.
    """

    def __init__(
        self,
        held_out: Sequence[HeldOut],
        truth: np.ndarray,
        lengths: np.ndarray,
        cost: CostModel,
        batch_size: int,
        precision: str,
    ) -> None:
        self._held_out = tuple(held_out)
        self._truth = truth
        self._lengths = lengths
        self._cost = cost
        self._batch_size = np.float64(batch_size)
        self._precision = precision
        self._layers = tuple(sorted(held_out[0].entropy))
        self._full_s = float((cost.predict_unpruned(self._batch_size, lengths) / batch_size).mean())

    def search(self, on_step: Callable[[float], None] = lambda _: None) -> tuple[Candidate, ...]:
        """The Pareto front, slowest first; all its points share one set of exits and prunes."""
        exits = self._choose_exits(on_step)
        candidates: list[Candidate] = []
        for held_out in self._held_out:
            table = self._table(held_out, exits)
            candidates.extend(self._candidate(held_out, table, exits, price) for price in PRICES)
            candidates.append(self._candidate(held_out, table, exits, np.inf))
        return thin(pareto_front(candidates))

    def _choose_exits(self, on_step: Callable[[float], None]) -> tuple[int, ...]:
        """The off-ramps that leave the least cost over all prices, on the schedule without pruning."""
        *early, last = self._layers
        subsets = [
            (*subset, last)
            for size in range(min(MAX_EXITS, len(early)) + 1)
            for subset in itertools.combinations(early, size)
        ]
        costs = np.empty((len(subsets), len(PRICES[::4])))
        for i, subset in enumerate(subsets):
            table = self._table(self._held_out[0], subset)
            for j, price in enumerate(PRICES[::4]):
                seconds, loss = table.evaluate(search_thresholds(table, price * self._full_s))
                costs[i, j] = seconds + price * self._full_s * loss
            on_step((i + 1) / len(subsets))
        regret = (costs / costs.min(0)).mean(1)
        return subsets[int(regret.argmin())]

    def _table(self, held_out: HeldOut, exits: tuple[int, ...]) -> ExitTable:
        point = OperatingPoint(exits[-1:], (), held_out.schedule.prune_layers, held_out.schedule.keep_ratios)
        if all(ratio == 1.0 for ratio in point.keep_ratios):
            point = OperatingPoint(exits[-1:])
        length, elapsed, seconds = self._lengths, np.zeros(len(self._lengths)), []
        for index, (first, exit_layer) in enumerate(itertools.pairwise((0, *exits))):
            taken = self._cost.predict_segment(index == 0, first, exit_layer, self._batch_size, length, point)
            length = count_left(point, first, exit_layer, length)
            elapsed = elapsed + taken / self._batch_size
            seconds.append(elapsed)
        return ExitTable(
            np.stack([held_out.entropy[layer] for layer in exits]),
            np.stack(seconds),
            np.stack([held_out.answer[layer] != self._truth for layer in exits]).astype(np.float64),
        )

    def _candidate(self, held_out: HeldOut, table: ExitTable, exits: tuple[int, ...], price: float) -> Candidate:
        if np.isinf(price):  # the end of the front: everything runs to the last layer
            thresholds = np.array([0.0] * (len(exits) - 1) + [2.0])
        else:
            thresholds = search_thresholds(table, price * self._full_s)
        seconds, loss = table.evaluate(thresholds)
        end = int(np.argmax(thresholds > 1.0))
        used = [i for i in range(end + 1) if thresholds[i] > 0.0]
        point = OperatingPoint(
            exit_layers=tuple(exits[i] for i in used),
            exit_thresholds=tuple(float(thresholds[i]) for i in used[:-1]),
            prune_layers=held_out.schedule.prune_layers,
            keep_ratios=held_out.schedule.keep_ratios,
            precision=self._precision,
        )
        leaves = table.leave_at(thresholds)
        answers = np.stack([held_out.answer[layer] for layer in exits])[leaves, np.arange(leaves.size)]
        return Candidate(point, seconds, loss, np.array(exits)[leaves], answers)


def _entropy(logits: np.ndarray) -> np.ndarray:
    """Normalised entropy of logits (N, C): (N,)."""
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    entropy: np.ndarray = -(np.exp(log_p) * log_p).sum(1) / np.log(logits.shape[1])
    return entropy


def pareto_front(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Candidates that no other one beats on both time and loss, slowest first."""
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.seconds, c.loss)):
        if not front or candidate.loss < front[-1].loss:
            front.append(candidate)
    return tuple(reversed(front))


def thin(front: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """At most `MAX_POINTS` of a front, spread in log time: most of them where little is lost, both ends stay."""
    least = min(candidate.loss for candidate in front)
    useful = [i for i, candidate in enumerate(front) if not candidate.loss > least + USEFUL_LOSS]
    beyond = [i for i in range(len(front)) if i not in set(useful)]
    kept = {*_spread(front, useful, MAX_POINTS - 3), *_spread(front, beyond, 3)}
    return tuple(front[i] for i in sorted(kept))


def _spread(front: Sequence[Candidate], indices: Sequence[int], count: int) -> set[int]:
    """At most `count` of some candidates, evenly spread in log time, first and last among them."""
    if len(indices) <= count:
        return set(indices)
    log_s = np.log([front[i].seconds for i in indices])
    return {indices[int(np.abs(log_s - wanted).argmin())] for wanted in np.linspace(log_s[0], log_s[-1], count)}
