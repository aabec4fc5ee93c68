"""The one way to time something: interleaved runs, medians."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Timing:
    """Seconds that one call took, over repeated calls."""

    median_s: float
    p10_s: float
    p90_s: float
    runs: int


def measure_interleaved(
    calls: Mapping[str, Callable[[int], object]],
    runs: int,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
    on_run: Callable[[], None] = lambda: None,
) -> dict[str, Timing]:
    """Times calls against each other on a machine that others use too.

    Run `i` of every call comes before run `i + 1` of any, so that what slows the machine down
    for a while slows all of them; ratios of medians are what to read.

    Args:
        calls: each takes the number of its run, from 0, to pick its input by.
        runs: timed runs of each call.
        warm_up: untimed runs of each call before.
        clock: seconds.
        on_run: called after each round, for progress.
    """
    for call in calls.values():
        for run in range(warm_up):
            call(run)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(runs):
        for name, call in calls.items():
            start = clock()
            call(run)
            taken[name].append(clock() - start)
        on_run()
    return {name: _summarise(seconds) for name, seconds in taken.items()}


def _summarise(seconds: list[float]) -> Timing:
    p10, median, p90 = np.percentile(seconds, (10, 50, 90))
    return Timing(float(median), float(p10), float(p90), len(seconds))
