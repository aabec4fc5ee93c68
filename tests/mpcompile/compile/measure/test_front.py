"""Tests of how often the points of a front are timed, and of what is said of a machine that is busy then."""

from typing import cast

import pytest

from mpcompile.compile.measure import front
from mpcompile.compile.measure.front import FRONT_RUNS, GAIN_RUNS, Pace, count_front_runs
from mpcompile.compile.measure.workload import MIN_BATCHES
from mpcompile.compile.original import Original


@pytest.mark.parametrize(("num_batches", "runs"), [(MIN_BATCHES, GAIN_RUNS), (MIN_BATCHES + 1, FRONT_RUNS)])
def test_long_runs_are_fewer(num_batches: int, runs: int) -> None:
    assert count_front_runs(num_batches) == runs


@pytest.mark.parametrize(("now_s", "is_said"), [(0.05, False), (0.1, False), (0.119, False), (0.14, True)])
def test_load_that_stays_while_points_are_timed_is_said(
    monkeypatch: pytest.MonkeyPatch, now_s: float, is_said: bool
) -> None:
    monkeypatch.setattr(front, "_time_probe", lambda _: now_s)
    notes = Pace(cast(Original, None), 1, 0.1).describe_slowdown()
    assert len(notes) == is_said
    assert all("took 140.0 ms" in note and "100.0 ms for the same texts at the start" in note for note in notes)
