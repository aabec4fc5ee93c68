"""Tests of requests: what does not fit the model is named, with what is allowed and what to do."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

import mpcompile
from mpcompile.contract.task import Task
from mpcompile.errors import InputError
from mpcompile.runtime.requests import ModelSignature, check_request

SIGNATURE = ModelSignature(
    ("input_ids", "attention_mask", "token_type_ids"),
    3,
    40,
    100,
    {0: "negative", 1: "neutral", 2: "positive"},
    Task("single_label", 3),
)
IDS = [[2, 7, 3], [2, 9, 8]]

REFUSED = {
    "nothing": ({}, ["input_ids: missing", "(batch, length)", "tokenizer"]),
    "no ids": ({"attention_mask": [[1]]}, ["input_ids: missing", "(batch, length)"]),
    "empty list": ({"input_ids": []}, ["input_ids: empty", "at least one text"]),
    "batch of none": ({"input_ids": np.zeros((0, 5), int)}, ["(0, 5)", "at least one text with one token"]),
    "texts of no tokens": ({"input_ids": np.zeros((2, 0), int)}, ["(2, 0)", "at least one text with one token"]),
    "one text alone": ({"input_ids": [2, 7, 3]}, ["(3,)", "(batch, length)", "a batch of one"]),
    "three dimensions": ({"input_ids": np.zeros((1, 2, 3), int)}, ["(1, 2, 3)", "(batch, length)"]),
    "a number": ({"input_ids": 5}, ["()", "(batch, length)"]),
    "rows of different lengths": ({"input_ids": [[2, 7, 3], [2, 3]]}, ["different lengths", "padding=True"]),
    "real numbers": ({"input_ids": np.ones((1, 3), np.float32)}, ["float32", "whole numbers", "tokenizer"]),
    "complex numbers": ({"input_ids": np.ones((1, 3), np.complex64)}, ["complex64", "whole numbers"]),
    "texts": ({"input_ids": [["good", "bad"]]}, ["<U4", "whole numbers"]),
    "objects": ({"input_ids": [[None, 3]]}, ["object", "whole numbers"]),
    "too long": ({"input_ids": np.ones((1, 41), int)}, ["41 tokens", "up to 40", "truncation=True", ".predict(texts)"]),
    "negative id": ({"input_ids": [[2, -1]]}, ["-1", "ends at 99", "tokenizer that belongs to the model"]),
    "id beyond the vocabulary": ({"input_ids": [[2, 100]]}, ["100", "ends at 99", "tokenizer that belongs"]),
    "huge id": ({"input_ids": np.array([[2, 2**63 + 5]], np.uint64)}, ["ends at 99"]),
    "mask of other width": (
        {"input_ids": IDS, "attention_mask": [[1, 1], [1, 1]]},
        ["attention_mask", "(2, 2)", "(2, 3)"],
    ),
    "mask of other batch": ({"input_ids": IDS, "attention_mask": [[1, 1, 1]]}, ["attention_mask", "(1, 3)", "(2, 3)"]),
    "mask of one dimension": ({"input_ids": IDS, "attention_mask": [1, 1]}, ["attention_mask", "(2,)"]),
    "additive mask": (
        {"input_ids": [[2, 7]], "attention_mask": [[0.0, -1e4]]},
        ["attention_mask", "float64", "whole numbers"],
    ),
    "mask of other values": (
        {"input_ids": [[2, 7]], "attention_mask": [[1, 4]]},
        ["attention_mask", "4", "1 marks a token and 0 padding"],
    ),
    "mask below 0": ({"input_ids": [[2, 7]], "attention_mask": [[1, -7]]}, ["attention_mask", "-7", "0 padding"]),
    "row of padding": (
        {"input_ids": IDS, "attention_mask": [[1, 1, 1], [0, 0, 0]]},
        ["attention_mask[1]", "all padding", "every row needs a token", "leave empty rows out"],
    ),
    "left padding": (
        {"input_ids": IDS, "attention_mask": [[1, 1, 1], [0, 1, 1]]},
        ["attention_mask[1, 0]: 0", "must be real", "pad on the right", "padding_side = 'right'"],
    ),
    "types of other shape": (
        {"input_ids": IDS, "token_type_ids": [[0, 0]]},
        ["token_type_ids", "(1, 2)", "(2, 3)"],
    ),
    "type 2": ({"input_ids": [[2, 7]], "token_type_ids": [[0, 2]]}, ["token_type_ids", "from 0 to 2", "0 and 1"]),
    "type -5": ({"input_ids": [[2, 7]], "token_type_ids": [[0, -5]]}, ["token_type_ids", "-5", "0 and 1"]),
    "types of real numbers": ({"input_ids": [[2, 7]], "token_type_ids": [[0.0, 0.5]]}, ["token_type_ids", "float64"]),
}


@pytest.mark.parametrize(("request_", "parts"), REFUSED.values(), ids=REFUSED)
def test_bad_request_is_explained(request_: dict[str, Any], parts: Sequence[str]) -> None:
    with pytest.raises(InputError) as error:
        check_request(SIGNATURE, request_)
    for part in parts:
        assert part in str(error.value)


def test_request_is_made_int64() -> None:
    checked = check_request(SIGNATURE, {"input_ids": np.array(IDS, np.int32), "attention_mask": np.ones((2, 3), bool)})
    assert {value.dtype for value in checked.values()} == {np.dtype(np.int64)}
    assert list(checked) == ["input_ids", "attention_mask", "token_type_ids"]


def test_missing_mask_means_that_every_token_is_real() -> None:
    assert check_request(SIGNATURE, {"input_ids": IDS})["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 1]]


def test_missing_types_are_0() -> None:
    assert check_request(SIGNATURE, {"input_ids": IDS})["token_type_ids"].tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("kind", [np.array, torch.tensor, list], ids=["array", "tensor", "list"])
def test_arrays_tensors_and_lists_are_taken(kind: Any) -> None:
    checked = check_request(SIGNATURE, {"input_ids": kind(IDS), "attention_mask": kind([[1, 1, 1], [1, 1, 0]])})
    assert checked["input_ids"].tolist() == IDS
    assert checked["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_tensors_that_need_gradients_do_not_matter() -> None:
    ids = torch.tensor(IDS)
    types = torch.zeros(2, 3, requires_grad=True)
    with pytest.raises(InputError, match="token_type_ids: float32"):
        check_request(SIGNATURE, {"input_ids": ids, "token_type_ids": types})


def test_strided_arrays_are_made_contiguous() -> None:
    ids = np.arange(12).reshape(3, 4).T[::2]
    checked = check_request(SIGNATURE, {"input_ids": ids})["input_ids"]
    assert checked.flags.c_contiguous
    np.testing.assert_array_equal(checked, ids)


def test_longest_request_is_taken() -> None:
    assert check_request(SIGNATURE, {"input_ids": np.ones((1, 40), int)})["input_ids"].shape == (1, 40)


def test_request_is_left_as_it_is() -> None:
    ids, mask = np.array(IDS), np.array([[1, 1, 1], [1, 1, 0]])
    check_request(SIGNATURE, {"input_ids": ids, "attention_mask": mask})
    assert ids.tolist() == IDS and mask.tolist() == [[1, 1, 1], [1, 1, 0]]


_ANYTHING = st.one_of(
    st.none(),
    st.integers(),
    st.text(),
    st.lists(st.lists(st.one_of(st.integers(-2, 120), st.floats(), st.none()), max_size=4), max_size=4),
    hypothesis_numpy.arrays(
        st.sampled_from([np.int64, np.int8, np.uint64, np.float16, np.bool_, "U3"]),
        hypothesis_numpy.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(ids=_ANYTHING, mask=_ANYTHING, types=_ANYTHING)
def test_anything_is_answered_or_refused_with_an_input_error(ids: Any, mask: Any, types: Any) -> None:
    try:
        checked = check_request(SIGNATURE, {"input_ids": ids, "attention_mask": mask, "token_type_ids": types})
    except InputError:
        return
    assert len({value.shape for value in checked.values()}) == 1
    assert checked["attention_mask"][:, 0].all()


def test_loaded_model_refuses_bad_requests(artifact: Any) -> None:
    with pytest.raises(InputError, match=r"attention_mask\[0\]: all padding"):
        mpcompile.load(artifact)(input_ids=[[2, 3]], attention_mask=[[0, 0]])
