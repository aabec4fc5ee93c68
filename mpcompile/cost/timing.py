"""Times systems against each other: interleaved runs, medians. All timing goes through here."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

PAUSE_S = 0.02
"""Seconds before each run: OpenMP threads of torch spin on for some milliseconds after a call, on cores that whoever
comes next wants."""
SETTLED = 0.02
"""Standard error of a ratio of times, as a share of it, at which it is known well enough."""
MOST_S = 90.0
"""Seconds of timing after which a busy machine is not timed more often than a quiet one."""


@dataclass(frozen=True)
class Timing:
    """Seconds that a system takes per call.

    Attributes:
        median_s: median over the runs of the mean over their calls: what throughput follows from.
        p10_s, p50_s, p90_s: percentiles over single calls, which differ in length and in where they exit.
        run_s: mean over the calls of each run.
    """

    median_s: float
    p10_s: float
    p50_s: float
    p90_s: float
    run_s: tuple[float, ...]

    @property
    def runs(self) -> int:
        """How many runs there were."""
        return len(self.run_s)


def measure_noise(slower: Timing, faster: Timing) -> float:
    """How far the ratio of two interleaved timings is known, as a share of it.

    Half the distance between the quartiles of the ratios of their runs, pair by pair, over their median: what slows
    the machine down for a while slows both of a pair.
    """
    ratios = np.array(slower.run_s) / np.array(faster.run_s)
    low, median, high = np.percentile(ratios, (25, 50, 75))
    return float((high - low) / 2 / median)


def measure_interleaved(
    systems: Mapping[str, Sequence[Callable[[], object]]],
    runs: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    on_run: Callable[[float], None] = lambda _: None,
    most_runs: int | None = None,
) -> dict[str, Timing]:
    """Times systems against each other on a machine that others use too.

    A run of a system is all its calls in a row after a pause, so that its caches are as warm as in service. Run `i` of
    every system comes before run `i + 1` of any, so that what slows the machine down for a while slows
    all of them; ratios of medians are what to read.

    Args:
        systems: calls of each, one per batch of the workload.
        runs: timed runs of each system.
        warm_up: untimed runs of each system before.
        clock: seconds.
        on_run: called after each round with the share of rounds done.
        most_runs: runs go on up to so many where the machine is busy, until ratios to the first system are known, see
            `SETTLED`, or `MOST_S` are over; None for no more than `runs`.
    """
    for calls in systems.values():
        for _ in range(warm_up):
            for call in calls:
                call()
    taken: dict[str, list[list[float]]] = {name: [] for name in systems}
    timings: dict[str, Timing] = {}
    spent = 0.0
    for run in range(max(runs, most_runs or 0)):
        if run >= runs and (spent >= MOST_S or _is_settled(list(timings.values()))):
            break
        for name, calls in systems.items():
            time.sleep(PAUSE_S)
            taken[name].append([_time(call, clock) for call in calls])
        spent += sum(sum(rounds[-1]) for rounds in taken.values())
        timings = {name: _summarise(np.array(seconds)) for name, seconds in taken.items()}
        on_run(min((run + 1) / runs, 1.0))
    return timings


def _is_settled(timings: Sequence[Timing]) -> bool:
    """Whether the ratio of the first timing to a middling other one is known to `SETTLED`.

    Of n normal numbers the median has the standard error 1.253 sigma / sqrt(n), and half the distance of the quartiles,
    which `measure_noise` gives, is 0.6745 sigma.
    """
    first, *others = timings
    noise = float(np.median([measure_noise(first, other) for other in others])) if others else 0.0
    return bool(1.253 / 0.6745 * noise / np.sqrt(first.runs) <= SETTLED)


def _time(call: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def _summarise(seconds: np.ndarray) -> Timing:
    """Summarises seconds (runs, calls)."""
    p10, p50, p90 = np.percentile(seconds, (10, 50, 90))
    run_s = seconds.mean(1)
    return Timing(float(np.median(run_s)), float(p10), float(p50), float(p90), tuple(run_s.tolist()))
