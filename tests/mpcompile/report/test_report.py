"""Tests of the report, for people and as JSON."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence

import pytest

from mpcompile.contract.front import MeasuredPoint
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.report.records import PyramidLayer, SampleText, SampleToken
from mpcompile.report.report import GAINS, Report, split_gain

Make = Callable[[OperatingPoint, float, float | None], MeasuredPoint]
MakeReport = Callable[[Sequence[MeasuredPoint], int, str], Report]


@pytest.fixture
def report(measured_point: Make, make_report: MakeReport) -> Report:
    points = [
        measured_point(OperatingPoint((3,), (), (0, 2), (1.0, 1.0)), 1.0, 0.0),
        measured_point(OperatingPoint((1, 3), (0.6,), (0, 2), (0.7, 0.7)), 2.0, 0.01),
        measured_point(OperatingPoint((1, 3), (0.8,), (0, 2), (0.7, 0.5)), 4.0, 0.05),
    ]
    return make_report(points, 1, "openvino")


def flat(report: Report) -> str:
    return " ".join(str(report).split())


def row_of(report: Report, speedup: str) -> str:
    return next(line for line in str(report).splitlines() if line.startswith("│") and speedup in line)


def test_report_survives_json(report: Report) -> None:
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_pyramid_and_samples_survive_json(report: Report) -> None:
    token = SampleToken("fine", " ", False, 2)
    sample = SampleText((token,), False, 3, "positive", 0.9, "neutral")
    traced = dataclasses.replace(report, pyramid=(PyramidLayer(0, 1.0, 7.5),), samples=(sample,), max_drop=0.01)
    assert Report.from_json(json.loads(json.dumps(traced.to_json()))) == traced


def test_report_of_a_version_without_pictures_is_read(report: Report) -> None:
    values = report.to_json()
    for name in ("model", "pyramid", "samples", "max_drop"):
        del values[name]
    assert Report.from_json(values) == report


def test_speedup_and_target_are_shown(report: Report) -> None:
    assert "measured speedup 2.00x (asked: 2x), batch of 1, 12 tokens on average" in flat(report)


def test_both_baselines_are_shown(report: Report) -> None:
    assert "4.00 ms; original 8.00 ms, unpruned through the same engine 6.40 ms" in flat(report)
    assert "over unpruned 1.60x on the clock, 2.00x in flops" in flat(report)


def test_origin_of_the_speed_is_shown(report: Report) -> None:
    assert "engine 1.25x * exits 1.60x * pruning 1.00x" in flat(report)


def test_agreement_stands_for_accuracy_without_labels(report: Report) -> None:
    shown = flat(report)
    assert "accuracy 99.00% answered as the original" in shown
    assert "on 8 held-out texts" in shown


def test_bound_on_the_loss_is_shown(report: Report) -> None:
    shown = flat(report)
    assert "at most 5.00 points lost" in shown
    assert "95% confidence" in shown


def test_accuracy_is_shown_with_labels(report: Report) -> None:
    labelled = dataclasses.replace(report, accuracy=0.875, original_accuracy=0.9)
    assert "87.50%, original 90.00%" in flat(labelled)


def test_certificate_is_told_of_a_point_that_has_one(report: Report) -> None:
    points = tuple(dataclasses.replace(point, certified=point.speedup < 4) for point in report.operating_points)
    certified = dataclasses.replace(report, operating_points=points, max_drop=0.005, held_out=2000)
    told = "agreement with the original falls by at most 0.5 points with 95% confidence, on texts like the 2,000 tested"
    assert told in flat(certified)
    assert "falls by" not in flat(dataclasses.replace(certified, chosen=2))
    assert "falls by" not in flat(report)


def test_certificate_of_labelled_texts_is_of_accuracy(report: Report) -> None:
    points = tuple(dataclasses.replace(point, certified=True, accuracy=0.9) for point in report.operating_points)
    certified = dataclasses.replace(report, operating_points=points, max_drop=0.01, held_out=500)
    assert "certified: accuracy falls by at most 1 points with 95% confidence, on texts like the 500 tested" in flat(
        certified
    )


def test_accuracy_is_unknown_without_texts(report: Report) -> None:
    unknown = dataclasses.replace(report, agreement=None, certified_drop=None)
    assert "accuracy unknown: no texts were given, so nothing was checked" in flat(unknown)


def test_every_point_has_a_row(report: Report) -> None:
    assert all(row_of(report, speedup) for speedup in ("1.00x", "2.00x", "4.00x"))


def test_chosen_point_is_marked(report: Report) -> None:
    marked = [line for line in str(report).splitlines() if "->" in line]
    assert len(marked) == 1 and "2.00x" in marked[0]


def test_prediction_stands_beside_the_measurement(report: Report) -> None:
    assert "4.00 │      4.50" in row_of(report, "2.00x")


@pytest.mark.parametrize(("speedup", "shown"), [("1.00x", "all"), ("2.00x", "0.7*2"), ("4.00x", "0.7 0.5")])
def test_keep_ratios_are_shown(report: Report, speedup: str, shown: str) -> None:
    assert shown in row_of(report, speedup)


def test_notes_are_shown(report: Report) -> None:
    assert "note: engines were rebuilt" in str(report.with_notes("engines were rebuilt"))


def test_notes_are_shown_as_they_are_written(report: Report) -> None:
    assert "note: keep [bold]" in str(report.with_notes("keep [bold]"))


def test_notes_are_added_to_those_before(report: Report) -> None:
    assert report.with_notes("one").with_notes("two").notes == ("one", "two")
    assert report.notes == ()


SECONDS = {"original": 24.0, "unpruned": 12.0, "exits": 3.0, "chosen": 2.0}


@pytest.mark.parametrize(
    ("point", "grouped", "gains"),
    [
        (OperatingPoint((1, 3), (0.5,), (0,), (0.5,)), 6.0, {"engine": 2, "grouping": 2, "exits": 2, "pruning": 1.5}),
        (OperatingPoint((1, 3), (0.5,), (0,), (0.5,)), None, {"engine": 2, "exits": 4, "pruning": 1.5}),
        (OperatingPoint((1, 3), (0.5,), (0,), (1.0,)), None, {"engine": 2, "exits": 6}),
        (OperatingPoint((2,), (), (2,), (0.5,)), None, {"engine": 2, "exits": 6}),
        (OperatingPoint((3,), (), (0,), (0.5,)), 6.0, {"engine": 2, "grouping": 2, "pruning": 3}),
        (OperatingPoint((3,), (), (0,), (1.0,)), 6.0, {"engine": 2, "grouping": 6}),
        (OperatingPoint((3,)), None, {"engine": 12}),
    ],
)
def test_gains_are_of_what_the_point_does_and_multiply_to_its_speedup(
    point: OperatingPoint, grouped: float | None, gains: dict[str, float]
) -> None:
    seconds = SECONDS if grouped is None else {**SECONDS, "grouped": grouped}
    found = split_gain(point, 3, seconds)
    assert found == pytest.approx(gains)
    assert list(found) == [name for name in GAINS if name in gains]
    assert math.prod(found.values()) == pytest.approx(12.0)


def test_warnings_come_first(report: Report) -> None:
    warned = dataclasses.replace(report, warnings=("5.0 points are lost",), notes=("something",))
    assert str(warned).startswith("warning: 5.0 points are lost")
    assert Report.from_json(json.loads(json.dumps(warned.to_json()))) == warned
    assert "warnings" in report.to_json()
