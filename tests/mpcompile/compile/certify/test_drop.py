"""Tests of the p-value of a drop in accuracy, and of the bound that inverts it."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, multinomial

from mpcompile.compile.certify.drop import Counts, bound_drop, p_value, rank_outcome

DRAWS = 1000
ALLOWED = 0.05 + 2 * (0.05 * 0.95 / DRAWS) ** 0.5
"""A false-pass rate of 5%, and two standard deviations of what 1,000 draws make of it: 6.4%."""


def losses(lost: int, won: int, both: int, texts: int) -> tuple[np.ndarray, np.ndarray]:
    """Errors of a point and of the original."""
    kinds = np.repeat([0, 1, 2, 3], [lost, won, both, texts - lost - won - both])
    return np.isin(kinds, (0, 2)), np.isin(kinds, (1, 2))


def outcomes(texts: int) -> np.ndarray:
    """Every (lost, won)."""
    return np.array([(a, b) for a in range(texts + 1) for b in range(texts + 1 - a)])


def chances(rows: np.ndarray, texts: int, lost_rate: float, won_rate: float) -> np.ndarray:
    """Probability of each outcome, by SciPy's multinomial."""
    counts = np.column_stack([rows, texts - rows.sum(1)])
    rates = np.clip([lost_rate, won_rate, 1 - lost_rate - won_rate], 0.0, 1.0)
    return np.asarray(multinomial.pmf(counts, texts, rates / rates.sum()))


def shared_bound(lost: int, won: int, texts: int, confidence: float = 0.95) -> float:
    """Two exact intervals that share the failure: what certified before."""
    level = 1 - (1 - confidence) / 2
    high = binomtest(lost, texts, alternative="less").proportion_ci(level, method="exact").high
    low = binomtest(won, texts, alternative="greater").proportion_ci(level, method="exact").low
    return float(high - low)


@st.composite
def labelled_counts(draw: st.DrawFn) -> Counts:
    texts = draw(st.integers(1, 300))
    lost = draw(st.integers(0, texts))
    return Counts(texts, lost, draw(st.integers(0, texts - lost)))


# ---------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("lost", [0, 1, 7, 99, 100])
def test_p_value_without_labels_is_the_binomial_tail(lost: int) -> None:
    loss, _ = losses(lost, 0, 0, 100)
    assert p_value(loss, None, 0.02) == pytest.approx(binom.cdf(lost, 100, 0.02), rel=1e-6)


@pytest.mark.parametrize("lost", [0, 1, 7, 99, 100])
def test_bound_without_labels_is_the_exact_one_sided_interval(lost: int) -> None:
    loss, _ = losses(lost, 0, 0, 100)
    exact = binomtest(lost, 100, alternative="less").proportion_ci(0.95, method="exact").high
    assert bound_drop(loss, None, 0.95) == pytest.approx(exact)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (0, 3), (3, 3), (6, 2), (12, 10), (30, 0)])
@pytest.mark.parametrize("max_drop", [-0.05, 0.0, 0.1, 0.25])
def test_p_value_with_labels_is_the_largest_tail_over_the_nuisance(lost: int, won: int, max_drop: float) -> None:
    texts = 30
    rows = outcomes(texts)
    ranks = rank_outcome(rows[:, 0], rows[:, 1], 0.95)
    as_good = rows[ranks <= rank_outcome(np.array(lost), np.array(won), 0.95) + 1e-9]
    most = 1.0 if lost == texts else binomtest(lost, texts, alternative="less").proportion_ci(0.999).high
    rates = np.linspace(max(max_drop, 0.0), min(most, (1 + max_drop) / 2), 1500)
    expected = 0.001
    if most >= max_drop:
        expected += max(chances(as_good, texts, rate, rate - max_drop).sum() for rate in rates)
    assert Counts(texts, lost, won).p_value(max_drop) == pytest.approx(min(expected, 1.0), rel=2e-3)


def test_texts_are_counted_by_who_errs() -> None:
    assert Counts.of(*losses(3, 2, 5, 40)) == Counts(40, 3, 2)
    assert Counts.of(losses(3, 2, 5, 40)[0], None) == Counts(40, 8, None)
    assert Counts(40, 3, 2).drop == pytest.approx(0.025)


