"""Tests of predicted time, on a device and a model made up so that a person can count."""

import dataclasses

import numpy as np
import pytest

from mpcompile.contract.operating_point import OperatingPoint, count_kept
from mpcompile.cost.devices import find_device
from mpcompile.cost.model import CostModel
from mpcompile.cost.rates import declare_rates
from mpcompile.cost.regions import GraphWork
from mpcompile.cost.roofline import predict_region
from mpcompile.cost.work import count_region
from tests.mpcompile.cost.counted import RATES, B, K, S, build_work, pointwise, weights

WORK = build_work(
    2,
    entry=count_region([pointwise(moved=40 * B * S)]),
    embeddings=count_region([pointwise(moved=10 * B * S)]),
    attention=count_region([pointwise(200 * B * S)] * 2),
    prune=count_region([pointwise(100 * B * S + 300 * B * K)]),
    feed_forward=count_region([pointwise(600 * B * S)]),
    exits=count_region([pointwise(50 * B)]),
    classifier=count_region([pointwise(70 * B)]),
)
"""By token: embeddings 1 s, entry 4 s, a layer 4 s + 6 s, a prune 1 s and 3 s for each kept; an example's exit 0.5 s,
its classifier 0.7 s."""
COST = CostModel(WORK, RATES)
FULL = OperatingPoint((2,))
WITH_EXIT = OperatingPoint((1, 2), (0.5,))


def change(**changes: object) -> CostModel:
    return CostModel(WORK, dataclasses.replace(RATES, **changes))


def seconds(
    cost: CostModel, first: int, exit_layer: int, batch_size: int = 1, seq_len: int = 1, point: OperatingPoint = FULL
) -> float:
    return float(cost.predict_segment(first == 0, first, exit_layer, batch_size, np.float64(seq_len), point))


def unpruned(cost: CostModel, batch_size: int = 1, seq_len: int = 1) -> float:
    return float(cost.predict_unpruned(batch_size, np.float64(seq_len)))


# What a segment is made of.


def test_whole_model_is_embeddings_layers_and_classifier() -> None:
    assert unpruned(COST) == pytest.approx(1 + 2 * 10 + 0.7)
    assert unpruned(COST, 3, 5) == pytest.approx(3 * (5 * (1 + 2 * 10) + 0.7))


def test_first_segment_has_the_embeddings_and_an_exit() -> None:
    assert seconds(COST, 0, 1, 2, 4, WITH_EXIT) == pytest.approx(2 * (4 * (1 + 10) + 0.5))


def test_later_segment_gathers_its_survivors_instead() -> None:
    assert seconds(COST, 1, 2, 2, 4, WITH_EXIT) == pytest.approx(2 * (4 * (4 + 10) + 0.7))


def test_segment_without_layers_is_embeddings_and_exit() -> None:
    assert seconds(COST, 0, 0, 1, 4, OperatingPoint((0, 2), (0.5,))) == pytest.approx(4 + 0.5)


def test_segments_cost_what_the_model_costs_and_the_cut() -> None:
    both = seconds(COST, 0, 1, 2, 5) + seconds(COST, 1, 2, 2, 5)
    assert both == pytest.approx(unpruned(COST, 2, 5) + 2 * (5 * 4 + 0.5))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_longer_batch_takes_longer(batch_size: int) -> None:
    taken = [unpruned(COST, batch_size, length) for length in range(1, 20)]
    assert taken == sorted(set(taken))


def test_larger_batch_takes_longer() -> None:
    taken = [unpruned(COST, batch_size, 7) for batch_size in range(1, 20)]
    assert taken == sorted(set(taken))


def test_many_lengths_are_predicted_at_once() -> None:
    lengths = np.array([1.0, 4.0, 9.0])
    expected = [unpruned(COST, 2, length) for length in (1, 4, 9)]
    np.testing.assert_allclose(COST.predict_unpruned(2, lengths), expected)


# Prunes.


