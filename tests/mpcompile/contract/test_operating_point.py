"""Tests of operating points: what they allow, and how many tokens they keep."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcompile.contract.operating_point import OperatingPoint, count_kept
from mpcompile.errors import SettingError
from tests.reference import count_kept as count_kept_exactly

POINT = OperatingPoint((0, 2, 6), (0.1, 0.4), (1, 3), (0.9, 0.5), "bf16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((),), r"exit_layers: \(\); expected layers in ascending order"),
        (((2, 1), (0.1,)), r"exit_layers: \(2, 1\); expected layers in ascending order, none twice"),
        (((1, 1), (0.1,)), r"exit_layers: \(1, 1\)"),
        (((-2,),), r"exit_layers: \(-2,\)"),
        (((1,), (), (-1,), (0.5,)), r"prune_layers: \(-1,\)"),
        (((1, 2),), r"exit_thresholds: 0 given for exits \(1, 2\); expected 1"),
        (((1,), (0.5,)), r"exit_thresholds: 1 given for exits \(1,\); expected 0"),
        (((1, 2), (1.5,)), r"exit_thresholds\[0\]: 1\.5; a normalised entropy in \[0, 1\]"),
        (((1, 2, 3), (0.5, -0.1)), r"exit_thresholds\[1\]: -0\.1"),
        (((1, 2), (math.nan,)), r"exit_thresholds\[0\]: nan"),
        (((1,), (), (3, 2), (0.5, 0.5)), r"prune_layers: \(3, 2\)"),
        (((1,), (), (2,), ()), r"keep_ratios: 0 given for prune_layers \(2,\); expected one each"),
        (((1,), (), (2,), (0.0,)), r"keep_ratios\[0\]: 0\.0; a share of tokens in \(0, 1\]"),
        (((1,), (), (2, 3), (1.0, 1.01)), r"keep_ratios\[1\]: 1\.01"),
        (((1,), (), (2,), (math.nan,)), r"keep_ratios\[0\]: nan"),
    ],
)
def test_bad_point_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        OperatingPoint(*arguments)


def test_point_may_prune_nothing() -> None:
    assert OperatingPoint((12,)).keep_ratio_at(3) == 1.0


@pytest.mark.parametrize(("exit_layer", "threshold"), [(0, 0.1), (2, 0.4), (6, math.inf), (4, 0.0), (12, 0.0)])
def test_threshold_is_found_by_exit_layer(exit_layer: int, threshold: float) -> None:
    assert POINT.threshold_at(exit_layer) == threshold


@pytest.mark.parametrize(("layer", "ratio"), [(1, 0.9), (3, 0.5), (0, 1.0), (11, 1.0)])
def test_keep_ratio_is_found_by_layer(layer: int, ratio: float) -> None:
    assert POINT.keep_ratio_at(layer) == ratio


def test_point_survives_json() -> None:
    assert OperatingPoint.from_json(json.loads(json.dumps(POINT.to_json()))) == POINT


def test_points_with_equal_settings_are_equal() -> None:
    assert len({POINT, OperatingPoint.from_json(POINT.to_json())}) == 1


@settings(max_examples=300, deadline=None, derandomize=True)
@given(ratio=st.integers(1, 1000), length=st.integers(1, 512))
def test_tokens_kept_are_those_of_exact_arithmetic(ratio: int, length: int) -> None:
    assert count_kept(ratio / 1000, np.array([length]))[0] == count_kept_exactly(ratio / 1000, length)


@pytest.mark.parametrize(
    ("ratio", "length", "kept"), [(0.07, 100, 7), (0.5, 11, 6), (1.0, 9, 9), (0.01, 1, 1), (1e-12, 50, 4), (0.1, 3, 3)]
)
def test_tokens_kept_are_rounded_up(ratio: float, length: int, kept: int) -> None:
    assert count_kept(ratio, np.array([length])).tolist() == [kept]


def test_tokens_kept_are_whole_numbers() -> None:
    assert count_kept(0.5, np.array([3, 4])).dtype == np.int64