def test_order_of_the_texts_does_not_matter() -> None:
    loss, original = losses(4, 3, 5, 200)
    shuffled = np.random.default_rng(0).permutation(200)
    assert p_value(loss, original, 0.03) == p_value(loss[shuffled], original[shuffled], 0.03)


def test_nothing_lost_on_n_texts_is_the_rule_of_three() -> None:
    none = np.zeros(1000, bool)
    assert bound_drop(none, None, 0.95) == pytest.approx(3 / 1000, rel=0.01)
    assert bound_drop(none, none, 0.95) == pytest.approx(3 / 1000, rel=0.02)


@pytest.mark.parametrize("original", [None, np.zeros(20, bool)], ids=["own measure", "labels"])
def test_everything_lost_is_bounded_by_one(original: np.ndarray | None) -> None:
    assert bound_drop(np.ones(20, bool), original, 0.95) == 1.0


def test_one_text_says_little() -> None:
    assert bound_drop(np.zeros(1, bool), None, 0.95) == pytest.approx(0.95)


def test_no_texts_say_nothing() -> None:
    assert p_value(np.zeros(0, bool), None, 0.005) == 1.0
    assert p_value(np.zeros(0, bool), np.zeros(0, bool), 0.005) == 1.0


def test_point_that_wins_more_than_it_loses_has_a_negative_bound() -> None:
    assert bound_drop(*losses(3, 40, 5, 400), 0.95) < -0.05


def test_twenty_thousand_texts_keep_the_p_value_exact() -> None:
    # Where so many are lost and won, and near the level of the test, a normal approximation is good.
    deviations = (500 - 430 - 0.006 * 20_000) / 930**0.5
    normal = 0.5 * (1 + math.erf(deviations / 2**0.5))
    assert normal < Counts(20_000, 500, 430).p_value(0.006) < 1.2 * normal


# ---------------------------------------------------------------------------------- properties


@given(labelled_counts(), st.floats(0.001, 0.9))
@settings(max_examples=60, deadline=None)
def test_p_value_is_a_probability(counts: Counts, max_drop: float) -> None:
    assert 0.0 < counts.p_value(max_drop) <= 1.0
    assert 0.0 < Counts(counts.texts, counts.lost, None).p_value(max_drop) <= 1.0


@given(labelled_counts(), st.floats(-0.9, 0.9), st.floats(-0.9, 0.9))
@settings(max_examples=60, deadline=None)
def test_p_value_falls_as_max_drop_grows(counts: Counts, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert counts.p_value(high) <= counts.p_value(low) * (1 + 1e-3)
    own = Counts(counts.texts, counts.lost, None)
    assert own.p_value(high) <= own.p_value(low)


@given(labelled_counts(), st.floats(0.001, 0.9))
@example(Counts(3, 0, 0), 0.9)  # what the lost texts leave possible ends at the drop that is tested
@settings(max_examples=60, deadline=None)
def test_p_value_does_not_fall_when_one_more_text_goes_wrong(counts: Counts, max_drop: float) -> None:
    texts, lost, won = counts.texts, counts.lost, counts.won
    assert won is not None
    p = counts.p_value(max_drop) * (1 - 1e-3)
    if lost + won < texts:
        assert Counts(texts, lost + 1, won).p_value(max_drop) >= p
    if won:
        assert Counts(texts, lost, won - 1).p_value(max_drop) >= p


@given(labelled_counts(), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
@settings(max_examples=30, deadline=None)
def test_bound_is_the_smallest_drop_that_is_rejected(counts: Counts, confidence: float) -> None:
    for each in (counts, Counts(counts.texts, counts.lost, None)):
        bound = each.bound_drop(confidence)
        if -0.99 < bound < 0.99:
            assert each.p_value(bound + 1e-5, confidence) <= 1 - confidence
            assert each.p_value(bound - 1e-4, confidence) > 1 - confidence


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95, 0.99, 0.9999])
def test_rank_rises_with_what_is_lost_and_falls_with_what_is_won(confidence: float) -> None:
    ranks = rank_outcome(np.arange(400)[:, None], np.arange(400)[None, :], confidence)
    assert (np.diff(ranks, axis=0) > 0).all()
    assert (np.diff(ranks, axis=1) < 0).all()


