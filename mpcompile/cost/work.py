"""Counts the work of a model by region: what each part of a layer computes and moves, for any batch and length.

All that can be built from a model (every prune, every exit, every cut) is traced once, with symbols for sizes.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Any

import sympy
import torch
from torch.fx import Graph, GraphModule, Node

from mpcompile.contract.segment import Segment
from mpcompile.cost.fusion import FUSIONS, Fusion, Group, Product, fuse
from mpcompile.cost.regions import GraphWork, Kernel, Polynomial, Region
from mpcompile.cost.tracing import BATCH, LENGTH, kept_symbol, trace_operators
from mpcompile.graph.capture import CapturedModel
from mpcompile.graph.rewrite import rewrite
from mpcompile.store.results import Store
from mpcompile.store.source import digest_source
from passes import ExitHead, find_exits
from passes.encoder import find_layers
from passes.ops import enter_segment, prune_tokens

KEPT = sympy.Symbol("K", integer=True, positive=True)
HEAD_WIDTH = 128
_COUNTED: dict[tuple[object, ...], GraphWork] = {}
_MAX_COUNTED = 64


def estimate_work(captured: CapturedModel, fusion: str, store: Store | None = None) -> GraphWork:
    """Counts the work of a model, region by region.

    Args:
        captured: the model.
        fusion: rules to count with, of `FUSIONS`; a backend names its own.
        store: keeps the work for other processes.

    Returns:
        The work, counted once in a process for graphs of the same code and shapes: all precisions of a run share it.
    """
    shapes = str([(name, value.shape) for name, value in captured.graph_module.state_dict().items()])
    key = (captured.graph_module.code, shapes, captured.num_labels, captured.max_length, fusion)
    if key not in _COUNTED:
        if len(_COUNTED) >= _MAX_COUNTED:
            _COUNTED.pop(next(iter(_COUNTED)))
        _COUNTED[key] = _count_work(captured, fusion) if store is None else _fetch_work(captured, fusion, store, key)
    return _COUNTED[key]


def _fetch_work(captured: CapturedModel, fusion: str, store: Store, key: tuple[object, ...]) -> GraphWork:
    described = {"kind": "work", "model": key, "source": digest_source()}
    return GraphWork.from_json(store.fetch_json(described, lambda: _count_work(captured, fusion).to_json()))


def _count_work(captured: CapturedModel, fusion: str) -> GraphWork:
    num_layers, size = captured.num_layers, captured.hidden_size
    heads = {layer: ExitHead(size, captured.num_labels, HEAD_WIDTH) for layer in range(num_layers)}
    graph_module = rewrite(captured.graph_module, heads, tuple(range(num_layers)))
    find_place = _places(graph_module)
    placed = fuse(
        trace_operators(graph_module, size, captured.max_length),
        FUSIONS[fusion],
        lambda operator: find_place(operator.node),
    )
    by_place: dict[Hashable, list[Group]] = {}
    for place, group in placed:
        by_place.setdefault(place, []).append(_localise(group, place, num_layers))
    shared: dict[Region, Region] = {}  # layers are alike: one cached table serves them all

    def region(*place: Hashable) -> Region:
        made = count_region(by_place.get(place, []))
        return shared.setdefault(made, made)

    layers = range(num_layers)
    return GraphWork(
        entry=count_region(_entry_groups(size, FUSIONS[fusion])),
        embeddings=region("embeddings"),
        attention=tuple(region("attention", layer) for layer in layers),
        prune=tuple(region("prune", layer) for layer in layers),
        feed_forward=tuple(region("feed_forward", layer) for layer in layers),
        exits=tuple(region("exit", layer) for layer in layers),
        classifier=region("classifier"),
    )


def count_region(groups: Iterable[Group]) -> Region:
    """A region of groups in any order.

    Raises:
        PolynomialError: when a size of a group is no polynomial in B, S and K.
    """
    return Region(tuple(_count_kernel(group, count) for group, count in Counter(groups).items()))


def _count_kernel(group: Group, count: int) -> Kernel:
    product = group.product
    return Kernel(
        kind=group.kind,
        count=count,
        num_launches=group.num_launches,
        product=() if product is None else tuple(_list_terms(getattr(product, name)) for name in _PRODUCT),
        vector_flops=_list_terms(group.vector_flops),
        weight_bytes=_list_terms(group.weight_bytes),
        activation_bytes=_list_terms(group.activation_bytes),
    )


def _list_terms(expression: sympy.Expr) -> Polynomial:
    terms = sympy.Poly(expression, BATCH, LENGTH, KEPT).terms()
    return tuple((float(coefficient), *powers) for powers, coefficient in terms if coefficient)


def estimate_segment(segment: Segment, fusion: str) -> list[Group]:
    """The groups of one segment in the order they run; sizes of prunes keep their symbols K_N.

    Args:
        segment: with its graph.
        fusion: rules to count with, of `FUSIONS`.
    """
    assert segment.graph_module is not None
    operators = trace_operators(segment.graph_module, segment.hidden_size)
    return [group for _, group in fuse(operators, FUSIONS[fusion])]


def _entry_groups(hidden_size: int, fusion: Fusion) -> list[Group]:
    graph = Graph()
    inputs = [graph.placeholder(name) for name in ("hidden", "mask", "rows", "positions")]
    graph.output(graph.call_function(enter_segment, tuple(inputs)))
    operators = trace_operators(GraphModule(torch.nn.Module(), graph), hidden_size)
    return [group for _, group in fuse(operators, fusion)]


def _places(graph_module: GraphModule) -> Any:
    """A function that says which region a node belongs to."""
    layers = find_layers(graph_module)
    where: dict[Node, tuple[Hashable, ...]] = {}
    for layer in layers:
        prune = next(node for node in layer.nodes if node.target is prune_tokens)
        for node in layer.nodes:
            part = "prune" if node is prune else "attention" if node < prune else "feed_forward"
            where[node] = (part, layer.index)

    where.update({node: ("exit", exit_layer) for exit_layer, node in find_exits(graph_module).items()})

    def place(node: Node) -> tuple[Hashable, ...]:
        if node in where:
            return where[node]
        return ("embeddings",) if node < layers[0].attention else ("classifier",)

    return place


def _localise(group: Group, place: Any, num_layers: int) -> Group:
    """Renames the sizes of a layer: S tokens enter, K leave."""
    part, *index = place
    layer = index[0] if index else num_layers if part == "classifier" else 0
    entering = kept_symbol(layer - 1) if layer else LENGTH
    left = kept_symbol(layer)
    renamed = {entering: LENGTH, left: LENGTH if part == "feed_forward" else KEPT}
    product = group.product
    if product is not None:
        product = Product(*(getattr(product, name).xreplace(renamed) for name in _PRODUCT))
    return dataclasses.replace(
        group,
        product=product,
        vector_flops=group.vector_flops.xreplace(renamed),
        weight_bytes=group.weight_bytes.xreplace(renamed),
        activation_bytes=group.activation_bytes.xreplace(renamed),
    )


_PRODUCT = ("count", "rows", "inner", "columns")
