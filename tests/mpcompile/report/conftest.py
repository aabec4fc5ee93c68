"""Fixtures of the pictures' tests: a report that was made up, with every field filled."""

import dataclasses
from collections.abc import Callable, Sequence

import pytest

from mpcompile.contract.front import MeasuredPoint
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.report.records import PyramidLayer, SampleText, SampleToken
from mpcompile.report.report import Report

Make = Callable[[OperatingPoint, float, float | None], MeasuredPoint]
MakeReport = Callable[[Sequence[MeasuredPoint], int, str], Report]

TOKENS = (
    SampleToken("[CLS]", "", True, None),
    SampleToken("A", "", False, 0),
    SampleToken("rather", " ", False, 2),
    SampleToken("fine", " ", False, None),
    SampleToken("film", "  ", False, None),
    SampleToken("[SEP]", "", True, 2),
)
"""Six tokens; layer 0 drops one and layer 2 two more."""


@pytest.fixture
def sample() -> SampleText:
    """A text that leaves after layer 3 of 3."""
    return SampleText(TOKENS, False, 3, "positive", 0.87, "positive")


@pytest.fixture
def report(measured_point: Make, make_report: MakeReport, sample: SampleText) -> Report:
    """Four points, the third chosen: 8 ms become 4 ms; the fourth is beaten by it."""
    rows = (((3,), (), 1.0, 0.0), ((1, 3), (0.2,), 1.6, 0.004), ((1, 3), (0.6,), 2.0, 0.01), ((1,), (), 1.8, 0.05))
    points = [
        measured_point(OperatingPoint(exits, thresholds, (0, 2), (0.7, 0.5)), speedup, drop)
        for exits, thresholds, speedup, drop in rows
    ]
    pyramid = (PyramidLayer(0, 1.0, 9.0), PyramidLayer(1, 0.4, 10.0), PyramidLayer(2, 0.4, 5.0))
    return dataclasses.replace(
        make_report(points, 2, "openvino"),
        model={"name": "tiny", "num_layers": 3, "num_labels": 3},
        pyramid=pyramid,
        samples=(sample,),
    )


@pytest.fixture
def report_without_texts(report: Report) -> Report:
    """The same as it is when no texts were given."""
    points = tuple(dataclasses.replace(p, accuracy=None, agreement=None, drop=None) for p in report.operating_points)
    return dataclasses.replace(report, operating_points=points, agreement=None, certified_drop=None, samples=())