# ---------------------------------------------------------------------------------- false passes


@pytest.mark.parametrize(("texts", "max_drop"), [(6, 0.3), (14, 0.1), (25, 0.2)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_p_value_is_valid_over_all_outcomes_and_rates(texts: int, max_drop: float, confidence: float) -> None:
    rows = outcomes(texts)
    p = np.array([Counts(texts, int(a), int(b)).p_value(max_drop, confidence) for a, b in rows])
    order = np.argsort(p)
    last_of_tie = np.append(np.diff(p[order]) > 0, True)
    for drop in (max_drop, max_drop + 0.05, 0.6):
        for won_rate in np.linspace(0.0, (1 - drop) / 2, 40):
            reached = np.cumsum(chances(rows, texts, won_rate + drop, won_rate)[order])[last_of_tie]
            assert (reached <= p[order][last_of_tie] + 1e-9).all()


@pytest.mark.parametrize("max_drop", [0.005, 0.02])
@pytest.mark.parametrize("texts", [700, 2000])
def test_false_passes_without_labels_stay_below_what_is_allowed(texts: int, max_drop: float) -> None:
    lost = np.random.default_rng(texts).binomial(texts, max_drop, DRAWS)
    passed = [Counts(texts, int(a), None).p_value(max_drop) <= 0.05 for a in lost]
    assert np.mean(passed) <= ALLOWED


@pytest.mark.parametrize("won_rate", [0.0, 0.001, 0.005, 0.02, 0.05])
@pytest.mark.parametrize("texts", [400, 1500])
def test_false_passes_with_labels_stay_below_what_is_allowed(texts: int, won_rate: float) -> None:
    max_drop = 0.01
    rates = [won_rate + max_drop, won_rate, 1 - 2 * won_rate - max_drop]
    drawn = np.random.default_rng(texts).multinomial(texts, rates, DRAWS)
    passed = [Counts(texts, int(a), int(b)).p_value(max_drop) <= 0.05 for a, b, _ in drawn]
    assert np.mean(passed) <= ALLOWED


@pytest.mark.parametrize("won_rate", [0.0, 0.005, 0.02])
def test_bound_is_violated_at_most_as_often_as_allowed(won_rate: float) -> None:
    drop, texts = 0.02, 200
    rates = [won_rate + drop, won_rate, 1 - 2 * won_rate - drop]
    drawn = np.random.default_rng(1).multinomial(texts, rates, DRAWS)
    kinds, count = np.unique(drawn[:, :2], axis=0, return_counts=True)
    violated = [Counts(texts, int(a), int(b)).bound_drop(0.95) < drop for a, b in kinds]
    assert count @ np.array(violated) / DRAWS <= ALLOWED


# ---------------------------------------------------------------------------------- power


@pytest.mark.parametrize("texts", [300, 1000, 4000])
def test_bound_is_tighter_than_two_intervals_that_share_the_failure(texts: int) -> None:
    # Drops that a certificate is asked of; of a point that wins much and loses nothing, two intervals know more.
    rates = [pair for pair in itertools.product((0.0, 0.002, 0.005, 0.01, 0.03), repeat=2) if pair[1] - pair[0] < 0.01]
    for lost_rate, won_rate in rates:
        lost, won = round(lost_rate * texts), round(won_rate * texts)
        assert Counts(texts, lost, won).bound_drop(0.95) < shared_bound(lost, won, texts)


@pytest.mark.parametrize(("rate", "at_least"), [(0.001, 0.95), (0.005, 0.6), (0.01, 0.4)])
def test_point_that_loses_as_often_as_it_wins_passes_on_two_thousand_texts(rate: float, at_least: float) -> None:
    drawn = np.random.default_rng(0).multinomial(2000, [rate, rate, 1 - 2 * rate], DRAWS)
    passed = [Counts(2000, int(a), int(b)).p_value(0.005) <= 0.05 for a, b, _ in drawn]
    assert np.mean(passed) >= at_least
