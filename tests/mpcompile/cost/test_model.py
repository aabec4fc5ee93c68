"""Tests of predicted time, on a device made up so that a person can count."""

import dataclasses

import numpy as np
import pytest

from mpcompile.capture import CapturedModel
from mpcompile.cost.device import Device
from mpcompile.cost.model import CostModel
from mpcompile.cost.nodes import GraphWork, NodeWork, estimate_work
from mpcompile.operating_point import OperatingPoint

FULL = OperatingPoint((2,))
WIDTH, SIZE, LABELS = 128, 10, 2
HEAD_FLOPS = 2 * WIDTH * (2 * SIZE + LABELS)


def node(flops_per_token: float, bytes_per_token: float, count: int = 1) -> NodeWork:
    return NodeWork(lambda b, s: flops_per_token * b * s, lambda b, s: bytes_per_token * b * s, count)


WORK = GraphWork(
    embeddings=(node(0, 100),),
    attention=((node(2000, 10, 2),),) * 2,
    feed_forward=((node(6000, 10),),) * 2,
    classifier=(NodeWork(lambda b, s: 500.0 * b + 0 * s, lambda b, s: 1.0 * b + 0 * s, 1),),
    hidden_size=SIZE,
    num_labels=LABELS,
)
PLAIN = Device("counted", peak_flops_per_s=1000.0, peak_bytes_per_s=100.0, node_overhead_s=0.0, engine_overhead_s=0.0)
COST = CostModel(WORK, PLAIN)


def seconds_of(cost: CostModel, batch_size: float = 1.0, seq_len: float = 1.0) -> float:
    return float(cost.predict_unpruned(np.float64(batch_size), np.float64(seq_len)))


def test_time_is_that_of_the_scarcer_of_flops_and_bytes() -> None:
    # Embeddings 100 / 100, two layers of 2 * 2000 / 1000 + 6000 / 1000, classifier 500 / 1000.
    assert seconds_of(COST) == pytest.approx(1.0 + 2 * (2 * 2.0 + 6.0) + 0.5)


def test_slow_memory_makes_bytes_the_scarcer() -> None:
    slow = dataclasses.replace(PLAIN, peak_bytes_per_s=0.1)
    assert seconds_of(CostModel(WORK, slow)) == pytest.approx(1000.0 + 2 * (2 * 100.0 + 100.0) + 10.0)


def test_every_node_and_every_call_has_its_overhead() -> None:
    device = dataclasses.replace(PLAIN, node_overhead_s=0.01, engine_overhead_s=7.0)
    # One embedding, three nodes in each of two layers, one classifier.
    assert seconds_of(CostModel(WORK, device)) == pytest.approx(seconds_of(COST) + 8 * 0.01 + 7.0)


def test_narrow_activations_move_fewer_bytes() -> None:
    narrow = dataclasses.replace(PLAIN, activation_bytes=2)
    assert seconds_of(CostModel(WORK, narrow)) == pytest.approx(seconds_of(COST) - 0.5)


def test_scale_stretches_the_nodes_and_not_the_call() -> None:
    device = dataclasses.replace(PLAIN, engine_overhead_s=7.0)
    assert seconds_of(CostModel(WORK, device, scale=3.0)) == pytest.approx(3 * seconds_of(COST) + 7.0)


def test_time_grows_with_batch_and_length() -> None:
    assert seconds_of(COST, 1, 5) < seconds_of(COST, 2, 5) < seconds_of(COST, 2, 8)


def test_segments_add_up_to_the_layers_that_they_hold() -> None:
    first, left = COST.predict_layers(0, 1, np.float64(2), np.float64(5), FULL)
    second, _ = COST.predict_layers(1, 2, np.float64(2), left, FULL)
    both, _ = COST.predict_layers(0, 2, np.float64(2), np.float64(5), FULL)
    assert float(first + second) == pytest.approx(float(both))


def test_prune_shortens_what_comes_behind_it() -> None:
    point = OperatingPoint((2,), (), (0,), (0.3,))
    _, kept = COST.predict_layers(0, 2, np.float64(1), np.array([10.0, 5.0]), point)
    assert kept.tolist() == [3, 2]


def test_prune_takes_effect_behind_the_attention_of_its_layer() -> None:
    point = OperatingPoint((2,), (), (0,), (0.5,))
    free = CostModel(WORK, dataclasses.replace(PLAIN, peak_bytes_per_s=1e9))
    seconds, _ = free.predict_layers(0, 1, np.float64(1), np.float64(10), point)
    score = 6 * 10 * SIZE / 1000
    assert float(seconds) == pytest.approx(2 * 2.0 * 10 + score + 6.0 * 5)


