"""Tests of the search of exit thresholds, against every threshold there is on small tables."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcompile.compile.choose.exit_thresholds import ExitTable, fill_gaps, mix_thresholds, search_thresholds


def build_table(entropy: np.ndarray, seconds: np.ndarray, loss: np.ndarray) -> ExitTable:
    """Calls cost nothing beside their texts."""
    return ExitTable(entropy, seconds, loss, np.zeros(len(entropy)), 1)


def random_table(num_exits: int, count: int, seed: int) -> ExitTable:
    """Later exits take longer and err less, and less where entropy is low."""
    generator = np.random.default_rng(seed)
    entropy = generator.random((num_exits, count))
    seconds = np.cumsum(generator.random((num_exits, 1)) + 0.1, axis=0) * np.ones((1, count))
    share = entropy * np.linspace(1.0, 0.2, num_exits)[:, None]
    return build_table(entropy, seconds, (generator.random((num_exits, count)) < share).astype(float))


def cost_of(table: ExitTable, thresholds: np.ndarray, price: float) -> float:
    seconds, loss = table.evaluate(thresholds)
    return seconds + price * loss


def cheapest(table: ExitTable, price: float) -> float:
    """Over all combinations of thresholds that tell texts apart."""
    choices = [np.concatenate([[0.0], np.sort(row) + 1e-9]) for row in table.entropy[:-1]]
    return min(cost_of(table, np.array([*combination, 2.0]), price) for combination in itertools.product(*choices))


def test_texts_leave_at_the_first_exit_whose_threshold_they_are_below() -> None:
    table = build_table(
        np.array([[0.1, 0.5, 0.5], [0.9, 0.2, 0.9], [0.9, 0.9, 0.9]]), np.zeros((3, 3)), np.zeros((3, 3))
    )
    assert table.leave_at(np.array([0.3, 0.3, 0.0])).tolist() == [0, 1, 2]


def test_text_on_a_threshold_stays() -> None:
    table = build_table(np.array([[0.3], [0.0]]), np.zeros((2, 1)), np.zeros((2, 1)))
    assert table.leave_at(np.array([0.3, 0.0])).tolist() == [1]


def test_time_and_loss_are_means_over_the_texts() -> None:
    table = build_table(
        np.array([[0.1, 0.9], [0.0, 0.0]]), np.array([[1.0, 1.0], [3.0, 5.0]]), np.array([[1.0, 0], [0, 0]])
    )
    assert table.evaluate(np.array([0.5, 2.0])) == (3.0, 0.5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 30), price=st.sampled_from([0.0, 0.3, 1.0, 3.0, 20.0]))
def test_one_exit_is_cut_at_the_best_place_of_all(seed: int, count: int, price: float) -> None:
    table = random_table(2, count, seed)
    assert cost_of(table, search_thresholds(table, price), price) == pytest.approx(cheapest(table, price))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), price=st.sampled_from([0.0, 0.5, 2.0, 10.0]))
def test_three_exits_come_near_the_best_of_all(seed: int, price: float) -> None:
    table = random_table(3, 14, seed)
    found, best = cost_of(table, search_thresholds(table, price), price), cheapest(table, price)
    ends = (cost_of(table, np.array([t, 0.0, 2.0]), price) for t in (0.0, 2.0))
    assert best - 1e-9 <= found <= min(best * 1.15 + 1e-9, *ends)


def test_worthless_errors_let_everybody_leave_at_once() -> None:
    table = random_table(3, 50, seed=1)
    thresholds = search_thresholds(table, 0.0)
    assert table.leave_at(thresholds).tolist() == [0] * 50


def test_priceless_errors_give_the_lowest_loss() -> None:
    table = random_table(2, 25, seed=2)
    losses = [table.evaluate(np.array([t, 2.0]))[1] for t in np.concatenate([[0.0], table.entropy[0] + 1e-9])]
    assert table.evaluate(search_thresholds(table, 1e9))[1] == pytest.approx(min(losses))


def test_exit_that_only_errs_is_not_used() -> None:
    table = build_table(
        np.random.default_rng(0).random((2, 20)),
        np.array([[1.0], [2.0]]) * np.ones((1, 20)),
        np.array([[1.0], [0.0]]) * np.ones((1, 20)),
    )
    assert search_thresholds(table, 10.0).tolist() == [0.0, 2.0]


def test_exit_that_never_errs_takes_everybody() -> None:
    table = build_table(
        np.random.default_rng(0).random((2, 20)), np.array([[1.0], [2.0]]) * np.ones((1, 20)), np.zeros((2, 20))
    )
    assert search_thresholds(table, 10.0)[0] > 1.0


def test_loss_falls_and_time_grows_with_the_price() -> None:
    table = random_table(4, 400, seed=3)
    results = [table.evaluate(search_thresholds(table, price)) for price in (0.0, 0.5, 2.0, 8.0, 100.0)]
    assert results[0][0] < results[-1][0] and results[0][1] > results[-1][1]


def test_thresholds_are_entropies_or_all_or_nothing() -> None:
    for seed in range(20):
        thresholds = search_thresholds(random_table(4, 60, seed), 1.0)
        assert thresholds[-1] > 1.0
        assert all(0.0 <= threshold <= 1.0 or threshold == 2.0 for threshold in thresholds)


def test_one_exit_alone_is_unconditional() -> None:
    assert search_thresholds(random_table(1, 5, seed=0), 1.0).tolist() == [2.0]


# Calls that texts share.


def shared_table(batch_size: int) -> ExitTable:
    """Four texts: two leave at the first exit, below 0.5; each engine's call costs 8 s and nothing else costs time."""
    entropy = np.array([[0.1, 0.2, 0.8, 0.9], [0.0, 0.0, 0.0, 0.0]])
    return ExitTable(entropy, np.zeros((2, 4)), np.zeros((2, 4)), np.array([8.0, 8.0]), batch_size)


