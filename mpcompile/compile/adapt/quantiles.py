"""Finds token thresholds without training: quantiles of the attention that tokens of some texts receive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import Interpreter, Node

from mpcompile.compile.choose.schedules import KeepSchedule
from mpcompile.contract.inputs import TOKEN_THRESHOLD
from mpcompile.graph.capture import CapturedModel
from mpcompile.graph.rewrite import rewrite
from mpcompile.runtime.tokens import TokenIds, Tokenizer
from passes.threshold_ops import prune_by_threshold, received_attention

MAX_TOKENS = 8192
"""Tokens of the texts that quantiles are taken of, padding included: they run as one batch."""


def find_token_thresholds(
    captured: CapturedModel, tokenizer: Tokenizer, encoded: Sequence[TokenIds], schedule: KeepSchedule
) -> tuple[float, ...]:
    """Thresholds at which each layer keeps as large a share of its tokens, over all texts, as a schedule says.

    A layer's threshold is found with those of the layers before it in force.

    Args:
        captured: the model.
        tokenizer: pads the texts.
        encoded: texts like those to come; the first are taken, as `MAX_TOKENS` allows.
        schedule: pruning layers and their keep ratios.
    """
    longest = np.maximum.accumulate([len(text) for text in encoded])
    count = max(1, int((longest * np.arange(1, len(encoded) + 1) <= MAX_TOKENS).sum()))
    graph = rewrite(captured.graph_module, {}, schedule.prune_layers, selection="threshold")
    batch = tokenizer.pad(encoded[:count])
    inputs = {name: torch.from_numpy(batch[name]) for name in captured.input_names}
    inputs |= {TOKEN_THRESHOLD.of_layer(layer): torch.zeros(1) for layer in schedule.prune_layers}
    ordered = [inputs[str(node.target)] for node in graph.graph.nodes if node.op == "placeholder"]
    finder = _Finder(graph, schedule.keep_ratios)
    with torch.inference_mode():
        finder.run(*ordered)
    return tuple(finder.thresholds)


class _Finder(Interpreter):
    """Runs a graph and sets the threshold of each prune as it comes to it."""

    def __init__(self, graph_module: torch.fx.GraphModule, keep_ratios: Sequence[float]) -> None:
        super().__init__(graph_module)
        self._waiting = list(keep_ratios)
        self.thresholds: list[float] = []

    def run_node(self, n: Node) -> Any:
        if n.target is prune_by_threshold:
            (_, mask, attention, threshold), _ = self.fetch_args_kwargs_from_env(n)
            received = received_attention(mask, *attention)[mask[:, 0, 0, :] >= 0]
            keep_ratio = self._waiting.pop(0)
            found = 0.0 if keep_ratio == 1.0 else float(torch.quantile(received, 1.0 - keep_ratio))
            self.thresholds.append(found)
            threshold.fill_(found)
        return super().run_node(n)