def test_prune_shortens_what_comes_behind_it() -> None:
    point = OperatingPoint((2,), (), (0,), (0.5,))
    kept = 5
    behind = kept * (6 + 10) + 0.7
    assert seconds(COST, 0, 2, 1, 10, point) == pytest.approx(10 + 10 * 4 + (10 * 1 + kept * 3) + behind)


def test_prune_takes_effect_behind_the_attention_of_its_layer() -> None:
    point = OperatingPoint((2,), (), (1,), (0.5,))
    assert seconds(COST, 1, 2, 1, 10, point) == pytest.approx(10 * 4 + 10 * 4 + (10 + 5 * 3) + 5 * 6 + 0.7)


def test_prune_of_another_segment_costs_nothing_here() -> None:
    point = OperatingPoint((1, 2), (0.5,), (0,), (0.5,))
    assert seconds(COST, 1, 2, 1, 10, point) == seconds(COST, 1, 2, 1, 10, WITH_EXIT)


def test_prune_that_keeps_everything_still_costs_itself() -> None:
    point = OperatingPoint((2,), (), (0,), (1.0,))
    assert seconds(COST, 0, 2, 1, 10, point) == pytest.approx(unpruned(COST, 1, 10) + 10 * (1 + 3))


def test_prunes_follow_each_other() -> None:
    point = OperatingPoint((2,), (), (0, 1), (0.5, 0.5))
    layers = (16 * 4 + 16 + 8 * 3 + 8 * 6) + (8 * 4 + 8 + 4 * 3 + 4 * 6)
    assert seconds(COST, 0, 2, 1, 16, point) == pytest.approx(16 + layers + 0.7)


def test_prune_of_a_short_text_keeps_four_tokens() -> None:
    point = OperatingPoint((2,), (), (0,), (0.3,))
    assert seconds(COST, 0, 2, 1, 8, point) == pytest.approx(8 + (8 * 4 + 8 + 4 * 3 + 4 * 6) + 4 * 10 + 0.7)


def test_fewer_kept_tokens_take_less_time() -> None:
    points = [OperatingPoint((2,), (), (0,), (ratio,)) for ratio in (0.1, 0.3, 0.6, 1.0)]
    taken = [seconds(COST, 0, 2, 1, 50, point) for point in points]
    assert taken == sorted(set(taken))


# Overheads.


def test_every_call_has_its_overhead() -> None:
    assert unpruned(change(engine_s=7.0)) == pytest.approx(unpruned(COST) + 7)


def test_every_kernel_has_its_launch() -> None:
    # Embeddings, three kernels in each of two layers, classifier.
    assert unpruned(change(launch_s=0.01)) == pytest.approx(unpruned(COST) + 8 * 0.01)


def test_host_looks_at_an_exit_and_waits() -> None:
    cost = change(sync_s=3.0)
    assert seconds(cost, 0, 1, point=WITH_EXIT) == pytest.approx(seconds(COST, 0, 1, point=WITH_EXIT) + 3)


def test_host_does_not_look_at_the_last_exit() -> None:
    cost = change(sync_s=3.0)
    assert seconds(cost, 1, 2, point=WITH_EXIT) == seconds(COST, 1, 2, point=WITH_EXIT)
    assert seconds(cost, 0, 1, point=OperatingPoint((1,))) == seconds(COST, 0, 1, point=OperatingPoint((1,)))


def test_scale_stretches_the_work_and_not_the_call() -> None:
    cost = CostModel(WORK, dataclasses.replace(RATES, engine_s=7.0, sync_s=3.0), scale=2.0)
    assert seconds(cost, 0, 1, point=WITH_EXIT) == pytest.approx(2 * seconds(COST, 0, 1, point=WITH_EXIT) + 7 + 3)