def test_text_alone_pays_every_call_that_it_needs() -> None:
    assert shared_table(1).seconds_of(np.array([0, 0, 1, 1])) == pytest.approx([8, 8, 16, 16])


def test_texts_of_a_batch_share_its_calls() -> None:
    seconds = shared_table(2).seconds_of(np.array([0, 0, 1, 1]))
    # Both share the first call; of two texts, three batches in four hold one that enters the second engine.
    assert seconds == pytest.approx([4, 4, 4 + 8 * 0.75 / (2 * 0.5), 4 + 8 * 0.75 / (2 * 0.5)])


def test_calls_of_a_batch_add_up_to_those_that_are_made() -> None:
    mean_s, _ = shared_table(2).evaluate(np.array([0.5, 2.0]))
    assert mean_s == pytest.approx((8 + 0.75 * 8) / 2)


def test_engine_that_nobody_enters_is_not_called() -> None:
    assert shared_table(4).evaluate(np.array([2.0, 2.0]))[0] == pytest.approx(8 / 4)


def test_one_text_more_costs_no_call_that_is_made_anyway() -> None:
    marginal = shared_table(32).marginal_seconds(np.array([0.0, 2.0]))
    assert marginal == pytest.approx(np.zeros((2, 4)))


def test_one_text_more_costs_a_call_that_nobody_else_needs() -> None:
    marginal = shared_table(32).marginal_seconds(np.array([2.0, 2.0]))
    assert marginal == pytest.approx(np.array([[0.0] * 4, [8.0] * 4]))


def test_mixed_thresholds_let_a_mean_number_of_texts_leave() -> None:
    table = random_table(3, 40, 0)
    first, second = np.array([0.0, 0.2, 2.0]), np.array([2.0, 0.7, 2.0])
    below = (table.entropy < first[:, None]).sum(1), (table.entropy < second[:, None]).sum(1)
    for share in (0.0, 0.25, 0.5, 1.0):
        mixed = mix_thresholds(table, first, second, share)
        expected = below[0] + share * (below[1] - below[0])
        np.testing.assert_allclose((table.entropy < mixed[:, None]).sum(1), expected, atol=0.5)


@pytest.mark.parametrize("seed", range(4))
def test_no_gap_is_left_between_a_fast_and_a_slow_solution(seed: int) -> None:
    table = random_table(3, 400, seed)
    ends = [np.array([2.0, 0.0, 2.0]), np.array([0.0, 0.0, 2.0])]
    seconds = sorted(table.evaluate(thresholds)[0] for thresholds in (*ends, *fill_gaps(table, ends)))
    assert seconds[-1] / seconds[0] > 1.5
    assert max(slow / fast for fast, slow in itertools.pairwise(seconds)) < 1.5


def test_solutions_that_are_close_are_left_alone() -> None:
    table = random_table(3, 40, 0)
    thresholds = np.array([0.1, 0.2, 2.0])
    assert fill_gaps(table, [thresholds, thresholds]) == []
