"""Partitions a rewritten graph into a chain of segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torch.fx import GraphModule

from mpcompile.contract.inputs import find_input
from mpcompile.contract.segment import Segment
from mpcompile.graph.capture import CapturedModel
from mpcompile.graph.rewrite import insert_taps, rewrite
from passes import split_segments
from passes.outputs import find_outputs


def partition(
    captured: CapturedModel,
    heads: Mapping[int, nn.Module],
    prune_layers: tuple[int, ...] = (),
    last_exit: int | None = None,
    precision: str = "f32",
    selection: str = "top",
) -> tuple[Segment, ...]:
    """Rewrites a captured model and splits it into segments.

    Args:
        captured: left as it is; the segments share its weights.
        heads: exit heads by exit layer, or what taps features there, see `FeatureTap`.
        prune_layers: layers that prune.
        last_exit: exit that becomes the end of the model; None keeps the model's own classifier.
        precision: of every segment.
        selection: what they keep, see `rewrite`.
    """
    graph_module = rewrite(captured.graph_module, heads, prune_layers, last_exit, selection)
    heads = {layer: head for layer, head in heads.items() if last_exit is None or layer <= last_exit}
    exit_layers = [*sorted(heads), *([] if last_exit is not None else [captured.num_layers])]
    return tuple(
        _describe(index, graph, exit_layer, captured.hidden_size, precision)
        for index, (graph, exit_layer) in enumerate(zip(split_segments(graph_module), exit_layers, strict=True))
    )


def tap(
    captured: CapturedModel,
    exit_layers: Sequence[int],
    prune_layers: tuple[int, ...],
    precision: str,
    selection: str = "top",
) -> Segment:
    """The whole model as one segment that also returns what heads at some exits would read."""
    graph = insert_taps(captured.graph_module, exit_layers, prune_layers, selection)
    return _describe(0, graph, captured.num_layers, captured.hidden_size, precision)


def _describe(index: int, graph: GraphModule, exit_layer: int, hidden_size: int, precision: str) -> Segment:
    inputs = tuple(str(node.target) for node in graph.graph.nodes if node.op == "placeholder")
    outputs = find_outputs(graph)
    layers = {layer for _, layer in map(find_input, inputs) if layer is not None}
    return Segment(
        index, exit_layer, tuple(sorted(layers)), hidden_size, inputs, tuple(map(str, outputs)), precision, graph
    )
