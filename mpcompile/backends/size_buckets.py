"""Rounds the sizes of calls up, so that few sizes recur and CUDA graphs can be replayed. Imports no torch.

What is added is never read: rows are copies of the first, tokens are masked, and slots hold no token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mpcompile.contract.inputs import FIRST_INPUTS, SLOTS, find_input

_FINE, _COARSE, _FINE_TO = 16, 32, 128


def count_rows(inputs: Mapping[str, Any]) -> int:
    """Examples that a call answers."""
    return len(inputs["rows"] if "rows" in inputs else inputs["input_ids"])


def find_longest(inputs: Mapping[str, Any]) -> int:
    """Tokens of the longest example that a call answers."""
    return len(inputs["positions"]) if "positions" in inputs else int(inputs["input_ids"].shape[1])


def round_rows(num_rows: int) -> int:
    """The next power of two."""
    return 1 << (num_rows - 1).bit_length()


def round_length(seq_len: int) -> int:
    """The next multiple of 16, from 128 tokens on of 32: no more than tiles of tensor cores waste anyway."""
    step = _FINE if seq_len <= _FINE_TO else _COARSE
    return -(-seq_len // step) * step


def pad_inputs_maybe(
    inputs: Mapping[str, Any], max_rows: int, max_length: int, max_tokens: int
) -> Mapping[str, Any] | None:
    """Inputs of a segment with sizes rounded up, None where that does not pay.

    Args:
        inputs: see `contract.segment`; `hidden`, `mask` and `token_positions` may lie anywhere and stay as they are.
        max_rows: examples that the engine takes.
        max_length: tokens that it takes.
        max_tokens: rows times tokens, padding included. Larger calls keep the device busy for longer than launches
            take, so that padding would cost more than it saves.
    """
    enters = "rows" in inputs
    num_rows, longest = count_rows(inputs), find_longest(inputs)
    # A position that the segment before did not hand on cannot be gathered.
    length = max(longest, min(round_length(longest), inputs["hidden"].shape[1] if enters else max_length))
    num_rows = max(num_rows, min(round_rows(num_rows), max_rows))
    if num_rows * length > max_tokens:
        return None
    padded = dict(inputs)
    for name, value in inputs.items():
        if find_input(name)[0].sizes[0] == "rows":
            padded[name] = _extend(value, num_rows)
        elif name == "positions":
            padded[name] = np.arange(length)
        elif name in FIRST_INPUTS:
            padded[name] = _extend(np.pad(value, ((0, 0), (0, length - value.shape[1]))), num_rows)
    kept = length
    for name in inputs:  # prunes, in the order of their layers
        if find_input(name)[0] is SLOTS:
            kept = min(round_length(len(inputs[name])), kept)
            padded[name] = np.arange(kept)
    return padded


def _extend(value: np.ndarray, num_rows: int) -> np.ndarray:
    """An array with copies of its first row appended."""
    return np.concatenate([value, np.repeat(value[:1], num_rows - len(value), axis=0)])
