"""Measured operating points and the choice among them. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.errors import SettingError

MAX_TARGET = 100.0
"""Highest target speedup that is taken seriously."""
MAX_NOISE = 0.05
"""What a speedup may miss a target by at most and still reach it, however noisy the machine was."""


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
        noise: how far `speedup` is known, as a share of it, see `cost.timing.measure_noise`.
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
    noise: float = 0.0

    def reaches(self, target_speedup: float) -> bool:
        """Whether it is that fast, or misses it by less than the noise of its measurement."""
        return self.speedup * (1.0 + min(self.noise, MAX_NOISE)) >= target_speedup

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


class Ranked(Protocol):
    """What is known of a point when one is picked."""

    @property
    def drop(self) -> float | None:
        """Loss, None where it is unknown."""

    @property
    def speedup(self) -> float:
        """Times the original."""

    def reaches(self, target_speedup: float) -> bool:
        """Whether it is fast enough."""


def pick(points: Sequence[Ranked], target_speedup: float, max_drop: float | None) -> int:
    """Index of the point that loses least among those that reach the target and lose at most `max_drop`.

    Where none does both, the fastest of those that lose no more; where all lose more, the one that loses least.
    An unknown loss is within any bound, and of such points the slowest prunes least.

    Args:
        points: any order.
        target_speedup: times the original.
        max_drop: loss that is allowed, None for any.
    """
    within = [i for i, p in enumerate(points) if max_drop is None or p.drop is None or p.drop <= max_drop]
    reaching = [i for i in within if points[i].reaches(target_speedup)]
    if reaching:
        return min(reaching, key=lambda i: (points[i].drop or 0.0, points[i].speedup))
    if within:
        return max(within, key=lambda i: points[i].speedup)
    return min(range(len(points)), key=lambda i: (points[i].drop, -points[i].speedup))


def choose_point(front: Sequence[MeasuredPoint], target_speedup: float, max_drop: float | None = None) -> Choice:
    """The point that `pick` takes, with a warning where it is not what was asked for.

    Args:
        front: measured points, any order.
        target_speedup: times the original.
        max_drop: loss that is allowed, None for any.
    """
    index = pick(front, target_speedup, max_drop)
    taken = front[index]
    if max_drop is not None and taken.drop is not None and taken.drop > max_drop:
        return Choice(
            index,
            f"every operating point loses more than the {100 * max_drop:g} points that are allowed; the one that loses "
            f"least was taken: {taken.describe()}",
        )
    if taken.reaches(target_speedup):
        return Choice(index)
    within = "" if max_drop is None else f" of those that lose at most {100 * max_drop:g} points"
    said = f"target_speedup={target_speedup:g} is not reached: the fastest point{within} was taken: {taken.describe()}"
    return Choice(index, f"{said}. {_describe_reach(front, target_speedup)}")


def _describe_reach(front: Sequence[MeasuredPoint], target_speedup: float) -> str:
    """What the target would cost, and how to ask for it."""
    reaching = [point for point in front if point.reaches(target_speedup) and point.drop is not None]
    if not reaching:
        return f"The fastest of all points is {max(point.speedup for point in front):.2f}x"
    drop = min(point.drop for point in reaching if point.drop is not None)
    allowed = min(math.ceil(120 * max(drop, 0.005)) / 100, 1.0)  # a fifth more, for what other texts show
    return (
        f"{target_speedup:g}x loses about {100 * drop:.1f} points on the texts that points were chosen on: ask for it "
        f"with max_drop={allowed:g} (--max-drop {allowed:g})"
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
