"""What attention adds to its scores, taken apart: the padding's mask, a window of positions, a bias.

A helper of `Canonicalize`. Shapes: B examples, S tokens, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from passes.encoder import MASKS, POSITIONAL, SIZE, EncoderLayer, aten
from passes.evaluate import find_ancestors, find_longest
from passes.ops import biased_mask, window_mask
from passes.pass_base import PassError

_SHORT = 512
"""Tokens that masks are tried on with padding; what is further apart is tried on one text without."""


@dataclass(frozen=True)
class _Mask:
    """A mask that a model computes: padding, and maybe a window.

    Attributes:
        window: positions that a token sees to either side, None for all.
    """

    window: int | None


class MaskReader:
    """Replaces what attention adds by the additive mask of the padding and what there is beside it.

    Args:
        gm: the graph.
        mask: its additive mask, (B, 1, 1, S).
    """

    def __init__(self, gm: GraphModule, mask: Node) -> None:
        self._gm, self._mask = gm, mask
        self._read: dict[Node, _Mask] = {}

    def replace(self, layer: EncoderLayer, token_positions: Node | None) -> None:
        """Rewrites what one layer's attention adds.

        Args:
            layer: of the graph.
            token_positions: (B, S) int64, needed where the layer has a window.

        Raises:
            PassError: when its mask hides more than padding and what is out of a window.
        """
        if layer.added is not None and layer.mask is not None and layer.added.target in MASKS:
            layer.added.replace_input_with(layer.mask, self._mask)  # canonical already
            return
        terms = _terms(layer.added)
        masks = [term for term in terms if _is_mask(term)]
        biases = [term for term in terms if not _is_mask(term)]
        found = {self.read(mask) for mask in masks}
        windows = {mask.window for mask in found} - {None}
        if len(biases) + len(windows) > 1:
            raise PassError(
                f"layer {layer.index}: attention adds {len(biases)} biases and has {len(windows)} windows; at "
                "most one of them is expected"
            )
        added = self._mask
        with self._gm.graph.inserting_before(layer.attention):
            for window in windows:
                added = self._gm.graph.call_function(window_mask, (token_positions, added, window))
            if biases:
                added = self._gm.graph.call_function(biased_mask, (biases[0], added))
        if added is not self._mask:
            added.meta = {**layer.attention.meta, "val": self._mask.meta["val"]}
        layer.attention.args = (*layer.attention.args[:3], added)

    def has_window(self, layer: EncoderLayer) -> bool:
        """Whether a layer hides what stands far away."""
        if layer.added is None or layer.added.target in MASKS:
            return False
        return any(_is_mask(term) and self.read(term).window is not None for term in _terms(layer.added))

    def read(self, node: Node) -> _Mask:
        """What a mask of the model hides, found by computing it.

        Raises:
            PassError: when it is not padding and a window.
        """
        if node not in self._read:
            self._read[node] = _read_mask(self._gm, node)
        return self._read[node]


def _terms(added: Node | None) -> list[Node]:
    """What a sum of masks and biases is made of."""
    if added is None:
        return []
    if added.target is aten.add.Tensor and all(isinstance(arg, Node) for arg in added.args):
        return [term for arg in added.all_input_nodes for term in _terms(arg)]
    return [added]


def _is_mask(node: Node) -> bool:
    """Whether a value follows from the attention mask, and not from what the tokens are."""
    read = {str(n.target) for n in find_ancestors(node) if n.op == "placeholder"}
    return node.target not in POSITIONAL and read == {"attention_mask"}


def _read_mask(gm: GraphModule, node: Node) -> _Mask:
    longest = find_longest(gm)
    short = min(longest, _SHORT)
    samples = [(torch.arange(short) < torch.tensor([short, short // 2 + 1, 2])[:, None]).long()]
    if longest > short:
        samples.append(torch.ones((1, longest), dtype=torch.int64))  # a window may be wider than the short ones
    windows = {_read_window(sample, _run(gm, node, sample)) for sample in samples}
    if len(windows) > 1:  # wider than the short texts
        windows = {window for window in windows if window is not None}
    return _Mask(windows.pop())


def _read_window(sample: Tensor, value: Tensor) -> int | None:
    """The window that a mask (B, 1, S, S) of an attention mask (B, S) leaves open, None when it is open throughout."""
    allowed = value if value.dtype == torch.bool else value > -1.0
    real = (sample != 0)[:, None, None, :]
    rows = real.transpose(2, 3)  # what attention gives at padding is not read
    exact = value.dtype == torch.bool or bool((value[allowed] == 0).all())
    if exact and torch.equal(allowed & rows, real.expand_as(allowed) & rows):
        return None
    window = int(allowed[0, 0, 0].sum()) - 1
    position = torch.arange(sample.shape[1])
    near = real & ((position[:, None] - position).abs() <= window)
    if not exact or window < 0 or not torch.equal(allowed & rows, near.expand_as(allowed) & rows):
        raise PassError(
            "attention is masked by more than padding and a window (causal or biased attention); expected every token "
            "to see every real token, or every real token that is no more than so many positions away"
        )
    return window


def _run(gm: GraphModule, node: Node, attention_mask: Tensor) -> Tensor:
    """Computes a mask, and nothing that it does not depend on."""
    needed, interpreter = find_ancestors(node), Interpreter(gm)
    last_use = {arg: n for n in gm.graph.nodes if n in needed for arg in n.all_input_nodes}
    with torch.no_grad():
        for current in gm.graph.nodes:
            if current not in needed:
                continue
            if current.target is SIZE:
                interpreter.env[current] = attention_mask.shape[int(current.args[1])]
                continue
            is_input = current.op == "placeholder"
            interpreter.env[current] = attention_mask if is_input else interpreter.run_node(current)
            for arg in current.all_input_nodes:
                if last_use[arg] is current and arg is not node:
                    del interpreter.env[arg]  # of long texts a mask is large
    result: Tensor = interpreter.env[node]
    return result
