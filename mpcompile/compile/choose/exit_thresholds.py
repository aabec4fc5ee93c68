"""Finds the exit thresholds that trade time against errors best, on cached entropies.

Shapes: N texts, M exits in use, the last unconditional.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SWEEPS = 3
LEVELS = 48
"""Thresholds tried per exit: fewer than texts, so that no single text decides one."""
GAP = 1.1
"""Times that neighbours on a front differ by."""
MAX_STEPS = 12


@dataclass(frozen=True)
class ExitTable:
    """Entropy, time and loss of each text at each exit.

    Attributes:
        entropy: normalised, (M, N).
        seconds: until it has been answered there, (M, N), without the calls.
        loss: 1 where the answer there is wrong (or differs from the original's), (M, N).
        call_s: seconds of a call of the engine before each exit, whatever it holds, (M,).
        batch_size: texts that come together, and share a call when they enter its engine.
    """

    entropy: np.ndarray
    seconds: np.ndarray
    loss: np.ndarray
    call_s: np.ndarray
    batch_size: int

    def leave_at(self, thresholds: np.ndarray) -> np.ndarray:
        """Index of the exit that each text leaves at, (N,)."""
        leaves = self.entropy < thresholds[:, None]
        leaves[-1] = True
        index: np.ndarray = leaves.argmax(0)
        return index

    def seconds_of(self, index: np.ndarray) -> np.ndarray:
        """Seconds of each text that leaves at an exit, (N,). Texts that enter an engine share the cost of its call.

        A batch calls an engine when any of its texts enters.
        """
        share = self._share_entering(index)
        called = 1.0 - (1.0 - share) ** self.batch_size
        per_text = np.divide(self.call_s * called, self.batch_size * share, out=np.zeros(len(share)), where=share > 0)
        seconds: np.ndarray = self.seconds[index, np.arange(index.size)] + np.cumsum(per_text)[index]
        return seconds

    def marginal_seconds(self, thresholds: np.ndarray) -> np.ndarray:
        """Seconds that one text more at each exit costs, (M, N): nothing for calls that are made anyway."""
        share = self._share_entering(self.leave_at(thresholds))
        more = self.call_s * (1.0 - share) ** (self.batch_size - 1)
        seconds: np.ndarray = self.seconds + np.cumsum(more)[:, None]
        return seconds

    def evaluate(self, thresholds: np.ndarray) -> tuple[float, float]:
        """Mean seconds and mean loss over the texts."""
        index = self.leave_at(thresholds)
        return float(self.seconds_of(index).mean()), float(self.loss[index, np.arange(index.size)].mean())

    def _share_entering(self, index: np.ndarray) -> np.ndarray:
        share: np.ndarray = (index >= np.arange(len(self.call_s))[:, None]).mean(1)
        return share


def search_thresholds(table: ExitTable, price_s: float) -> np.ndarray:
    """Thresholds that minimise mean(seconds) + price_s * mean(loss), by coordinate descent.

    One exit at a time, texts that reach it sorted by entropy: the best place to cut is the
    minimum of a cumulative sum, over `LEVELS` quantiles.

    Args:
        price_s: seconds that one error is worth.

    Returns:
        (M,): 0 where an exit is not worth using, above 1 where all texts leave, as at the last.
    """
    count = table.entropy.shape[0]
    thresholds = np.zeros(count)
    thresholds[-1] = 2.0
    for _ in range(SWEEPS):
        before = thresholds.copy()
        cost = table.marginal_seconds(thresholds) + price_s * table.loss
        for exit_index in reversed(range(count - 1)):
            thresholds[exit_index] = _best_threshold(table, cost, thresholds, exit_index)
        if np.array_equal(before, thresholds):
            break
    return thresholds


def fill_gaps(table: ExitTable, solved: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Thresholds between solutions whose times are far apart.

    What `search_thresholds` finds at all prices are the corners of the convex hull of times and losses, and where one
    corner is twice as fast as the next, nothing on the way was tried. There each exit lets a number of texts leave
    that is between those of both corners.

    Args:
        table: that they were found on.
        solved: thresholds, (M,) each.

    Returns:
        Thresholds so that neighbours differ by about `GAP` in time where times change evenly, (M,) each.
    """
    seconds = [table.evaluate(thresholds)[0] for thresholds in solved]
    order, filled = np.argsort(seconds, kind="stable"), []
    for fast, slow in itertools.pairwise(order):
        steps = min(math.ceil(math.log(seconds[slow] / seconds[fast]) / math.log(GAP)), MAX_STEPS)
        filled += [mix_thresholds(table, solved[fast], solved[slow], step / steps) for step in range(1, steps)]
    return filled


def mix_thresholds(table: ExitTable, first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """Thresholds below which, at each exit, the number of texts is a mean of those of two thresholds, (M,).

    Args:
        table: entropies of the texts.
        first, second: thresholds, (M,).
        share: of the second in the mean, [0, 1].
    """
    mixed = []
    for entropy, one, other in zip(np.sort(table.entropy, axis=1), first, second, strict=True):
        below = np.searchsorted(entropy, (one, other))
        count = round(float(below[0] + share * (below[1] - below[0])))
        if count in (0, len(entropy)):
            mixed.append(0.0 if count == 0 else 2.0)
        else:
            mixed.append(float((entropy[count - 1] + entropy[count]) / 2))
    return np.array(mixed)


def _best_threshold(table: ExitTable, cost: np.ndarray, thresholds: np.ndarray, exit_index: int) -> float:
    reached = np.flatnonzero((table.entropy[:exit_index] >= thresholds[:exit_index, None]).all(0))
    if not len(reached):
        return 0.0
    later = (table.entropy[exit_index + 1 :, reached] < thresholds[exit_index + 1 :, None]).copy()
    later[-1] = True
    staying = cost[exit_index + 1 + later.argmax(0), reached]
    entropy = table.entropy[exit_index, reached]
    order = np.argsort(entropy)
    gain = np.concatenate([[0.0], np.cumsum(cost[exit_index, reached[order]] - staying[order])])
    cuts = np.unique(np.linspace(0, len(reached), LEVELS + 1).astype(int))
    cut = int(cuts[gain[cuts].argmin()])
    if cut == 0:
        return 0.0
    if cut == len(reached):
        return 2.0
    return float((entropy[order[cut - 1]] + entropy[order[cut]]) / 2)
