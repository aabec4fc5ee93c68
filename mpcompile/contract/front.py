"""Measured operating points and the choice among them. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.errors import SettingError, TargetUnreachable

MAX_TARGET = 100.0
"""Highest target speedup that is taken seriously."""


@dataclass(frozen=True)
class MeasuredPoint:
    """A point of the front, with what it costs.

    Attributes:
        point: its settings.
        predicted_s: seconds per batch of the workload, predicted by the cost model.
        measured_s: seconds per batch of the workload, measured.
        speedup: time of the original over `measured_s`.
        accuracy: share of right answers on held-out texts, None without labels.
        agreement: share of held-out texts answered as the original does, None without texts.
        drop: what is traded, on held-out texts: accuracy lost, or 1 - agreement without labels; None without texts.
        flops_ratio: flops of the original over flops of the point.
        mean_exit_layer: encoder layers that a text runs, on average.
        certified: whether texts that nothing was chosen on show that it loses at most the `max_drop` asked for; None
            where none was.
    """

    point: OperatingPoint
    predicted_s: float
    measured_s: float
    speedup: float
    accuracy: float | None
    agreement: float | None
    drop: float | None
    flops_ratio: float
    mean_exit_layer: float
    certified: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**values, "point": self.point.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> MeasuredPoint:
        """The point that `to_json` described."""
        return cls(**{**values, "point": OperatingPoint.from_json(values["point"])})

    def describe(self) -> str:
        """One line for people."""
        lost = "accuracy unknown" if self.drop is None else f"{100 * self.drop:+.2f} points lost"
        return (
            f"{self.speedup:.2f}x measured, {self.measured_s * 1e3:.2f} ms, {lost}, {self.mean_exit_layer:.1f} layers"
        )


@dataclass(frozen=True)
class Choice:
    """A point picked from the front.

    Attributes:
        index: which.
        warning: why it is not what was asked, None when it is.
    """

    index: int
    warning: str | None = None


def choose_point(front: Sequence[MeasuredPoint], target_speedup: float, max_drop: float | None = None) -> Choice:
    """The point that loses least among those that meet the target.

    Args:
        front: measured points, any order.
        target_speedup: times the original.
        max_drop: points that lose more are left out.

    Raises:
        TargetUnreachable: when `max_drop` is given and no point meets both.
    """
    allowed = [
        i for i, point in enumerate(front) if max_drop is None or (point.drop is not None and point.drop <= max_drop)
    ]
    meeting = [i for i in allowed if front[i].speedup >= target_speedup]
    if meeting:
        # Without texts nothing is known to be lost, and the slowest point prunes least.
        return Choice(min(meeting, key=lambda i: (front[i].drop or 0.0, front[i].speedup)))
    lines = describe_front(front)
    if max_drop is not None:
        best = max((front[i].speedup for i in allowed), default=None)
        reach = "no point stays within it" if best is None else f"the fastest within it is {best:.2f}x"
        raise TargetUnreachable(
            f"target_speedup={target_speedup:g} with max_drop={max_drop:g}: {reach}; ask for less speed, allow a "
            f"larger drop or give more texts. The front:\n{lines}",
            tuple(front),
        )
    fastest = max(range(len(front)), key=lambda i: front[i].speedup)
    return Choice(
        fastest,
        f"target_speedup={target_speedup:g} is not reached: the fastest point is {front[fastest].speedup:.2f}x; "
        f"it was taken. The front:\n{lines}",
    )


def describe_front(front: Sequence[MeasuredPoint]) -> str:
    """A line for each point, slowest first."""
    return "\n".join(f"  {point.describe()}" for point in sorted(front, key=lambda point: point.speedup))


def check_target(target_speedup: object) -> float:
    """A target speedup, as a float.

    Raises:
        SettingError: when it is not a finite number from 1 to `MAX_TARGET`.
    """
    is_bool = isinstance(target_speedup, bool)
    if not isinstance(target_speedup, int | float) or is_bool or not 1.0 <= target_speedup <= MAX_TARGET:
        raise SettingError(
            f"target_speedup: {target_speedup!r}; a number from 1 to {MAX_TARGET:g} is expected, "
            "such as 8 for eight times faster"
        )
    return float(target_speedup)