def test_call_of_other_sizes_costs_more_for_every_kernel() -> None:
    cost = change(reshape_s=0.1)
    assert cost.predict_reshape(True, 0, 2, FULL) == pytest.approx(8 * 0.1)
    assert cost.predict_reshape(False, 1, 2, OperatingPoint((2,), (), (1,), (0.5,))) == pytest.approx(
        (1 + 3 + 1 + 1) * 0.1
    )


def test_call_of_other_sizes_is_stretched_like_the_work() -> None:
    cost = CostModel(WORK, dataclasses.replace(RATES, reshape_s=0.1), scale=2.0)
    assert cost.predict_reshape(True, 0, 2, FULL) == pytest.approx(2 * 8 * 0.1)


def test_calls_of_all_sizes_are_alike_where_nothing_was_measured() -> None:
    assert COST.predict_reshape(True, 0, 2, FULL) == 0.0


# Weights.

WEIGHTY = build_work(2, attention=count_region([weights(200)] * 4))
"""A layer of 800 bytes of weights."""


def test_weights_of_a_longer_engine_stay_less_in_the_cache() -> None:
    # Of as much as the cache holds half is there, of twice as much a fifth.
    cost = CostModel(WEIGHTY, dataclasses.replace(RATES, cache_bytes=800.0))
    assert seconds(cost, 0, 1) == pytest.approx(800 * (0.5 / 20 + 0.5 / 10))
    assert seconds(cost, 0, 2) == pytest.approx(1600 * (0.2 / 20 + 0.8 / 10))


def test_later_engine_has_its_own_weights_alone() -> None:
    cost = CostModel(WEIGHTY, dataclasses.replace(RATES, cache_bytes=800.0))
    assert seconds(cost, 1, 2) == pytest.approx(seconds(cost, 0, 1))


def test_narrow_weights_stay_more_in_the_cache() -> None:
    cost = CostModel(WEIGHTY, dataclasses.replace(RATES, cache_bytes=400.0, activation_bytes=2))
    assert seconds(cost, 0, 1) == pytest.approx(400 * (0.5 / 20 + 0.5 / 10))


# Tables.


@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_looked_up_time_is_that_of_direct_evaluation(tiny_work: GraphWork, ratio: float) -> None:
    rates = declare_rates(find_device("l4"), "f16")
    cost, point = CostModel(tiny_work, rates, scale=1.3), OperatingPoint((2,), (), (1,), (ratio,))
    for batch_size, length in ((1, 1), (8, 37), (64, 512)):
        size, seq_len = np.float64(batch_size), np.float64(length)
        parts = list(tiny_work.list_parts(True, 0, 2, seq_len, point))
        weight_bytes, expected = sum(part.region.weight_bytes for part in parts), rates.engine_s
        for part in parts:
            work = part.region.evaluate(size, part.seq_len, count_kept(part.keep_ratio, part.seq_len))
            expected += 1.3 * float(predict_region(rates, work, weight_bytes))
        assert seconds(cost, 0, 2, batch_size, length, point) == pytest.approx(expected, rel=1e-12)


def test_tables_of_two_batch_sizes_are_not_confused() -> None:
    asked = [unpruned(COST, size, 5) for size in (2, 3, 2, 3)]
    assert asked == [unpruned(CostModel(WORK, RATES), size, 5) for size in (2, 3, 2, 3)]


def test_tables_of_two_keep_ratios_are_not_confused() -> None:
    points = [OperatingPoint((2,), (), (0,), (ratio,)) for ratio in (0.3, 0.6, 0.3)]
    asked = [seconds(COST, 0, 2, 1, 10, point) for point in points]
    assert asked == [seconds(CostModel(WORK, RATES), 0, 2, 1, 10, point) for point in points]


def test_lengths_up_to_the_model_s_longest_are_known() -> None:
    cost = CostModel(WORK, RATES, max_length=7)
    assert unpruned(cost, 1, 7) == unpruned(COST, 1, 7)
    with pytest.raises(IndexError):
        unpruned(cost, 1, 8)


# Split prices.


