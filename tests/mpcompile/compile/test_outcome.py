"""Tests of what the report says of a run."""

import dataclasses
from collections.abc import Callable

import pytest

from mpcompile.compile.outcome import _busy_notes
from mpcompile.contract.front import MeasuredPoint
from mpcompile.contract.operating_point import OperatingPoint


@pytest.mark.parametrize(("noise", "said"), [(0.0, False), (0.05, False), (0.06, True)])
def test_machine_is_called_busy_by_the_spread_of_timings(
    measured_point: Callable[[OperatingPoint, float, float | None], MeasuredPoint], noise: float, said: bool
) -> None:
    point = dataclasses.replace(measured_point(OperatingPoint((3,)), 2.0, 0.0), noise=noise)
    notes = _busy_notes(point)
    assert len(notes) == said
    assert all("the machine was busy" in note and f"{noise:.0%}" in note for note in notes)
