"""Tests of how often the points of a front are timed."""

import pytest

from mpcompile.compile.measure.front import FRONT_RUNS, GAIN_RUNS, count_front_runs
from mpcompile.compile.measure.workload import MIN_BATCHES


@pytest.mark.parametrize(("num_batches", "runs"), [(MIN_BATCHES, GAIN_RUNS), (MIN_BATCHES + 1, FRONT_RUNS)])
def test_long_runs_are_fewer(num_batches: int, runs: int) -> None:
    assert count_front_runs(num_batches) == runs
