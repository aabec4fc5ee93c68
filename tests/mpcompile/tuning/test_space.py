"""Tests of the space: which candidates there are, and in which order they are measured."""

import dataclasses
from collections.abc import Callable

import pytest

from mpcompile.contract.front import MeasuredPoint
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.tuning.cuts import Cuts
from mpcompile.tuning.space import Limits, Machine, Space, allow_points, build_space, rank
from mpcompile.tuning.variant import Variant

MACHINE = Machine("openvino", {"cpu": "c"}, ("f32", "bf16"), num_threads=4, num_cores=8, version="1")
CUTS = Cuts((1, 3), (0,))
START = Variant(0, "f32")
POINTS = (OperatingPoint((1, 3), (0.5,), (0,), (0.5,)), OperatingPoint((3,), (), (0,), (1.0,)))
Make = Callable[[OperatingPoint, float, float | None], MeasuredPoint]


@pytest.fixture
def front(measured_point: Make) -> tuple[MeasuredPoint, ...]:
    return tuple(measured_point(point, 2.0, drop) for point, drop in zip(POINTS, (0.01, 0.0), strict=True))


@pytest.fixture
def make_space(front: tuple[MeasuredPoint, ...]) -> Callable[..., Space]:
    def make(
        batch_size: int = 32, start: Variant = START, points: tuple[int, ...] = (0, 1), checked: bool = True,
        narrows: bool = True, certified: bool = False,
    ) -> Space:  # fmt: skip
        limits = Limits(frozenset(points), checked, narrows, certified)
        return build_space(start, front, CUTS, MACHINE, limits, batch_size)

    return make


def values(space: Space, name: str) -> set[object]:
    return {getattr(variant, name) for variant in space.candidates}


def test_start_is_no_candidate(make_space: Callable[..., Space]) -> None:
    assert START not in make_space().candidates


def test_candidates_differ_and_are_among_the_choices(make_space: Callable[..., Space]) -> None:
    space = make_space()
    assert len(set(space.candidates)) == len(space.candidates)
    for variant in space.candidates:
        assert all(value in space.choices[name] for name, value in variant.to_json().items())


def test_threads_are_powers_of_two_around_the_default(make_space: Callable[..., Space]) -> None:
    assert make_space().choices["num_threads"] == (None, 1, 2, 8)


def test_threads_of_the_start_are_a_choice(make_space: Callable[..., Space]) -> None:
    assert 3 in make_space(start=dataclasses.replace(START, num_threads=3)).choices["num_threads"]


def test_default_by_number_is_not_tried_beside_the_default(make_space: Callable[..., Space]) -> None:
    assert make_space(start=dataclasses.replace(START, num_threads=4)).choices["num_threads"] == (4, 1, 2, 8)


def test_streams_have_a_thread_and_an_example_each(make_space: Callable[..., Space]) -> None:
    for variant in make_space(batch_size=2).candidates:
        assert variant.num_streams <= min(variant.num_threads or MACHINE.num_threads, 2)


def test_single_requests_are_neither_split_nor_dealt_out(make_space: Callable[..., Space]) -> None:
    space = make_space(batch_size=1)
    assert values(space, "num_streams") == {1} and values(space, "split_scale") == {1.0}


def test_points_that_use_every_cut_keep_them(make_space: Callable[..., Space]) -> None:
    space = make_space()
    assert {variant.cuts for variant in space.candidates if variant.point == 0} == {"front"}
    assert {variant.cuts for variant in space.candidates if variant.point == 1} == {"front", "point"}


def test_points_that_are_not_allowed_are_left_out(make_space: Callable[..., Space]) -> None:
    space = make_space(points=(0,))
    assert values(space, "point") == {0} and space.choices["point"] == (0, 1)


def test_precision_stays_where_answers_cannot_be_compared(make_space: Callable[..., Space]) -> None:
    assert values(make_space(checked=False), "precision") == {"f32"}
    assert values(make_space(), "precision") == {"f32", "bf16"}


def test_certificate_keeps_precision_and_cuts(make_space: Callable[..., Space]) -> None:
    space = make_space(certified=True)
    assert values(space, "precision") == {START.precision} and values(space, "cuts") == {START.cuts}
    assert len(values(space, "num_threads")) > 1
    assert len(values(make_space(), "cuts")) > 1


def test_float_engines_are_not_quantised(front: tuple[MeasuredPoint, ...]) -> None:
    machine = dataclasses.replace(MACHINE, precisions=("f32", "bf16", "int8"))
    space = build_space(START, front, CUTS, machine, Limits(frozenset({0, 1}), True, True), 32)
    assert space.choices["precision"] == ("f32", "bf16")


def test_int8_engines_are_not_built_again(front: tuple[MeasuredPoint, ...]) -> None:
    machine = dataclasses.replace(MACHINE, precisions=("f32", "bf16", "int8"))
    start = dataclasses.replace(START, precision="int8")
    space = build_space(start, front, CUTS, machine, Limits(frozenset({0, 1}), True, True), 32)
    assert space.candidates
    assert {(v.precision, v.cuts, v.profile) for v in space.candidates} == {("int8", "front", "given")}


def test_profile_of_the_workload_is_tried_where_it_differs(make_space: Callable[..., Space]) -> None:
    assert values(make_space(narrows=False), "profile") == {"given"}
    assert values(make_space(), "profile") == {"given", "workload"}


@pytest.mark.parametrize(
    ("drops", "chosen", "max_drop", "allowed"),
    [
        ((0.0, 0.01, 0.02), 1, None, {0, 1}),
        ((0.0, 0.01, 0.02), 1, 0.02, {0, 1, 2}),
        ((0.0, 0.01, 0.02), 2, 0.0, {0, 2}),
        ((None, None, None), 1, None, {1}),
        ((0.0, None, 0.01), 2, 1.0, {0, 2}),
    ],
)
def test_points_lose_no_more_than_allowed(
    measured_point: Make,
    drops: tuple[float | None, ...],
    chosen: int,
    max_drop: float | None,
    allowed: set[int],
) -> None:
    front = [measured_point(POINTS[0], 1.0, drop) for drop in drops]
    assert allow_points(front, chosen, max_drop) == allowed


@pytest.mark.parametrize(("chosen", "allowed"), [(1, {0, 1}), (2, {0, 1, 2, 3})])
def test_certified_points_are_left_for_certified_ones_alone(
    measured_point: Make, chosen: int, allowed: set[int]
) -> None:
    rows = [measured_point(POINTS[0], 1.0, drop) for drop in (0.0, 0.01, 0.02, 0.0)]
    certified = (True, True, False, False)
    front = [dataclasses.replace(row, certified=passed) for row, passed in zip(rows, certified, strict=True)]
    assert allow_points(front, chosen, 0.5) == allowed


def test_candidates_come_in_order_of_prediction(make_space: Callable[..., Space]) -> None:
    space = make_space()
    predicted = [float(i) for i in range(len(space.candidates), 0, -1)]
    assert rank(space, predicted).candidates == space.candidates[::-1]


def test_of_equals_what_changes_least_comes_first(make_space: Callable[..., Space]) -> None:
    space = make_space()
    changes = [v.count_changes(START) for v in rank(space, [None] * len(space.candidates)).candidates]
    assert changes == sorted(changes)
