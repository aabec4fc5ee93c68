"""Tests of the predicted time of a workload: batches walk through the exits as in the runtime."""

import dataclasses

import numpy as np
import pytest

from mpcompile.contract.operating_point import BEFORE, OperatingPoint
from mpcompile.cost.chain import Chain, predict_workload
from mpcompile.cost.model import CostModel
from mpcompile.cost.work import count_region
from tests.mpcompile.cost.counted import RATES, B, S, build_work, pointwise

HALF = count_region([pointwise(50 * B * S)])
COST = CostModel(build_work(2, attention=HALF, feed_forward=HALF), dataclasses.replace(RATES, engine_s=10.0))
"""A layer takes 1 s a token, a call 10 s, and heads nothing."""
WHOLE = Chain((2,), (np.inf,))
SPLIT = Chain((1, 2), (np.inf, np.inf))
POINT = OperatingPoint((1, 2), (0.5,))
TO_THE_END = OperatingPoint((2,))


def predict(
    chain: Chain,
    batches: list[list[int]],
    exits: list[list[int]],
    point: OperatingPoint = POINT,
    cost: CostModel = COST,
) -> float:
    return predict_workload(cost, chain, point, [np.array(b) for b in batches], [np.array(e) for e in exits])


def test_batch_is_padded_to_its_longest() -> None:
    assert predict(WHOLE, [[3, 5]], [[2, 2]], TO_THE_END) == pytest.approx(10 + 2 * 2 * 5)


def test_time_is_the_mean_over_batches() -> None:
    assert predict(WHOLE, [[3], [5]], [[2], [2]], TO_THE_END) == pytest.approx(10 + 2 * 4)


def test_survivors_alone_run_on() -> None:
    assert predict(SPLIT, [[3, 5, 4]], [[2, 1, 1]]) == pytest.approx((10 + 3 * 5) + (10 + 1 * 3))


def test_engine_behind_an_exit_that_everybody_took_costs_nothing() -> None:
    assert predict(SPLIT, [[3, 5]], [[1, 1]]) == pytest.approx(10 + 2 * 5)


def test_those_that_leave_before_the_model_start_no_engine() -> None:
    chain = Chain((1, 2), (np.inf, np.inf), lambda count: 3.0 + count)
    point = OperatingPoint((BEFORE, 1, 2), (0.5, 0.5))
    assert predict(chain, [[3, 5, 4]], [[2, BEFORE, BEFORE]], point) == pytest.approx((3 + 3) + (10 + 3) + (10 + 3))
    assert predict(chain, [[3, 5]], [[BEFORE, BEFORE]], point) == pytest.approx(3 + 2)


def test_groups_are_those_of_the_runtime() -> None:
    chain = Chain((2,), (1.0,))
    taken = predict(chain, [[1, 50, 1]], [[2, 2, 2]], TO_THE_END)
    assert taken == pytest.approx((10 + 2 * 2 * 1) + (10 + 2 * 50))


def test_tokens_pruned_before_an_exit_are_gone_behind_it() -> None:
    point = OperatingPoint((1, 2), (0.5,), (0,), (0.5,))
    assert predict(SPLIT, [[8]], [[2]], point) == pytest.approx((10 + 0.5 * 8 + 0.5 * 4) + (10 + 4))


def test_every_call_plans_anew_for_its_sizes() -> None:
    planning = CostModel(COST.work, dataclasses.replace(COST.rates, reshape_s=0.5))
    extra = predict(SPLIT, [[3, 5]], [[2, 1]], cost=planning) - predict(SPLIT, [[3, 5]], [[2, 1]])
    assert extra == pytest.approx(2 * 2 * 0.5)  # two calls of two kernels


def test_host_waits_at_the_exits_that_it_looks_at() -> None:
    waiting = CostModel(COST.work, dataclasses.replace(COST.rates, sync_s=3.0))
    extra = predict(SPLIT, [[3, 5]], [[2, 1]], cost=waiting) - predict(SPLIT, [[3, 5]], [[2, 1]])
    assert extra == pytest.approx(3.0)


def test_segment_behind_an_exit_at_the_embeddings_embeds_nothing_again() -> None:
    embedding = build_work(2, embeddings=HALF, attention=HALF, feed_forward=HALF)
    cost, chain = CostModel(embedding, COST.rates), Chain((0, 2), (np.inf, np.inf))
    taken = predict(chain, [[4]], [[2]], OperatingPoint((0, 2), (0.5,)), cost)
    assert taken == pytest.approx((10 + 0.5 * 4) + (10 + 2 * 4))
