"""Tests of the pyramid: counts that a person can check."""

import numpy as np
import pytest

from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.report.pyramid import count_pyramid
from mpcompile.runtime.model import OptimizedModel

LENGTHS = np.array([10, 30])
POINT = OperatingPoint((1, 3), (0.5,), (0, 2), (0.5, 0.3))


def test_share_that_runs_a_layer_is_counted() -> None:
    rows = count_pyramid(LENGTHS, np.array([1, 3]), POINT, 4)
    assert [row.running for row in rows] == [1.0, 0.5, 0.5, 0.0]


def test_tokens_are_averaged_over_the_texts_that_run_the_layer() -> None:
    rows = count_pyramid(LENGTHS, np.array([1, 3]), POINT, 3)
    assert [row.tokens_kept for row in rows] == [10.0, 15.0, 5.0]


def test_every_layer_of_the_model_has_a_row() -> None:
    assert [row.layer for row in count_pyramid(LENGTHS, np.array([1, 1]), POINT, 4)] == [0, 1, 2, 3]


def test_a_layer_that_nothing_runs_keeps_nothing() -> None:
    assert count_pyramid(LENGTHS, np.array([1, 1]), POINT, 2)[1].tokens_kept == 0.0


def test_pyramid_of_a_report_sums_to_its_mean_exit_layer(optimized: OptimizedModel) -> None:
    running = sum(row.running for row in optimized.report.pyramid)
    assert running == pytest.approx(optimized.operating_point.mean_exit_layer)


def test_pyramid_of_a_report_has_the_layers_of_the_model(optimized: OptimizedModel) -> None:
    assert len(optimized.report.pyramid) == optimized.report.model["num_layers"] == 3
