"""Requests checked before they reach an engine. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpcompile.contract.task import Task
from mpcompile.errors import InputError


@dataclass(frozen=True)
class ModelSignature:
    """The signature of a model: what requests must fit.

    Attributes:
        input_names: what segment 0 reads.
        num_labels: C, outputs.
        max_length: tokens that the position table allows.
        vocab_size: rows of the token embedding.
        id2label: class names by id.
        task: what the outputs mean.
        separator_id: token that no prune drops, None when there is none.
    """

    input_names: tuple[str, ...]
    num_labels: int
    max_length: int
    vocab_size: int
    id2label: dict[int, str]
    task: Task
    separator_id: int | None = None


def check_request(signature: ModelSignature, request: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A request as (B, S) int64 arrays, mask and token types filled in where they are missing.

    Args:
        signature: what the model takes.
        request: input_ids and maybe attention_mask and token_type_ids, as tensors, arrays or lists.

    Raises:
        InputError: when a shape, dtype or value does not fit.
    """
    if request.get("input_ids") is None:
        raise InputError("input_ids: missing; pass input_ids=(batch, length) as a tokenizer returns them")
    ids = _to_ids("input_ids", request["input_ids"])
    if ids.shape[0] == 0 or ids.shape[1] == 0:
        raise InputError(f"input_ids: shape {ids.shape}; at least one text with one token is expected")
    if ids.shape[1] > signature.max_length:
        raise InputError(
            f"input_ids: {ids.shape[1]} tokens; the model reads up to {signature.max_length}: truncate when tokenizing "
            "(truncation=True), or call .predict(texts), which does"
        )
    if ids.min() < 0 or ids.max() >= signature.vocab_size:
        raise InputError(
            f"input_ids: values from {ids.min()} to {ids.max()}; the vocabulary ends at {signature.vocab_size - 1}: "
            "use the tokenizer that belongs to the model"
        )
    checked = {"input_ids": ids, "attention_mask": _check_mask(request.get("attention_mask"), ids)}
    types = request.get("token_type_ids")
    types = np.zeros_like(ids) if types is None else _to_ids("token_type_ids", types)
    if types.shape != ids.shape:
        raise InputError(f"token_type_ids: shape {types.shape}; expected that of input_ids, {ids.shape}")
    if types.min() < 0 or types.max() > 1:
        raise InputError(f"token_type_ids: values from {types.min()} to {types.max()}; 0 and 1 are allowed")
    return {**checked, "token_type_ids": types}


def _check_mask(given: Any, ids: np.ndarray) -> np.ndarray:
    if given is None:
        return np.ones_like(ids)
    mask = _to_ids("attention_mask", given)
    if mask.shape != ids.shape:
        raise InputError(f"attention_mask: shape {mask.shape}; expected that of input_ids, {ids.shape}")
    if mask.min() < 0 or mask.max() > 1:
        raise InputError(
            f"attention_mask: values from {mask.min()} to {mask.max()}; 1 marks a token and 0 padding, nothing else"
        )
    empty = np.flatnonzero(mask.sum(1) == 0)
    if len(empty):
        raise InputError(f"attention_mask[{empty[0]}]: all padding; every row needs a token: leave empty rows out")
    left = np.flatnonzero(mask[:, 0] == 0)
    if len(left):
        raise InputError(
            f"attention_mask[{left[0]}, 0]: 0; the first position holds [CLS] and must be real: pad on the right "
            "(tokenizer.padding_side = 'right')"
        )
    return mask


def _to_ids(name: str, value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(f"{name}: rows of different lengths; pad them to one length (padding=True)") from error
    if array.size == 0 and array.ndim != 2:
        raise InputError(f"{name}: empty; at least one text is expected")
    if array.ndim != 2:
        raise InputError(f"{name}: shape {array.shape}; (batch, length) is expected: one text is a batch of one")
    if array.size and array.dtype.kind not in "iub":
        raise InputError(f"{name}: {array.dtype}; whole numbers are expected, as a tokenizer returns them")
    return np.ascontiguousarray(array, dtype=np.int64)
