"""Tests of the bound on the accuracy lost."""

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest

from mpcompile.certify import bound_drop

DRAWS = 1000
MARGIN = 0.02
"""About three standard deviations of a share of 5% over 1,000 draws."""


def losses(only_we: int, only_original: int, both: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Errors of a point and of the original on `count` texts."""
    kinds = np.repeat([0, 1, 2, 3], [only_we, only_original, both, count - only_we - only_original - both])
    return np.isin(kinds, (0, 2)), np.isin(kinds, (1, 2))


def upper(hits: int, count: int, confidence: float) -> float:
    """One-sided, by SciPy's own exact interval."""
    interval = binomtest(hits, count, alternative="less").proportion_ci(confidence, method="exact")
    return float(interval.high)


def lower(hits: int, count: int, confidence: float) -> float:
    interval = binomtest(hits, count, alternative="greater").proportion_ci(confidence, method="exact")
    return float(interval.low)


@pytest.mark.parametrize(
    ("only_we", "only_original", "both"),
    [(0.02, 0.0, 0.0), (0.1, 0.0, 0.0), (0.02, 0.02, 0.1), (0.05, 0.01, 0.1), (0.01, 0.05, 0.0), (0.004, 0.004, 0.0)],
)
@pytest.mark.parametrize("count", [40, 400])
def test_bound_is_violated_at_most_as_often_as_allowed(
    only_we: float, only_original: float, both: float, count: int
) -> None:
    generator = np.random.default_rng(count)
    shares = [only_we, only_original, both, 1 - only_we - only_original - both]
    violated = 0
    for kinds in generator.choice(4, (DRAWS, count), p=shares):
        bound = bound_drop(np.isin(kinds, (0, 2)), np.isin(kinds, (1, 2)), 0.95)
        violated += bound < only_we - only_original
    assert violated / DRAWS <= 0.05 + MARGIN


@pytest.mark.parametrize("only_we", [0, 1, 7, 99, 100])
def test_bound_on_disagreement_is_the_exact_one_sided_interval(only_we: int) -> None:
    assert bound_drop(*losses(only_we, 0, 0, 100), 0.95) == pytest.approx(upper(only_we, 100, 0.95))


@pytest.mark.parametrize(("only_we", "only_original", "both"), [(3, 2, 5), (0, 4, 0), (10, 0, 1), (0, 0, 8)])
def test_bound_with_labels_shares_the_failure_between_two_intervals(
    only_we: int, only_original: int, both: int
) -> None:
    expected = upper(only_we, 200, 0.975) - lower(only_original, 200, 0.975)
    assert bound_drop(*losses(only_we, only_original, both, 200), 0.95) == pytest.approx(expected)


def test_nothing_lost_on_n_texts_is_the_rule_of_three() -> None:
    assert bound_drop(*losses(0, 0, 0, 1000), 0.95) == pytest.approx(3 / 1000, rel=0.01)


def test_everything_lost_is_bounded_by_one() -> None:
    assert bound_drop(*losses(20, 0, 0, 20), 0.95) == 1.0


def test_one_text_says_little() -> None:
    assert bound_drop(*losses(0, 0, 0, 1), 0.95) == pytest.approx(0.95)


@pytest.mark.parametrize("both", [0, 5])
def test_bound_grows_with_what_is_lost(both: int) -> None:
    bounds = [bound_drop(*losses(only_we, 0, both, 50), 0.95) for only_we in range(46)]
    assert all(a < b for a, b in itertools.pairwise(bounds))


def test_bound_falls_with_what_is_gained() -> None:
    bounds = [bound_drop(*losses(3, only_original, 5, 50), 0.95) for only_original in range(43)]
    assert all(a > b for a, b in itertools.pairwise(bounds))


def test_bound_falls_with_more_texts() -> None:
    bounds = [bound_drop(*losses(2 * n, n, n, 100 * n), 0.95) for n in (1, 2, 4, 8)]
    assert all(a > b for a, b in itertools.pairwise(bounds))


def test_bound_grows_with_confidence() -> None:
    bounds = [bound_drop(*losses(3, 2, 1, 100), confidence) for confidence in (0.5, 0.8, 0.95, 0.99, 0.9999)]
    assert all(a < b for a, b in itertools.pairwise(bounds))


def test_bound_is_never_below_what_was_seen() -> None:
    for only_we in range(0, 30, 3):
        for only_original in range(0, 30, 3):
            bound = bound_drop(*losses(only_we, only_original, 0, 60), 0.95)
            assert bound >= (only_we - only_original) / 60
