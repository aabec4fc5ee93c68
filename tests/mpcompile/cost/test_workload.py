"""Tests of the predicted time of a workload: batches walk through the exits as in the runtime."""

import numpy as np
import pytest

from mpcompile.cost.device import Device
from mpcompile.cost.model import CostModel
from mpcompile.cost.nodes import GraphWork, NodeWork
from mpcompile.cost.workload import Chain, predict_workload
from mpcompile.operating_point import OperatingPoint


def node(flops_per_token: float) -> NodeWork:
    return NodeWork(lambda b, s: flops_per_token * b * s, lambda b, s: 0 * b * s, 1)


# A layer takes 1 s a token, a call 10 s, and heads next to nothing.
COST = CostModel(
    GraphWork((), ((node(5e8),),) * 2, ((node(5e8),),) * 2, (), 1, 2),
    Device("counted", 1e9, 1e12, node_overhead_s=0.0, engine_overhead_s=10.0),
)
WHOLE = Chain((2,), (np.inf,))
SPLIT = Chain((1, 2), (np.inf, np.inf))
POINT = OperatingPoint((1, 2), (0.5,))


def predict(chain: Chain, batches: list[list[int]], exits: list[list[int]], point: OperatingPoint = POINT) -> float:
    return predict_workload(COST, chain, point, [np.array(b) for b in batches], [np.array(e) for e in exits])


def test_batch_is_padded_to_its_longest() -> None:
    assert predict(WHOLE, [[3, 5]], [[2, 2]], OperatingPoint((2,))) == pytest.approx(10 + 2 * 2 * 5, rel=1e-4)


def test_time_is_the_mean_over_batches() -> None:
    both = predict(WHOLE, [[3], [5]], [[2], [2]], OperatingPoint((2,)))
    assert both == pytest.approx(10 + 2 * 4, rel=1e-4)


def test_survivors_alone_run_on() -> None:
    taken = predict(SPLIT, [[3, 5, 4]], [[2, 1, 1]])
    assert taken == pytest.approx((10 + 3 * 5) + (10 + 1 * 3), rel=1e-4)


def test_engine_behind_an_exit_that_everybody_took_costs_nothing() -> None:
    assert predict(SPLIT, [[3, 5]], [[1, 1]]) == pytest.approx(10 + 2 * 5, rel=1e-4)


def test_groups_are_those_of_the_runtime() -> None:
    chain = Chain((2,), (1.0,))
    taken = predict(chain, [[1, 50, 1]], [[2, 2, 2]], OperatingPoint((2,)))
    assert taken == pytest.approx((10 + 2 * 2 * 1) + (10 + 2 * 50), rel=1e-4)


def test_tokens_pruned_before_an_exit_are_gone_behind_it() -> None:
    point = OperatingPoint((1, 2), (0.5,), (0,), (0.5,))
    taken = predict(SPLIT, [[8]], [[2]], point)
    assert taken == pytest.approx((10 + 0.5 * 8 + 0.5 * 4) + (10 + 4), rel=1e-4)
