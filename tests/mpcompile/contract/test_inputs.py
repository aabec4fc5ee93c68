"""Tests of the table of inputs: names, sizes and values are those that a person would write down."""

import numpy as np
import pytest

from mpcompile.contract.inputs import (
    NUM_KEPT,
    SLOTS,
    TOKEN_THRESHOLD,
    LayerSetting,
    RuntimeInput,
    fill_inputs,
    find_input,
    list_layers,
    size_names,
)

NAMES = ("hidden", "mask", "rows", "positions", "num_kept_2", "slots_2", "num_kept_11", "slots_11")
SETTING = LayerSetting(2, np.array([3, 5]), 5, 0.25)


def test_input_of_a_layer_is_found_with_its_index() -> None:
    assert find_input("slots_11") == (SLOTS, 11)
    assert find_input("mask")[1] is None


@pytest.mark.parametrize("name", ["slots_", "slots_x", "mask_2", "hidden_state", ""])
def test_name_without_a_row_is_refused(name: str) -> None:
    with pytest.raises(KeyError, match="no row of INPUTS"):
        find_input(name)


def test_layers_ascend() -> None:
    assert list_layers(("slots_11", "slots_2", "num_kept_3"), SLOTS) == [2, 11]


def test_inputs_of_one_layer_are_filled() -> None:
    filled = {name: value.tolist() for name, value in fill_inputs(NAMES, SETTING).items()}
    assert filled == {
        "num_kept_2": [3, 5],
        "slots_2": [0, 1, 2, 3, 4],
    }


def test_threshold_is_filled() -> None:
    (value,) = fill_inputs(("hidden", "token_threshold_2"), SETTING).values()
    assert (value.tolist(), value.dtype) == ([0.25], np.float32)


def test_layer_that_does_not_prune_has_no_inputs() -> None:
    assert fill_inputs(("input_ids", "attention_mask"), SETTING) == {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hidden", {0: "batch", 1: "seq_len"}),
        ("mask", {0: "batch", 3: "seq_len"}),
        ("rows", {0: "rows"}),
        ("positions", {0: "positions"}),
        ("num_kept_2", {0: "rows"}),
        ("slots_2", {0: "kept_2"}),
        ("token_threshold_2", {}),
    ],
)
def test_dynamic_sizes_have_names(name: str, expected: dict[int, str]) -> None:
    assert size_names(name) == expected


def test_shape_takes_numbers_and_sizes() -> None:
    assert find_input("mask")[0].shape({"batch": 4, "seq_len": 9}, int) == (4, 1, 1, 9)


@pytest.mark.parametrize("row", [NUM_KEPT, SLOTS, TOKEN_THRESHOLD])
def test_values_have_the_dtype_and_the_dimensions_of_the_row(row: RuntimeInput) -> None:
    (value,) = fill_inputs((row.of_layer(2),), SETTING).values()
    assert (value.dtype, value.shape) == (row.dtype, row.shape({"rows": 2, "kept": 5}, int))
