"""What segments are given and hand on, by name: one table. Imports no torch.

Sizes: B examples and S tokens that the segment before handed on, R survivors of them, L tokens of the longest survivor,
K tokens that the layer keeps at most, D hidden size, C classes.

Outputs: `hidden`, `mask`, `logits` (R, C) and `entropy` (R,); the last segment gives `logits` alone.
For each layer N that prunes by a threshold: `kept_N` (R,) int64, tokens that each example has left after it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Size = TypeVar("Size")


@dataclass(frozen=True)
class LayerSetting:
    """How much a layer prunes in a call.

    Attributes:
        layer: its index.
        num_kept: tokens that each example keeps, (R,) int64; before the call, where the engine decides.
        num_slots: K.
        token_threshold: attention below which it drops tokens.
    """

    layer: int
    num_kept: np.ndarray
    num_slots: int
    token_threshold: float = 0.0


@dataclass(frozen=True)
class RuntimeInput:
    """An input of segments.

    Attributes:
        name: as in graphs; where `fill` is given, the index of the layer follows.
        dtype: of its values; "hidden" is that of the segment's precision.
        sizes: its dimensions: numbers, and the names of sizes.
        fill: makes the input of one layer; None for what comes from requests, the segment before or the runtime.
    """

    name: str
    dtype: str
    sizes: tuple[str | int, ...]
    fill: Callable[[LayerSetting], np.ndarray] | None = None

    def of_layer(self, layer: int) -> str:
        """Name of the input of a layer."""
        return f"{self.name}{layer}"

    def shape(self, sizes: Mapping[str, Size], number: Callable[[int], Size]) -> tuple[Size, ...]:
        """Its shape.

        Args:
            sizes: by name.
            number: makes a size of a number.
        """
        return tuple(number(size) if isinstance(size, int) else sizes[size] for size in self.sizes)


NUM_KEPT = RuntimeInput("num_kept_", "int64", ("rows",), lambda setting: setting.num_kept)
SLOTS = RuntimeInput("slots_", "int64", ("kept",), lambda setting: np.arange(setting.num_slots))
TOKEN_THRESHOLD = RuntimeInput(
    "token_threshold_", "float32", (1,), lambda setting: np.array([setting.token_threshold], np.float32)
)
INPUTS = (
    # Of segment 0, from requests.
    RuntimeInput("input_ids", "int64", ("batch", "seq_len")),
    RuntimeInput("attention_mask", "int64", ("batch", "seq_len")),
    RuntimeInput("token_type_ids", "int64", ("batch", "seq_len")),
    # Of the others, from the segment before: the hidden state, the additive mask and, where layers tell by position how
    # far apart tokens are (MPNet, ModernBERT, DeBERTa), where each token stood in the text.
    RuntimeInput("hidden", "hidden", ("batch", "seq_len", "hidden_size")),
    RuntimeInput("mask", "float32", ("batch", 1, 1, "seq_len")),
    RuntimeInput("token_positions", "int64", ("batch", "seq_len")),
    # Of the others, from the runtime: the survivors, and 0..L-1.
    RuntimeInput("rows", "int64", ("rows",)),
    RuntimeInput("positions", "int64", ("positions",)),
    # Of each layer that prunes: tokens kept and 0..K-1, or a threshold.
    NUM_KEPT,
    SLOTS,
    TOKEN_THRESHOLD,
)
"""All inputs that a graph may have. One that a pass inserts is a row here, filled from what `LayerSetting` says."""
FIRST_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
CARRIED = ("hidden", "mask", "token_positions")
"""What a segment may hand on to the next."""
NEXT = "next_"
"""Before the names of what a segment hands on: in ONNX an output may not have the name of an input."""


@functools.cache
def find_input(name: str) -> tuple[RuntimeInput, int | None]:
    """The row of an input, and the layer that it is of; None for what is of no layer.

    Raises:
        KeyError: when no row has that name.
    """
    for row in INPUTS:
        if row.fill is None and row.name == name:
            return row, None
        if row.fill is not None and name.startswith(row.name) and name[len(row.name) :].isdigit():
            return row, int(name[len(row.name) :])
    raise KeyError(f"{name}: no row of INPUTS in mpcompile/contract/inputs.py")


def list_layers(names: Iterable[str], row: RuntimeInput) -> list[int]:
    """Layers that have an input of a row, ascending."""
    return sorted(layer for found, layer in map(find_input, names) if found is row and layer is not None)


def fill_inputs(names: Sequence[str], setting: LayerSetting) -> dict[str, np.ndarray]:
    """Inputs of a layer.

    Args:
        names: of all inputs of the segment.
        setting: of the layer.
    """
    return {name: fill(setting) for name, fill in _fills(tuple(names)).get(setting.layer, ())}


@functools.cache
def _fills(names: tuple[str, ...]) -> dict[int, list[tuple[str, Callable[[LayerSetting], np.ndarray]]]]:
    fills: dict[int, list[tuple[str, Callable[[LayerSetting], np.ndarray]]]] = {}
    for name in names:
        row, layer = find_input(name)
        if row.fill is not None and layer is not None:
            fills.setdefault(layer, []).append((name, row.fill))
    return fills


def size_names(name: str) -> dict[int, str]:
    """Names of the dynamic sizes of an input, by dimension.

    `batch` and `seq_len` of what the segment before hands on, `rows` survivors, `positions` tokens of the longest,
    `kept_N` tokens kept in layer N.
    """
    row, layer = find_input(name)
    named = {"kept": f"kept_{layer}"}
    return {
        dim: named.get(size, size)
        for dim, size in enumerate(row.sizes)
        if isinstance(size, str) and size != "hidden_size"
    }


def name_output(name: str) -> str:
    """What an output of a segment is called in its ONNX model."""
    return NEXT + name if name in CARRIED else name
