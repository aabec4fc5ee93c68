"""The planner: finds keep ratios and exits that would meet a target on a device."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mpcompile.compile.choose.schedules import exit_candidates, keep_schedules
from mpcompile.contract.operating_point import OperatingPoint, count_left
from mpcompile.cost.expected import ExpectedTime, total_seconds
from mpcompile.cost.forecast import SegmentTime
from mpcompile.cost.model import CostModel
from mpcompile.errors import TargetUnreachable

KEEP_RATIOS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Of every layer that prunes; six layers at 0.2 leave one token of 512."""
EXIT_SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Of the examples that meet an off-ramp. Frozen exits of the project's own measurements (bench/results) let
half to three quarters of easy tasks leave at each; more is not planned with."""
MAX_EXITS = 3


@dataclass(frozen=True)
class PlannedPoint:
    """A point with its expected time.

    Attributes:
        point: keep ratios and exits.
        exit_share: see `Forecast`.
        segments: time of each engine.
        flops: expected, of an example of mean length.
    """

    point: OperatingPoint
    exit_share: float
    segments: tuple[SegmentTime, ...]
    flops: float

    @property
    def seconds(self) -> float:
        """Expected, of a batch."""
        return total_seconds(self.segments)

    @property
    def demand(self) -> tuple[float, float]:
        """What the point asks of the model, for choosing the mildest: the larger one of the share of tokens that a
        layer drops and the share of examples that leave at an off-ramp; where that is equal, fewer flops are more."""
        # NOTE: 1.0 - 0.8 is not 0.2 in floating point, and would never be equal to a share of 0.2.
        dropped = round(1.0 - min(self.point.keep_ratios, default=1.0), 9)
        return max(dropped, self.exit_share), -self.flops


class Planner:
    """Searches keep ratios and exits with the cost model alone.

    Args:
        cost: of a model on a device.
        lengths: tokens of examples of the workload, (N,).
        batch_size: examples of a batch.
        has_exits: whether exits are planned; without classes there are none.
    """

    def __init__(self, cost: CostModel, lengths: np.ndarray, batch_size: int, has_exits: bool = True) -> None:
        self._max_exits = MAX_EXITS if has_exits else 0
        self._cost, self._lengths, self._batch_size = cost, np.sort(lengths), batch_size
        self._expected = ExpectedTime(cost, lengths, batch_size)
        self._flops: dict[tuple[object, ...], float] = {}
        self.unpruned_s = self._unpruned(lengths)
        self.floor_s = self._unpruned(np.ones(1, np.int64))

    def plan(
        self, target_speedup: float, on_step: Callable[[float], None] = lambda _: None
    ) -> tuple[PlannedPoint, float]:
        """The mildest point that meets a target, and the best speedup there is.

        Raises:
            TargetUnreachable: when no point meets the target; with the floor and the best reachable number.
        """
        points = list(self._points())
        candidates = []
        for i, (point, share) in enumerate(points):
            candidates.append(self._evaluate(point, share))
            on_step((i + 1) / len(points))
        fastest = min(candidates, key=lambda candidate: candidate.seconds)
        reachable = self.unpruned_s / fastest.seconds
        meeting = [c for c in candidates if self.unpruned_s / c.seconds >= target_speedup]
        if not meeting:
            raise TargetUnreachable(self._explain(target_speedup, fastest), ())
        return min(meeting, key=lambda candidate: candidate.demand), reachable

    def _explain(self, target_speedup: float, fastest: PlannedPoint) -> str:
        """Why a target is out of reach, and what is not."""
        best = np.floor(10 * self.unpruned_s / fastest.seconds) / 10  # rounded up it would be refused, too
        alone = self.unpruned_s / self.floor_s
        message = (
            f"target_speedup={target_speedup:g}: the best reachable on {self._cost.rates.name} is {best:g}x "
            f"({fastest.seconds * 1e3:.3g} ms of {self.unpruned_s * 1e3:.3g} ms): even with all tokens but [CLS] "
            f"deleted {self.floor_s * 1e3:.3g} ms are left, so that pruning alone ends at {alone:.1f}x"
        )
        if len(fastest.segments) > 1:
            message += f", and what runs before the first exit takes {fastest.segments[0].predicted_s * 1e3:.3g} ms"
        message += f"; ask for at most {best:g}"
        if alone < target_speedup:
            message += ", take a larger batch, or a device with smaller fixed costs"
        return message

    def fixed_share(self) -> float:
        """Share of the unpruned time that does not depend on the number of tokens: its value extrapolated to none."""
        half = np.maximum(self._lengths // 2, 1)
        if half.sum() == self._lengths.sum():  # texts of one token: nothing can be deleted
            return 1.0
        half_s = self._unpruned(half)
        slope = (self.unpruned_s - half_s) / (self._lengths.mean() - half.mean())
        return float(np.clip(1.0 - slope * self._lengths.mean() / self.unpruned_s, 0.0, 1.0))

    def _points(self) -> Iterator[tuple[OperatingPoint, float]]:
        num_layers = self._cost.work.num_layers
        layers, _ = keep_schedules(num_layers)
        ramps = [layer for layer in exit_candidates(num_layers) if layer > 0]
        for ratio in KEEP_RATIOS:
            prunes: tuple[int, ...] = layers if ratio < 1.0 else ()
            ratios = (ratio,) * len(prunes)
            yield OperatingPoint((num_layers,), (), prunes, ratios), 0.0
            for size in range(1, self._max_exits + 1):
                for early in itertools.combinations(ramps, size):
                    for share in EXIT_SHARES:
                        yield OperatingPoint((*early, num_layers), (0.0,) * size, prunes, ratios), share

    def _evaluate(self, point: OperatingPoint, share: float) -> PlannedPoint:
        survival = [(1.0 - share) ** index for index in range(len(point.exit_layers))]
        return PlannedPoint(
            point, share, self._expected.predict(point, survival), self._count_flops(point, np.array(survival))
        )

    def _unpruned(self, lengths: np.ndarray) -> float:
        point = OperatingPoint((self._cost.work.num_layers,))
        return total_seconds(ExpectedTime(self._cost, lengths, self._batch_size).predict(point, (1.0,)))

    def _count_flops(self, point: OperatingPoint, survival: np.ndarray) -> float:
        """Expected flops of an example of mean length; those of off-ramps are too few to count."""
        leaving = survival - np.append(survival[1:], 0.0)
        return float(
            sum(share * self._flops_to(layer, point) for layer, share in zip(point.exit_layers, leaving, strict=True))
        )

    def _flops_to(self, exit_layer: int, point: OperatingPoint) -> float:
        key = (exit_layer, point.prune_layers, point.keep_ratios)
        if key not in self._flops:
            length = np.array([round(float(self._lengths.mean()))])
            alone = OperatingPoint((exit_layer,), (), point.prune_layers, point.keep_ratios)
            self._flops[key] = float(self._cost.count_flops(length, alone, np.array([exit_layer]))[0])
        return self._flops[key]


def count_activation_bytes(cost: CostModel, point: OperatingPoint, batch_size: int, seq_len: int) -> float:
    """Operands and results of the largest kernel of a chain, twice: the next one's are made while they are read."""
    largest, length, first = 0.0, np.array([seq_len]), 0
    for exit_layer in point.exit_layers:
        for part in cost.work.list_parts(first == 0, first, exit_layer, length.astype(np.float64), point):
            work = part.region.evaluate(np.float64(batch_size), part.seq_len)
            largest = max([largest, *(float(np.max(moved)) for moved in work.activation_bytes)])
        length, first = count_left(point, first, exit_layer, length), exit_layer
    return 2 * largest * cost.rates.activation_bytes / 4
