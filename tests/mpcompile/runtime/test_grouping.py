"""Tests of grouping: a batch is cut by length where padding costs more than another call."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcompile.runtime.grouping import split_by_length

PROPERTY = settings(max_examples=200, deadline=None, derandomize=True)
extents = st.lists(st.integers(1, 60), min_size=1, max_size=20).map(np.array)
prices = st.sampled_from([0.0, 0.5, 3.0, 10.0, 40.0, 1e6, np.inf])


def cost_of(extent: np.ndarray, groups: list[np.ndarray], split_tokens: float) -> float:
    return sum(len(group) * int(extent[group].max()) + split_tokens for group in groups)


def cheapest(extent: np.ndarray, split_tokens: float) -> float:
    """Over all ways to cut the sorted batch, one by one."""
    by_length = np.argsort(extent, kind="stable")
    inner = len(extent) - 1
    return min(
        cost_of(
            extent,
            np.split(by_length, [position + 1 for position in range(inner) if cuts >> position & 1]),
            split_tokens,
        )
        for cuts in range(2**inner)
    )


@PROPERTY
@given(extent=extents, split_tokens=prices)
def test_every_position_is_in_one_group(extent: np.ndarray, split_tokens: float) -> None:
    groups = split_by_length(extent, split_tokens)
    assert all(len(group) for group in groups)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(extent)))


@PROPERTY
@given(extent=extents, split_tokens=prices.filter(np.isfinite))
def test_groups_are_never_worse_than_one_group(extent: np.ndarray, split_tokens: float) -> None:
    together = cost_of(extent, [np.arange(len(extent))], split_tokens)
    assert cost_of(extent, split_by_length(extent, split_tokens), split_tokens) <= together


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    extent=st.lists(st.integers(1, 30), min_size=1, max_size=8).map(np.array),
    split_tokens=prices.filter(np.isfinite),
)
def test_groups_are_the_cheapest_of_all(extent: np.ndarray, split_tokens: float) -> None:
    assert cost_of(extent, split_by_length(extent, split_tokens), split_tokens) == pytest.approx(
        cheapest(extent, split_tokens)
    )


@PROPERTY
@given(extent=extents, split_tokens=prices)
def test_shortest_group_comes_first(extent: np.ndarray, split_tokens: float) -> None:
    longest = [int(extent[group].max()) for group in split_by_length(extent, split_tokens)]
    assert longest == sorted(longest)


def test_calls_that_cost_nothing_leave_no_padding() -> None:
    groups = split_by_length(np.array([3, 9, 3, 5]), 0.0)
    assert [group.tolist() for group in groups] == [[0, 2], [3], [1]]


def test_calls_that_cost_all_keep_the_batch_as_it_is() -> None:
    (group,) = split_by_length(np.array([3, 90, 1]), np.inf)
    assert group.tolist() == [0, 1, 2]


def test_one_long_example_runs_apart_from_many_short_ones() -> None:
    groups = split_by_length(np.array([5, 100, 5, 5]), 50.0)
    assert [group.tolist() for group in groups] == [[0, 2, 3], [1]]