def test_exit_costs_a_head_and_saves_the_layers_behind_it() -> None:
    cost = CostModel(WORK, dataclasses.replace(PLAIN, peak_bytes_per_s=1e9))
    seconds, _ = cost.predict_segment(0, 1, np.float64(1), np.float64(4), OperatingPoint((1,)), True)
    pool = 3 * 4 * SIZE / 1000
    assert float(seconds) == pytest.approx(2 * 2.0 * 4 + 6.0 * 4 + pool + HEAD_FLOPS / 1000)


def test_embeddings_are_in_the_first_segment_alone() -> None:
    arguments = (1, 2, np.float64(1), np.float64(4), FULL)
    with_, _ = COST.predict_segment(*arguments, has_embeddings=True)
    without, _ = COST.predict_segment(*arguments, has_embeddings=False)
    assert float(with_ - without) == pytest.approx(4.0)


def test_many_lengths_are_predicted_at_once() -> None:
    lengths = np.array([1.0, 4.0, 9.0])
    expected = [seconds_of(COST, 2, length) for length in lengths]
    np.testing.assert_allclose(COST.predict_unpruned(np.float64(2), lengths), expected)


def test_flops_of_an_unpruned_example_are_those_of_its_nodes() -> None:
    counted = COST.count_flops(np.array([1, 3]), FULL, np.array([2, 2]))
    assert counted.tolist() == [2 * 10_000 + 500, 3 * 2 * 10_000 + 500]


def test_flops_of_an_early_answer_stop_at_its_exit() -> None:
    point = OperatingPoint((1, 2), (0.5,))
    early, late = COST.count_flops(np.array([3, 3]), point, np.array([1, 2]))
    head = 3 * 3 * SIZE + HEAD_FLOPS
    assert early == 3 * 10_000 + head
    assert late == 2 * 3 * 10_000 + head + 500


def test_flops_behind_a_prune_are_those_of_the_tokens_kept() -> None:
    point = OperatingPoint((2,), (), (0,), (0.5,))
    (counted,) = COST.count_flops(np.array([4]), point, np.array([2]))
    assert counted == 4 * 4000 + 6 * 4 * SIZE + 2 * 6000 + 2 * 10_000 + 500


def test_prunes_behind_an_exit_cost_an_early_answer_nothing() -> None:
    point = OperatingPoint((1, 2), (0.5,), (1,), (0.5,))
    (counted,) = COST.count_flops(np.array([4]), point, np.array([1]))
    assert counted == 4 * 10_000 + 3 * 4 * SIZE + HEAD_FLOPS


@pytest.mark.parametrize("pruned", [0.5, 0.3])
def test_pruning_a_real_model_is_predicted_to_be_faster(captured: CapturedModel, pruned: float) -> None:
    cost = CostModel(estimate_work(captured.graph_module, 3), dataclasses.replace(PLAIN, peak_bytes_per_s=1e4))
    point = OperatingPoint((3,), (), (0, 1), (pruned, pruned))
    taken, _ = cost.predict_segment(0, 3, np.float64(8), np.float64(38), point, True)
    assert float(taken) < seconds_of(cost, 8, 38)


def test_leaving_a_real_model_early_is_predicted_to_be_faster(captured: CapturedModel) -> None:
    cost = CostModel(estimate_work(captured.graph_module, 3), PLAIN)
    taken = [
        float(cost.predict_segment(0, last, np.float64(8), np.float64(38), OperatingPoint((last,)), True)[0])
        for last in (0, 1, 2)
    ]
    assert taken == sorted(taken) and taken[-1] < seconds_of(cost, 8, 38)


def test_split_tokens_are_what_a_call_costs_in_tokens() -> None:
    # 16 tokens a second in the layers of either segment; a call costs 2 s beside them.
    work = GraphWork((), ((node(0, 0),),) * 2, ((node(62.5, 0),),) * 2, (), SIZE, LABELS)
    device = dataclasses.replace(PLAIN, engine_overhead_s=2.0, peak_bytes_per_s=1e12)
    cost = CostModel(work, device)
    (tokens,) = cost.split_tokens([2], 16)
    assert tokens == pytest.approx(2.0 / (2 * 62.5 / 1000), rel=1e-6)


def test_there_is_a_split_price_for_every_segment() -> None:
    device = dataclasses.replace(PLAIN, engine_overhead_s=2.0)
    prices = CostModel(WORK, device).split_tokens([0, 1, 2], 16)
    assert len(prices) == 3 and all(price > 0 for price in prices)
