"""Tests of early stopping."""

import numpy as np
import pytest

from mpcompile.tuning.stopping import MAX_ROUNDS, is_hopeless


@pytest.mark.parametrize(
    ("ratios", "best", "expected"),
    [
        ([1.4], 1.0, False),
        ([1.6], 1.0, True),
        ([1.3, 1.3], 1.0, True),
        ([1.3, 1.1], 1.0, False),
        ([1.1, 1.1, 1.1], 1.0, True),
        ([1.01, 1.1, 1.1], 1.0, False),
        ([1.01, 1.1, 1.1, 1.1], 1.0, True),
        ([0.99, 1.1, 1.1, 1.1], 1.0, False),
        ([0.9], 0.4, False),
        ([0.9, 0.9], 0.4, False),
        ([0.9, 0.9, 0.9], 0.4, True),
        ([0.9, 0.9, 0.9], 0.8, False),
        ([0.9, 0.9, 0.9, 0.9, 0.9], 0.8, True),
    ],
)
def test_candidate_is_stopped_when_even_its_fastest_round_is_slower(
    ratios: list[float], best: float, expected: bool
) -> None:
    assert is_hopeless(ratios, best) is expected


def test_candidate_that_is_faster_survives_noise() -> None:
    rng = np.random.default_rng(0)
    stopped = 0
    for _ in range(500):
        ratios = 0.9 * np.exp(rng.normal(0.0, 0.1, MAX_ROUNDS))
        stopped += any(is_hopeless(ratios[:count], 1.0) for count in range(1, MAX_ROUNDS + 1))
    assert stopped <= 5
