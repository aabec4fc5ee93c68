"""Expected time of an operating point over a workload's lengths and the exits' survival curve.

Where texts were run, `workload` replays them; here nothing was, and each example leaves by chance.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np

from mpcompile.contract.operating_point import OperatingPoint, count_left
from mpcompile.cost.forecast import SegmentTime
from mpcompile.cost.model import CostModel


class ExpectedTime:
    """Expected times of one model on one workload; what was predicted once is remembered.

    Of a batch of B examples, each reaches a segment with probability `survival`, independently: as many as a
    binomial distribution says. R of them are padded to the longest of R lengths that are drawn at random.

    Args:
        cost: predicts engines.
        lengths: tokens of examples of the workload, (N,).
        batch_size: B.
    """

    def __init__(self, cost: CostModel, lengths: np.ndarray, batch_size: int) -> None:
        self._cost, self._batch_size = cost, batch_size
        self._lengths, counts = np.unique(lengths, return_counts=True)
        self._share_up_to = np.cumsum(counts) / counts.sum()  # of the examples that are not longer
        self._known: dict[tuple[object, ...], float] = {}
        # A search asks for thousands of points with the same few counts and shares.
        self._chance_longest = functools.cache(self._compute_chance_longest)
        self._chance_of_counts = functools.cache(functools.partial(_binomial, np.arange(1, batch_size + 1), batch_size))

    def predict(self, point: OperatingPoint, survival: Sequence[float]) -> tuple[SegmentTime, ...]:
        """Expected time of each engine.

        Args:
            point: exits and keep ratios.
            survival: for each segment, share of the examples that enter it; the first is 1.
        """
        segments = []
        counts = np.arange(1, self._batch_size + 1)
        length = self._lengths
        for (first, exit_layer), share in zip(itertools.pairwise((0, *point.exit_layers)), survival, strict=True):
            chance = self._chance_of_counts(share)
            likely = np.flatnonzero((chance > 1e-4 * chance.max()) & (chance > 0.0))
            seconds = sum(chance[i] * self._engine(first, exit_layer, int(counts[i]), length, point) for i in likely)
            left = count_left(point, first, exit_layer, length)
            tokens, tokens_left = (float(self._chance_longest(1) @ counted) for counted in (length, left))
            segments.append(SegmentTime(first, exit_layer, share, tokens, tokens_left, float(seconds)))
            length = left
        return tuple(segments)

    def _engine(self, first: int, exit_layer: int, count: int, length: np.ndarray, point: OperatingPoint) -> float:
        """Seconds of an engine for so many survivors."""
        is_first, is_end = exit_layer == point.exit_layers[0], exit_layer == point.exit_layers[-1]
        key = (is_first, first, exit_layer, is_end, count, point.prune_layers, point.keep_ratios)
        if key not in self._known:
            by_length = self._cost.predict_segment(is_first, first, exit_layer, count, length, point)
            seconds = float(self._chance_longest(count) @ by_length)
            varied = len(self._lengths) > 1
            reshape_s = self._cost.predict_reshape(is_first, first, exit_layer, point) if varied else 0.0
            self._known[key] = seconds + reshape_s
        return self._known[key]

    def _compute_chance_longest(self, count: int) -> np.ndarray:
        """Probability of each length to be that of the longest of `count` examples; pruning keeps their order."""
        return np.diff(self._share_up_to**count, prepend=0.0)


def total_seconds(segments: Sequence[SegmentTime]) -> float:
    """Expected seconds of a batch."""
    return sum(segment.predicted_s for segment in segments)


def predict_whole(cost: CostModel, lengths: np.ndarray, batch_size: int) -> float:
    """Expected seconds of a batch in the unpruned model as one engine, padded to its longest.

    Args:
        cost: predicts the engine.
        lengths: tokens of examples of the workload, (N,).
        batch_size: examples.
    """
    whole = OperatingPoint((cost.work.num_layers,))
    return total_seconds(ExpectedTime(cost, lengths, batch_size).predict(whole, (1.0,)))


def _binomial(counts: np.ndarray, num_trials: int, share: float) -> np.ndarray:
    """Probability of each number of successes, from 1: what `scipy.stats.binom.pmf` gives, whose import takes long."""
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, num_trials + 1)))])
    failures = num_trials - counts
    with np.errstate(divide="ignore", invalid="ignore"):  # of shares of 0 and 1
        log_chance = counts * np.log(share) + np.where(failures == 0, 0.0, failures * np.log1p(-share))
    ways = log_factorial[num_trials] - log_factorial[counts] - log_factorial[failures]
    chance: np.ndarray = np.exp(ways + log_chance)
    return chance