def test_split_tokens_are_what_a_call_costs_in_tokens() -> None:
    # A token takes 5 s in the layers, a call costs 20 s beside them.
    work = build_work(2, feed_forward=count_region([pointwise(250 * B * S)]))
    (tokens,) = CostModel(work, dataclasses.replace(RATES, engine_s=20.0)).split_tokens((2,), 16)
    assert tokens == pytest.approx(20 / 5)


def test_launches_are_a_part_of_what_a_call_costs() -> None:
    work = build_work(2, feed_forward=count_region([pointwise(250 * B * S)]))
    rates = dataclasses.replace(RATES, engine_s=20.0, launch_s=5.0)
    (tokens,) = CostModel(work, rates).split_tokens((2,), 16)
    assert tokens == pytest.approx((20 + 2 * 5) / 5)


def test_new_sizes_and_prunes_are_a_part_of_what_a_call_costs() -> None:
    cost, planning = change(engine_s=2.0), change(engine_s=2.0, reshape_s=0.5)
    assert planning.split_tokens((2,), 16)[0] > cost.split_tokens((2,), 16)[0]
    assert planning.split_tokens((2,), 16, (1,))[0] > cost.split_tokens((2,), 16, (1,))[0]


def test_there_is_a_split_price_for_every_segment() -> None:
    prices = change(engine_s=2.0).split_tokens((0, 1, 2), 16)
    assert len(prices) == 3 and all(price > 0 for price in prices)


# Flops.


def test_flops_of_an_unpruned_example_are_those_of_its_length() -> None:
    counted = COST.count_flops(np.array([1, 3]), FULL, np.array([2, 2]))
    assert counted.tolist() == [2 * 1000 + 70, 3 * 2 * 1000 + 70]


def test_flops_of_an_early_answer_stop_at_its_exit() -> None:
    early, late = COST.count_flops(np.array([3, 3]), WITH_EXIT, np.array([1, 2]))
    assert (early, late) == (3 * 1000 + 50, 2 * 3 * 1000 + 50 + 70)


def test_flops_behind_a_prune_are_those_of_the_tokens_kept() -> None:
    (counted,) = COST.count_flops(np.array([10]), OperatingPoint((2,), (), (0,), (0.5,)), np.array([2]))
    assert counted == 10 * 400 + (10 * 100 + 5 * 300) + 5 * 600 + 5 * 1000 + 70


def test_prunes_behind_an_exit_cost_an_early_answer_nothing() -> None:
    point = OperatingPoint((1, 2), (0.5,), (1,), (0.5,))
    (counted,) = COST.count_flops(np.array([4]), point, np.array([1]))
    assert counted == 4 * 1000 + 50


def test_flops_of_a_model_that_ends_at_an_exit_leave_out_the_classifier() -> None:
    (counted,) = COST.count_flops(np.array([4]), OperatingPoint((1,)), np.array([1]))
    assert counted == 4 * 1000 + 50


# A real model.


@pytest.mark.parametrize("device", ["h200", "jetson-orin-nano", "cpu"])
def test_pruning_a_real_model_is_predicted_to_be_faster(tiny_work: GraphWork, device: str) -> None:
    cost = CostModel(tiny_work, dataclasses.replace(declare_rates(find_device(device), "f32"), launch_s=0.0))
    points = [OperatingPoint((3,), (), (0,), (ratio,)) for ratio in (0.1, 0.5, 1.0)]
    taken = [seconds(cost, 0, 3, 128, 512, point) for point in points]
    assert taken == sorted(set(taken)) and taken[0] < unpruned(cost, 128, 512)


def test_leaving_a_real_model_early_is_predicted_to_be_faster(tiny_work: GraphWork) -> None:
    cost = CostModel(tiny_work, declare_rates(find_device("cpu"), "f32"))
    taken = [seconds(cost, 0, last, 8, 38, OperatingPoint((last,))) for last in (0, 1, 2)]
    assert taken == sorted(set(taken)) and taken[-1] < unpruned(cost, 8, 38)
