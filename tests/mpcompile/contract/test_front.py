"""Tests of the choice among measured points."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from mpcompile.contract.front import MeasuredPoint, check_target, choose_point
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.errors import SettingError

Make = Callable[[OperatingPoint, float, float | None], MeasuredPoint]


@pytest.fixture
def make_front(measured_point: Make) -> Callable[[Sequence[tuple[float, float | None]]], tuple[MeasuredPoint, ...]]:
    """Makes a front of (speedup, drop)."""
    return lambda rows: tuple(measured_point(OperatingPoint((3,)), speedup, drop) for speedup, drop in rows)


ROWS = [(1.0, 0.0), (2.0, 0.001), (5.0, 0.01), (9.0, 0.04)]


@pytest.mark.parametrize(("target", "index"), [(1, 0), (1.5, 1), (2, 1), (2.1, 2), (5, 2), (9, 3)])
def test_least_lossy_point_that_meets_the_target_is_taken(make_front: Any, target: float, index: int) -> None:
    choice = choose_point(make_front(ROWS), target)
    assert (choice.index, choice.warning) == (index, None)


def test_order_of_the_front_does_not_matter(make_front: Any) -> None:
    assert choose_point(make_front(ROWS[::-1]), 4).index == 1


def test_point_that_gains_accuracy_is_preferred(make_front: Any) -> None:
    assert choose_point(make_front([(2.0, 0.0), (3.0, -0.01), (4.0, 0.01)]), 1.5).index == 1


def test_without_texts_the_slowest_point_that_meets_the_target_is_taken(make_front: Any) -> None:
    assert choose_point(make_front([(6.0, None), (3.0, None), (4.0, None), (2.0, None)]), 2.5).index == 1


@pytest.mark.parametrize(("max_drop", "index"), [(0.01, 2), (0.04, 2), (1.0, 2)])
def test_max_drop_allows_points_up_to_it(make_front: Any, max_drop: float, index: int) -> None:
    assert choose_point(make_front(ROWS), 3, max_drop).index == index


def test_target_beyond_max_drop_gives_the_fastest_point_within_it(make_front: Any) -> None:
    choice = choose_point(make_front(ROWS), 8, 0.01)
    assert choice.index == 2
    assert choice.warning is not None
    for part in (
        "target_speedup=8 is not reached: the fastest point of those that lose at most 1 points was taken: 5.00x",
        "8x loses about 4.0 points on the texts that points were chosen on",
        "max_drop=0.05 (--max-drop 0.05)",
    ):
        assert part in choice.warning


def test_where_every_point_loses_more_the_least_lossy_is_taken_and_that_is_said(make_front: Any) -> None:
    choice = choose_point(make_front([(4.0, 0.03), (2.0, 0.02), (1.5, 0.02)]), 2, 0.01)
    assert choice.index == 1
    assert choice.warning is not None
    assert "every operating point loses more than the 1 points that are allowed" in choice.warning


def test_unknown_drop_is_within_any_bound(make_front: Any) -> None:
    assert choose_point(make_front([(4.0, None), (3.0, None)]), 2, 0.01).index == 1


def test_without_max_drop_the_fastest_point_is_taken_with_a_warning(make_front: Any) -> None:
    choice = choose_point(make_front(ROWS), 20)
    assert choice.index == 3
    assert choice.warning is not None
    assert "target_speedup=20 is not reached: the fastest point was taken: 9.00x" in choice.warning
    assert "The fastest of all points is 9.00x" in choice.warning


@pytest.mark.parametrize(("noise", "index"), [(0.0, 1), (0.004, 1), (0.006, 0), (10.0, 0)])
def test_point_that_misses_the_target_by_less_than_its_noise_reaches_it(
    make_front: Any, noise: float, index: int
) -> None:
    near, beyond = make_front([(7.96, 0.001), (9.0, 0.04)])
    assert choose_point([dataclasses.replace(near, noise=noise), beyond], 8).index == index


def test_noise_does_not_excuse_more_than_a_twentieth(make_front: Any) -> None:
    (point,) = make_front([(7.6, 0.0)])
    assert not dataclasses.replace(point, noise=1.0).reaches(8.0)


def test_description_has_speed_time_loss_and_depth(make_front: Any) -> None:
    (point,) = make_front([(2.0, 0.0125)])
    assert point.describe() == "2.00x measured, 4.00 ms, +1.25 points lost, 1.5 layers"


def test_description_says_that_accuracy_is_unknown(make_front: Any) -> None:
    (point,) = make_front([(2.0, None)])
    assert "accuracy unknown" in point.describe()


def test_point_survives_json(measured_point: Make) -> None:
    point = measured_point(OperatingPoint((1, 3), (0.5,), (0,), (0.7,)), 2.0, None)
    assert MeasuredPoint.from_json(json.loads(json.dumps(point.to_json()))) == point


@pytest.mark.parametrize("target", [1, 1.0, 8, 2.5, 100])
def test_target_is_a_number_from_1_to_100(target: float) -> None:
    assert check_target(target) == target


@pytest.mark.parametrize(
    "target", [0, -1, 0.99, 100.1, 1000, 10**400, float("inf"), float("nan"), "8", True, None, [8]]
)
def test_other_target_is_refused(target: Any) -> None:
    with pytest.raises(SettingError) as error:
        check_target(target)
    assert str(error.value).startswith(f"target_speedup: {target!r}; a number from 1 to 100 is expected")
    assert "such as 8 for eight times faster" in str(error.value)
