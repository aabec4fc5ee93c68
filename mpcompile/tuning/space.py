"""The candidates: every variant that may be returned, the most promising first."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mpcompile.contract.front import MeasuredPoint
from mpcompile.tuning.cuts import Cuts, find_used_cuts
from mpcompile.tuning.variant import CUTS, PROFILES, SPLIT_SCALES, Variant


@dataclass(frozen=True)
class Machine:
    """The machine that variants run on.

    Attributes:
        backend: name of the backend.
        fingerprint: fingerprint of that backend on the machine.
        precisions: precisions that the machine runs natively.
        num_threads: CPU threads of an engine by default.
        num_cores: CPUs that the process may use.
        version: version of mpcompile on the machine.
    """

    backend: str
    fingerprint: dict[str, str]
    precisions: tuple[str, ...]
    num_threads: int
    num_cores: int
    version: str


@dataclass(frozen=True)
class Space:
    """The space that is searched.

    Attributes:
        start: the variant that the artifact is.
        choices: the values of each setting; a study is bound to them.
        candidates: combinations that make sense and lose no more than allowed, without the start.
    """

    start: Variant
    choices: dict[str, tuple[Any, ...]]
    candidates: tuple[Variant, ...]


@dataclass(frozen=True)
class Limits:
    """Limits on what may be returned.

    Attributes:
        points: indices of the operating points that are allowed.
        can_change_precision: whether answers can be compared on enough texts.
        narrows_profile: whether the workload's shapes are others than those that the artifact was built for.
        is_certified: whether a certificate is to be kept: engines are then cut as those that were tested.
    """

    points: frozenset[int]
    can_change_precision: bool
    narrows_profile: bool
    is_certified: bool = False


def allow_points(front: Sequence[MeasuredPoint], chosen: int, max_drop: float | None) -> frozenset[int]:
    """Indices of points that lose no more than the chosen one, or than `max_drop`.

    Points of which nothing is known are left out: without texts only the chosen one is allowed. Where that one is
    certified, those that are not are left out, too.
    """
    limit = front[chosen].drop if max_drop is None else max_drop
    allowed = {i for i, row in enumerate(front) if limit is not None and row.drop is not None and row.drop <= limit}
    if front[chosen].certified:
        allowed = {i for i in allowed if front[i].certified}
    return frozenset({chosen} | allowed)


def build_space(
    start: Variant, front: Sequence[MeasuredPoint], cuts: Cuts, machine: Machine, limits: Limits, batch_size: int
) -> Space:
    """Lists every variant that may be measured.

    Quantising takes texts and changes answers, so that engines in int8 are kept as they are and others stay in
    floating point.

    Args:
        start: what the artifact is.
        front: the artifact's operating points.
        cuts: the artifact's exits and prunes.
        machine: the machine that runs it.
        limits: what may be returned.
        batch_size: of the workload.
    """
    threads = _count_choices(start.num_threads, machine)
    is_int8 = start.precision == "int8"
    choices: dict[str, tuple[Any, ...]] = {
        "point": tuple(range(len(front))),
        "precision": ("int8",) if is_int8 else tuple(name for name in machine.precisions if name != "int8"),
        "num_threads": threads,
        "num_streams": tuple(sorted({1, start.num_streams, *_powers_of_two(machine.num_threads)})),
        "cuts": ("front",) if is_int8 else CUTS,
        "split_scale": SPLIT_SCALES,
        "profile": ("given",) if is_int8 else PROFILES,
    }
    used = [find_used_cuts(row.point) for row in front]

    def makes_sense(variant: Variant) -> bool:
        available = variant.num_threads or machine.num_threads
        return (
            variant.point in limits.points
            and (limits.can_change_precision or variant.precision == start.precision)
            and not (limits.is_certified and (variant.precision, variant.cuts) != (start.precision, start.cuts))
            and variant.num_streams <= min(available, batch_size)
            and (variant.cuts == "front" or (used[variant.point] != cuts and used[variant.point].exit_layers != ()))
            and (batch_size > 1 or variant.split_scale == start.split_scale)
            and (limits.narrows_profile or variant.profile == "given")
            and variant != start
        )

    every = (Variant(*values) for values in itertools.product(*choices.values()))
    return Space(start, choices, tuple(variant for variant in every if makes_sense(variant)))


def rank(space: Space, predicted: Sequence[float | None]) -> Space:
    """The space with its candidates in order of predicted time; of equals, what changes least comes first.

    Args:
        predicted: time over that of the start, one per candidate; None where nothing is known, which ranks as 1.
    """

    def key(item: tuple[Variant, float | None]) -> tuple[float, int]:
        # Predictions are not better than some percent: what lies closer counts as equal.
        variant, ratio = item
        return (round(1.0 if ratio is None else ratio, 1), variant.count_changes(space.start))

    ordered = sorted(zip(space.candidates, predicted, strict=True), key=key)
    return dataclasses.replace(space, candidates=tuple(variant for variant, _ in ordered))


def _count_choices(start: int | None, machine: Machine) -> tuple[int | None, ...]:
    """The default, and powers of two around it; all CPUs where the default leaves some idle."""
    counts = {*_powers_of_two(machine.num_threads), machine.num_cores} - {machine.num_threads}
    own = set() if start is None or start == machine.num_threads else {start}
    default = start if start == machine.num_threads else None
    return (default, *sorted(counts | own))


def _powers_of_two(limit: int) -> tuple[int, ...]:
    return tuple(2**i for i in range(limit.bit_length()))
