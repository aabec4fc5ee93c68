"""Traces which tokens of a text survive: torch runs the deployed segments and records what their prunes keep.

Shapes: S tokens of the text, K tokens kept, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import Interpreter, Node

from mpcompile.contract.operating_point import BEFORE, OperatingPoint
from mpcompile.contract.segment import Segment
from mpcompile.runtime.runtime import Runtime
from passes.encoder import PRUNES


def trace_tokens(
    segments: Sequence[Segment],
    num_labels: int,
    inputs: Mapping[str, np.ndarray],
    point: OperatingPoint,
    exit_layer: int,
) -> np.ndarray:
    """The layer that drops each token of one text.

    The runtime is the deployed one; only its engines are replaced by the same graphs in eager fp32.

    Args:
        segments: the chain, with graphs.
        num_labels: C.
        inputs: one text without padding, see `Runtime.run`, (1, S).
        point: says how much is kept.
        exit_layer: where the text left the deployed engines; it leaves there here, too, whatever rounding says.

    Returns:
        (S,) int64, -1 where the token is kept until the answer.
    """
    if exit_layer == BEFORE:
        return follow_kept({}, inputs["input_ids"].shape[1])
    engines = [_TracingEngine(segment) for segment in segments]
    runtime = Runtime(segments, engines, num_labels, [np.inf] * len(segments))
    runtime.run(inputs, dataclasses.replace(point, exit_layers=(exit_layer,), exit_thresholds=()))
    kept = {layer: index for engine in engines for layer, index in engine.kept_index.items()}
    return follow_kept(kept, inputs["input_ids"].shape[1])


def follow_kept(kept_index: Mapping[int, np.ndarray], seq_len: int) -> np.ndarray:
    """Layers that drop the tokens of one text, from what each prune keeps of those that reach it.

    Args:
        kept_index: by layer, positions kept among the tokens that the prunes before left, (K,); entries behind
            the last of them fill up a batch and are ignored.
        seq_len: S.

    Returns:
        (S,) int64, -1 where the token is kept throughout.
    """
    dropped_in = np.full(seq_len, -1, np.int64)
    left = np.arange(seq_len)
    for layer, index in sorted(kept_index.items()):
        survivors = left[index[index < len(left)]]
        dropped_in[np.setdiff1d(left, survivors)] = layer
        left = survivors
    return dropped_in


class _TracingEngine:
    """A segment's graph in eager fp32 that notes what its prunes keep of a batch of one."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self.kept_index: dict[int, np.ndarray] = {}

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        assert self._segment.graph_module is not None
        recorder = _Recorder(self._segment.graph_module)
        with torch.inference_mode():
            outputs = recorder.run(*(torch.from_numpy(inputs[name]) for name in self._segment.input_names))
        for layer, index in zip(self._segment.prune_layers, recorder.kept_index, strict=True):
            self.kept_index[layer] = index[0]
        return {name: value.numpy() for name, value in outputs.items()}


class _Recorder(Interpreter):
    """Runs a graph and keeps the third output of each prune, in order: the layers ascend with it."""

    def __init__(self, graph_module: torch.fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.kept_index: list[np.ndarray] = []

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.target in PRUNES:
            self.kept_index.append(value[2].numpy())
        return value
