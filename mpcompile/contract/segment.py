"""Segments: pieces of graph that become one engine each. Imports no torch."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpcompile.contract.inputs import TOKEN_THRESHOLD, list_layers

if TYPE_CHECKING:
    from torch.fx import GraphModule


@dataclass(frozen=True)
class Segment:
    """A piece of graph that becomes one engine.

    Attributes:
        index: position in the chain, from 0.
        exit_layer: encoder layers run when it ends.
        prune_layers: layers inside it that prune, ascending.
        hidden_size: D.
        input_names: its inputs in order, see `contract.inputs`.
        output_names: its outputs in order.
        precision: "f32", "bf16", "f16" or "int8": what products with weights run in. The rest of an int8 segment runs
            in the fastest float precision of the machine.
        graph_module: the graph, None when the segment was read from an artifact.
    """

    index: int
    exit_layer: int
    prune_layers: tuple[int, ...]
    hidden_size: int
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    precision: str = "f32"
    graph_module: GraphModule | None = None

    @functools.cached_property
    def prunes_by_threshold(self) -> bool:
        """Whether the engine decides how many tokens are kept; otherwise the host does, before the call."""
        return bool(list_layers(self.input_names, TOKEN_THRESHOLD))
