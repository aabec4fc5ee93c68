"""Measures the rates of this machine: times engines of small random encoders and fits the cost model to them.

What is timed is what is deployed: segments with exits and prunes, built by the backend. Nine numbers
explain all of them; they are fitted in log space, so that a fast engine counts as much as a slow one,
robustly, because other processes disturb some measurements.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import least_squares

from mpcompile.contract.backend import Target
from mpcompile.cost.grid_bench import GridBench, Sample, measure_steady
from mpcompile.cost.grids import FULL, Grid
from mpcompile.cost.rates import FITTED, Profile, Rates

PRIOR_WEIGHT = 0.2
"""Pull of each declared number, so that one that the engines hardly depend on stays plausible: a deviation by a
factor e costs as much as a misfit of 20% of one engine. With 0.02 some fits ended at a cache of terabytes a second."""


def calibrate(
    target: Target,
    declared: Rates,
    grids: Sequence[Grid] = FULL,
    runs: int = 2,
    on_step: Callable[[float], None] = lambda _: None,
) -> Profile:
    """Measures the present machine: about a minute with `FULL`, seconds with `QUICK`.

    Args:
        target: what the engines are built for.
        declared: where the fit starts, and what it does not fit.
        grids: what to time.
        runs: timings of each size, interleaved.
        on_step: told the share done.

    Raises:
        BackendError: when an engine cannot be built.
    """
    samples: list[Sample] = []
    reshape_s = []
    for i, grid in enumerate(grids):
        bench = GridBench(target, grid)
        on_step((i + 0.3) / len(grids))
        seconds = measure_steady(
            bench.calls(),
            runs,
            lambda share, i=i: on_step((i + 0.3 + 0.7 * share) / len(grids)),  # type: ignore[misc]
        )
        samples += bench.describe(seconds)
        reshape_s.append(bench.measure_reshape(runs))
    rates = dataclasses.replace(fit_rates(samples, declared), reshape_s=float(np.mean(reshape_s)))
    return describe_fit(rates, samples)


def fit_rates(samples: Sequence[Sample], declared: Rates) -> Rates:
    """The rates that explain samples best, in the sense of a robust fit of log time with a weak prior."""
    # A GPU runs no products in a loop, so that none of its time is theirs.
    names = [name for name in FITTED if getattr(declared, name) > 0.0]
    start = np.log([getattr(declared, name) for name in names])
    measured = np.log([sample.measured_s for sample in samples])

    def misfit(logs: np.ndarray) -> np.ndarray:
        rates = _replace(declared, names, logs)
        predicted = np.log([sample.predict(rates) for sample in samples])
        return np.concatenate([predicted - measured, PRIOR_WEIGHT * (logs - start)])

    fitted = least_squares(misfit, start, loss="soft_l1", f_scale=0.1, diff_step=1e-3)
    return _replace(declared, names, fitted.x)


def describe_fit(rates: Rates, samples: Sequence[Sample]) -> Profile:
    """Rates with their errors on samples."""
    errors = np.array([abs(sample.predict(rates) / sample.measured_s - 1.0) for sample in samples])
    return Profile(rates, float(np.median(errors)), float(np.percentile(errors, 95)), len(samples))


def _replace(declared: Rates, names: Sequence[str], logs: np.ndarray) -> Rates:
    return dataclasses.replace(declared, **dict(zip(names, np.exp(logs).tolist(), strict=True)))
