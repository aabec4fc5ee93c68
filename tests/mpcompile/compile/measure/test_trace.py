"""Tests of the trace: the tokens that the deployed graphs drop are those of the numpy reference."""

from collections.abc import Mapping

import numpy as np
import pytest
from transformers import PreTrainedModel

from mpcompile.compile.measure.trace import follow_kept, trace_tokens
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.graph.capture import CapturedModel
from mpcompile.graph.segments import partition
from tests.models import NUM_LABELS, build_head, random_batch
from tests.reference import run_reference

KEEP_RATIOS = {0: 0.8, 1: 0.7, 2: 0.5}


def trace(captured: CapturedModel, batch: Mapping[str, np.ndarray], exit_layer: int) -> np.ndarray:
    segments = partition(captured, {1: build_head(1)}, tuple(KEEP_RATIOS))
    point = OperatingPoint((1, 3), (0.6,), tuple(KEEP_RATIOS), tuple(KEEP_RATIOS.values()))
    return trace_tokens(segments, NUM_LABELS, batch, point, exit_layer)


def drop_as_reference(model: PreTrainedModel, batch: Mapping[str, np.ndarray], exit_layer: int) -> list[int]:
    kept = run_reference(model, batch["input_ids"][0], batch["token_type_ids"][0], KEEP_RATIOS).kept
    dropped_in = [-1] * batch["input_ids"].shape[1]
    left = list(range(len(dropped_in)))
    for layer in range(exit_layer):
        survivors = [left[position] for position in kept[layer]]
        for token in set(left) - set(survivors):
            dropped_in[token] = layer
        left = survivors
    return dropped_in


@pytest.mark.parametrize("exit_layer", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 7, 20, 33])
def test_dropped_tokens_are_those_of_the_reference(
    captured: CapturedModel, tiny_bert: PreTrainedModel, length: int, exit_layer: int
) -> None:
    batch = {name: value.numpy() for name, value in random_batch(tiny_bert, [length], seed=length).items()}
    assert trace(captured, batch, exit_layer).tolist() == drop_as_reference(tiny_bert, batch, exit_layer)


def test_position_in_a_later_prune_counts_the_tokens_that_are_left() -> None:
    kept_index = {0: np.array([0, 2, 4]), 2: np.array([0, 2])}
    assert follow_kept(kept_index, 5).tolist() == [-1, 0, 2, 0, -1]


def test_entries_that_fill_up_a_batch_are_ignored() -> None:
    kept_index = {0: np.array([0, 3, 6, 6]), 1: np.array([0, 4])}
    assert follow_kept(kept_index, 4).tolist() == [-1, 0, 0, 1]


def test_nothing_is_dropped_where_nothing_prunes() -> None:
    assert follow_kept({}, 3).tolist() == [-1, -1, -1]
