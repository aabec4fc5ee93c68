"""Tests of expected time: lengths and exits by chance, on a device made up so that a person can count."""

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcompile.contract.operating_point import OperatingPoint, count_left
from mpcompile.cost.devices import find_device
from mpcompile.cost.expected import ExpectedTime, _binomial, total_seconds
from mpcompile.cost.model import CostModel
from mpcompile.cost.rates import Rates, declare_rates
from mpcompile.cost.regions import GraphWork
from mpcompile.cost.work import count_region
from tests.mpcompile.cost.counted import RATES, B, S, build_work, pointwise

HALF = count_region([pointwise(50 * B * S)])
CALLED = dataclasses.replace(RATES, engine_s=10.0)
"""A layer takes 1 s a token, a call 10 s."""
WHOLE, SPLIT = OperatingPoint((2,)), OperatingPoint((1, 2), (0.5,))


COUNTED = CostModel(build_work(2, attention=HALF, feed_forward=HALF), CALLED)


def expect(lengths: list[int], batch_size: int, rates: Rates = CALLED) -> ExpectedTime:
    return ExpectedTime(
        CostModel(build_work(2, attention=HALF, feed_forward=HALF), rates), np.array(lengths), batch_size
    )


def test_batch_of_equal_texts_takes_what_the_cost_model_says() -> None:
    (segment,) = expect([5], 3).predict(WHOLE, [1.0])
    assert segment.predicted_s == pytest.approx(10 + 3 * 2 * 5)


def test_single_text_takes_the_mean_over_its_lengths() -> None:
    (segment,) = expect([2, 4, 9], 1).predict(WHOLE, [1.0])
    assert segment.predicted_s == pytest.approx(10 + 2 * 5)


def test_batch_is_padded_to_the_longest_of_texts_drawn_at_random() -> None:
    # Both of two are short with 1/4: 2 tokens; else one has 6.
    (segment,) = expect([2, 6], 2).predict(WHOLE, [1.0])
    assert segment.predicted_s == pytest.approx(10 + 2 * 2 * (2 / 4 + 6 * 3 / 4))


def test_lengths_that_are_frequent_count_more() -> None:
    (segment,) = expect([6, 2, 2, 2], 2).predict(WHOLE, [1.0])
    assert segment.predicted_s == pytest.approx(10 + 2 * 2 * (2 * 9 / 16 + 6 * 7 / 16))
    assert segment.tokens == 3


def test_segment_that_one_text_reaches_by_chance_costs_that_share() -> None:
    first, second = expect([5], 1).predict(SPLIT, [1.0, 0.25])
    assert first.predicted_s == pytest.approx(10 + 5)
    assert second.predicted_s == pytest.approx(0.25 * (10 + 5))


def test_survivors_of_a_batch_are_as_many_as_chance_leaves() -> None:
    # Of two, each stays with 1/2: none, one or two with 1/4, 1/2 and 1/4.
    _, second = expect([5], 2).predict(SPLIT, [1.0, 0.5])
    assert second.predicted_s == pytest.approx(0.5 * (10 + 5) + 0.25 * (10 + 2 * 5))


def test_segment_that_nobody_reaches_costs_nothing() -> None:
    _, second = expect([5], 4).predict(SPLIT, [1.0, 0.0])
    assert second.predicted_s == 0.0


def test_tokens_pruned_before_an_exit_are_gone_behind_it() -> None:
    point = OperatingPoint((1, 2), (0.5,), (0,), (0.5,))
    first, second = expect([8], 1).predict(point, [1.0, 1.0])
    assert (first.tokens, first.tokens_left, second.tokens, second.tokens_left) == (8, 4, 4, 4)
    assert first.predicted_s == pytest.approx(10 + 0.5 * 8 + 0.5 * 4)
    assert second.predicted_s == pytest.approx(10 + 4)


def test_segments_say_what_they_run() -> None:
    segments = expect([5], 1).predict(SPLIT, [1.0, 0.5])
    assert [(s.first, s.exit_layer, s.survival) for s in segments] == [(0, 1, 1.0), (1, 2, 0.5)]


@pytest.mark.parametrize(("lengths", "extra"), [([5, 5], 0.0), ([4, 6], 4 * 0.5)])
def test_texts_of_unlike_lengths_are_planned_anew(lengths: list[int], extra: float) -> None:
    plain, planned = (
        total_seconds(expect(lengths, 1, rates).predict(WHOLE, [1.0]))
        for rates in (CALLED, dataclasses.replace(CALLED, reshape_s=0.5))
    )
    assert planned - plain == pytest.approx(extra)


def test_total_is_the_sum_of_the_segments() -> None:
    segments = expect([5], 2).predict(SPLIT, [1.0, 0.5])
    assert total_seconds(segments) == pytest.approx(sum(segment.predicted_s for segment in segments))


