"""Predicts the time of a workload: walks its batches through the exits as the runtime would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mpcompile.contract.operating_point import BEFORE, OperatingPoint, count_left
from mpcompile.cost.model import CostModel
from mpcompile.runtime.grouping import split_by_length


@dataclass(frozen=True)
class Chain:
    """The segments that a workload runs through.

    Attributes:
        exit_layers: where they end, ascending.
        split_tokens: see `Runtime`.
        predict_before_s: gives the seconds that the exit before the model takes for so many texts, None without it.
    """

    exit_layers: tuple[int, ...]
    split_tokens: tuple[float, ...]
    predict_before_s: Callable[[float], float] | None = None


def predict_workload(
    cost: CostModel, chain: Chain, point: OperatingPoint, batches: Sequence[np.ndarray], exits: Sequence[np.ndarray]
) -> float:
    """Mean predicted seconds of a batch.

    Args:
        cost: predicts segments.
        chain: the segments.
        point: exits and keep ratios.
        batches: tokens of each example, one array per batch.
        exits: where each example leaves, one array per batch.
    """
    return float(np.mean([_predict_batch(cost, chain, point, *batch) for batch in zip(batches, exits, strict=True)]))


def _predict_batch(
    cost: CostModel, chain: Chain, point: OperatingPoint, length: np.ndarray, leaves: np.ndarray
) -> float:
    if BEFORE not in point.exit_layers:
        return _predict(cost, chain, point, 0, length, leaves)
    assert chain.predict_before_s is not None
    staying, total = leaves > BEFORE, chain.predict_before_s(len(length))
    return total + (_predict(cost, chain, point, 0, length[staying], leaves[staying]) if staying.any() else 0.0)


def _predict(
    cost: CostModel, chain: Chain, point: OperatingPoint, index: int, length: np.ndarray, leaves: np.ndarray
) -> float:
    first = chain.exit_layers[index - 1] if index else 0
    exit_layer = chain.exit_layers[index]
    total = 0.0
    # Texts differ in length: a call of the sizes of the call before is the exception.
    reshape_s = cost.predict_reshape(index == 0, first, exit_layer, point)
    for part in split_by_length(length, chain.split_tokens[index]):
        total += (
            float(cost.predict_segment(index == 0, first, exit_layer, len(part), length[part].max(), point)) + reshape_s
        )
        staying = part[leaves[part] > exit_layer]
        if len(staying):
            kept = count_left(point, first, exit_layer, length[staying])
            total += _predict(cost, chain, point, index + 1, kept, leaves[staying])
    return total
