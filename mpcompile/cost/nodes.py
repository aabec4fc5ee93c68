"""Work of a captured graph: flops and bytes per node as functions of batch and length.

B examples, S tokens. A multiply-add is 2 flops. Bytes are fp32; a device with narrower
activations scales them. Pointwise nodes are counted with the matrix product, norm or
attention that they are fused into, so they move no bytes of their own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy
import torch
from torch.fx import GraphModule, Node

from passes.encoder import ATTENTION, aten, find_layers

FP32_BYTES = 4
_BATCH, _LENGTH = sympy.symbols("B S", integer=True, positive=True)


@dataclass(frozen=True)
class NodeWork:
    """Work of one kind of node.

    Attributes:
        flops: of one such node, function of (B, S).
        bytes_moved: of one such node, function of (B, S).
        count: how many such nodes there are.
    """

    flops: Callable[[Any, Any], Any]
    bytes_moved: Callable[[Any, Any], Any]
    count: int


@dataclass(frozen=True)
class GraphWork:
    """Work of a classifier by region.

    Attributes:
        embeddings: what comes before the first layer.
        attention: per layer, up to where it may prune.
        feed_forward: per layer, behind it.
        classifier: what comes after the last layer.
        hidden_size: D.
        num_labels: C.
    """

    embeddings: tuple[NodeWork, ...]
    attention: tuple[tuple[NodeWork, ...], ...]
    feed_forward: tuple[tuple[NodeWork, ...], ...]
    classifier: tuple[NodeWork, ...]
    hidden_size: int
    num_labels: int

    @property
    def num_layers(self) -> int:
        """Encoder layers."""
        return len(self.attention)


def estimate_work(graph_module: GraphModule, num_labels: int) -> GraphWork:
    """Counts the work of a canonical graph, region by region.

    Args:
        graph_module: as `capture` returns it, with the shapes of the export in its metadata.
        num_labels: C.
    """
    layers = find_layers(graph_module)
    ids = next(node for node in graph_module.graph.nodes if node.target == "input_ids")
    symbols = dict(zip((_expression(size) for size in ids.meta["val"].shape), (_BATCH, _LENGTH), strict=True))
    inside = {node for layer in layers for node in layer.nodes}
    outside = [node for node in graph_module.graph.nodes if node not in inside]
    return GraphWork(
        embeddings=_group((node for node in outside if node < layers[0].attention), symbols),
        attention=tuple(
            _group((node for node in layer.nodes if node <= layer.attention_output), symbols) for layer in layers
        ),
        feed_forward=tuple(
            _group((node for node in layer.nodes if node > layer.attention_output), symbols) for layer in layers
        ),
        classifier=_group((node for node in outside if node > layers[-1].output), symbols),
        hidden_size=int(layers[0].input.meta["val"].shape[-1]),
        num_labels=num_labels,
    )


def _group(nodes: Iterable[Node], symbols: dict[sympy.Expr, sympy.Symbol]) -> tuple[NodeWork, ...]:
    counted = Counter(work for node in nodes if (work := _node_work(node, symbols)) is not None)
    return tuple(
        NodeWork(_function(flops), _function(bytes_moved), count) for (flops, bytes_moved), count in counted.items()
    )


def _node_work(node: Node, symbols: dict[sympy.Expr, sympy.Symbol]) -> tuple[sympy.Expr, sympy.Expr] | None:
    """Flops and bytes of a node, None for a node that is fused, a view or bookkeeping."""
    shapes = [_shape(arg, symbols) for arg in node.all_input_nodes if isinstance(arg.meta.get("val"), torch.Tensor)]
    if node.target is aten.linear.default:
        out = _shape(node, symbols)
        return 2 * math.prod(out) * shapes[0][-1], FP32_BYTES * sum(map(math.prod, (*shapes, out)))
    if node.target is ATTENTION:
        batch, heads, length, size = shapes[0]
        return 4 * batch * heads * length * length * size, FP32_BYTES * 4 * math.prod(shapes[0])
    if node.target in (aten.layer_norm.default, aten.embedding.default):
        # A layer norm reads each element, subtracts, squares, scales and shifts it: 5 flops.
        size = math.prod(_shape(node, symbols))
        return (5 * size if node.target is aten.layer_norm.default else sympy.Integer(0)), FP32_BYTES * 2 * size
    return None


def _shape(node: Node, symbols: dict[sympy.Expr, sympy.Symbol]) -> tuple[sympy.Expr, ...]:
    value = node.meta.get("val")
    if value is None:  # a parameter: torch.export leaves its value out of the metadata
        value = _parameter(node)
    return tuple(_expression(size).subs(symbols) for size in value.shape)


def _parameter(node: Node) -> torch.Tensor:
    value: Any = node.graph.owning_module
    for name in str(node.target).split("."):
        value = getattr(value, name)
    assert isinstance(value, torch.Tensor)
    return value


def _expression(size: int | torch.SymInt) -> sympy.Expr:
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def _function(expression: sympy.Expr) -> Callable[[Any, Any], Any]:
    compiled = sympy.lambdify((_BATCH, _LENGTH), expression, "math")

    def evaluate(batch: Any, length: Any) -> Any:
        return compiled(np.asarray(batch, np.float64), np.asarray(length, np.float64))

    return evaluate