def test_fewer_survivors_never_take_longer() -> None:
    expected = expect([3, 5, 8, 20], 8)
    taken = [total_seconds(expected.predict(SPLIT, [1.0, share])) for share in (0.0, 0.1, 0.5, 0.9, 1.0)]
    assert taken == sorted(taken)


def test_what_was_predicted_once_is_predicted_again() -> None:
    expected = expect([3, 5, 8], 4)
    points = [SPLIT, WHOLE, OperatingPoint((1, 2), (0.5,), (0,), (0.5,)), SPLIT]
    survivals = [[1.0] * len(point.exit_layers) for point in points]
    remembered = [expected.predict(point, survival) for point, survival in zip(points, survivals, strict=True)]
    anew = [expect([3, 5, 8], 4).predict(point, survival) for point, survival in zip(points, survivals, strict=True)]
    assert remembered == anew


CHAIN = OperatingPoint((1, 2, 3), (0.5, 0.5), (1, 2), (0.7, 0.4))
"""Three engines of the tiny BERT that prune."""


@pytest.fixture(scope="module")
def tiny_cost(tiny_work: GraphWork) -> CostModel:
    """The tiny BERT on a CPU as declared, where kernels and calls cost nothing: then lengths count."""
    rates = declare_rates(find_device("cpu"), "f32")
    return CostModel(tiny_work, dataclasses.replace(rates, launch_s=0.0, engine_s=0.0, product_s=0.0), max_length=40)


def simulate(cost: CostModel, lengths: np.ndarray, batch_size: int, survival: list[float], num_batches: int) -> float:
    """Mean seconds of batches that are drawn, run and compacted one by one."""
    generator = np.random.default_rng(0)
    total = 0.0
    for _ in range(num_batches):
        length = generator.choice(lengths, batch_size)
        luck = generator.random(batch_size)
        for index, (first, exit_layer) in enumerate(itertools.pairwise((0, *CHAIN.exit_layers))):
            length, luck = length[luck < survival[index]], luck[luck < survival[index]]
            if len(length) == 0:
                break
            size = len(length)
            total += float(cost.predict_segment(index == 0, first, exit_layer, size, length.max(), CHAIN))
            length = count_left(CHAIN, first, exit_layer, length)
    return total / num_batches


@pytest.mark.parametrize("batch_size", [1, 6, 24])
def test_batches_that_nobody_leaves_cost_the_sum_of_their_engines(tiny_cost: CostModel, batch_size: int) -> None:
    length, engines = np.array([19]), []
    for index, (first, exit_layer) in enumerate(itertools.pairwise((0, *CHAIN.exit_layers))):
        engines.append(float(tiny_cost.predict_segment(index == 0, first, exit_layer, batch_size, length, CHAIN)[0]))
        length = count_left(CHAIN, first, exit_layer, length)
    segments = ExpectedTime(tiny_cost, np.array([19, 19]), batch_size).predict(CHAIN, [1.0, 1.0, 1.0])
    assert [segment.predicted_s for segment in segments] == pytest.approx(engines)


@pytest.mark.parametrize("batch_size", [1, 4, 16])
@pytest.mark.parametrize("survival", [[1.0, 0.7, 0.3], [1.0, 0.2, 0.05]], ids=str)
def test_expected_time_is_the_mean_of_batches_that_are_drawn(
    tiny_cost: CostModel, batch_size: int, survival: list[float]
) -> None:
    lengths = np.minimum(2 + np.random.default_rng(1).exponential(8.0, 400).astype(np.int64), 40)
    expected_s = total_seconds(ExpectedTime(tiny_cost, lengths, batch_size).predict(CHAIN, survival))
    assert expected_s == pytest.approx(simulate(tiny_cost, lengths, batch_size, survival, 3000), rel=0.03)


SHARES = st.floats(0.0, 1.0)


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    batch_size=st.integers(1, 20),
    shares=st.tuples(SHARES, SHARES),
)
def test_time_grows_with_survival(lengths: list[int], batch_size: int, shares: tuple[float, float]) -> None:
    expected = ExpectedTime(COUNTED, np.array(lengths), batch_size)
    fewer_s, more_s = (total_seconds(expected.predict(SPLIT, [1.0, share])) for share in sorted(shares))
    assert fewer_s <= more_s * (1 + 1e-3)  # numbers of survivors that are too unlikely are left out


@pytest.mark.parametrize("share", [0.0, 1e-300, 1e-9, 0.3, 0.999, 1.0])
@pytest.mark.parametrize("num_trials", [1, 2, 32, 4096])
def test_chances_are_those_of_a_binomial_distribution(num_trials: int, share: float) -> None:
    counts = np.arange(1, num_trials + 1)
    expected = scipy.stats.binom.pmf(counts, num_trials, share if share > 1e-12 else 0.0)
    np.testing.assert_allclose(_binomial(counts, num_trials, share), expected, rtol=1e-8, atol=1e-250)
