"""Work of a model by region: what each part of a layer computes and moves, for any batch and length.

All that can be built from a model (every prune, every exit, every cut) is traced once; a segment is
a sequence of regions. Shapes: B examples, S tokens that enter a region, K tokens that a prune keeps.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy
import torch
from torch.fx import Graph, GraphModule, Node

from mpcompile.contract.operating_point import OperatingPoint, count_kept
from mpcompile.contract.segment import Segment
from mpcompile.cost.fusion import FUSIONS, Fusion, Group, Product, fuse
from mpcompile.cost.tracing import BATCH, LENGTH, kept_symbol, trace_operators
from mpcompile.graph.capture import CapturedModel
from mpcompile.graph.rewrite import rewrite
from passes import ExitHead, find_exits
from passes.encoder import find_layers
from passes.ops import enter_segment, prune_tokens

KEPT = sympy.Symbol("K", integer=True, positive=True)
HEAD_WIDTH = 128
_COUNTED: dict[tuple[object, ...], GraphWork] = {}
_MAX_COUNTED = 64
Size = np.ndarray | np.float64
"""A number of examples or tokens, or an array of them."""


@dataclass(frozen=True)
class Work:
    """The work of a region's groups, one row a group, in numbers or arrays of the shape asked.

    Attributes:
        kinds: kinds of the groups; see `Group`.
        count: how many of each group there are.
        num_launches: kernels of one such group.
        products: (count, rows, inner, columns) of a group's matrix product, zeros where it has none.
        vector_flops, weight_bytes, activation_bytes: flops and bytes of one such group, see `Group`.
    """

    kinds: tuple[str, ...]
    count: tuple[int, ...]
    num_launches: tuple[int, ...]
    products: tuple[tuple[Any, Any, Any, Any], ...]
    vector_flops: tuple[Any, ...]
    weight_bytes: tuple[Any, ...]
    activation_bytes: tuple[Any, ...]


@dataclass(frozen=True)
class Region:
    """A part of the model that is run as a whole.

    Attributes:
        groups: distinct groups, each with how often it occurs.
    """

    groups: tuple[tuple[Group, int], ...]

    @classmethod
    def of(cls, groups: Iterable[Group]) -> Region:
        """A region of groups in any order."""
        return cls(tuple(Counter(groups).items()))

    def evaluate(self, batch_size: Size, seq_len: Size, num_kept: Size | None = None) -> Work:
        """The work for a batch of examples that all have `seq_len` tokens; arrays of one shape or numbers.

        Args:
            batch_size: B.
            seq_len: S.
            num_kept: K, for a prune; S where there is none.
        """
        sizes = (batch_size, seq_len, seq_len if num_kept is None else num_kept)
        values = self._compiled(*(np.asarray(size, np.float64) for size in sizes))
        rows = [values[i : i + 7] for i in range(0, len(values), 7)]
        return Work(
            kinds=tuple(group.kind for group, _ in self.groups),
            count=tuple(count for _, count in self.groups),
            num_launches=tuple(group.num_launches for group, _ in self.groups),
            products=tuple(tuple(row[:4]) for row in rows),
            vector_flops=tuple(row[4] for row in rows),
            weight_bytes=tuple(row[5] for row in rows),
            activation_bytes=tuple(row[6] for row in rows),
        )

    def count_flops(self, batch_size: Size, seq_len: Size, num_kept: Size | None = None) -> np.ndarray:
        """Flops of everything, matrix products and the rest."""
        work = self.evaluate(batch_size, seq_len, num_kept)
        total: Any = 0.0
        for kind, count, product, vector in zip(work.kinds, work.count, work.products, work.vector_flops, strict=True):
            doubled = 2 if kind == "attention" else 1
            total = total + count * (doubled * 2 * product[0] * product[1] * product[2] * product[3] + vector)
        return np.asarray(total)

    @functools.cached_property
    def weight_bytes(self) -> float:
        """Parameters that it reads, fp32."""
        return float(sum(count * group.weight_bytes for group, count in self.groups))

    @functools.cached_property
    def num_launches(self) -> int:
        """Kernels that it is run as."""
        return sum(count * group.num_launches for group, count in self.groups)

    @functools.cached_property
    def _compiled(self) -> Any:
        expressions: list[sympy.Expr] = []
        for group, _ in self.groups:
            product = group.product or Product(*(sympy.Integer(0),) * 4)
            expressions += [product.count, product.rows, product.inner, product.columns]
            expressions += [group.vector_flops, group.weight_bytes, group.activation_bytes]
        return sympy.lambdify((BATCH, LENGTH, KEPT), expressions, "math", cse=True)


@dataclass(frozen=True)
class GraphWork:
    """Work of a classifier and of all that can be inserted into it.

    Attributes:
        entry: gathering the survivors at the start of a segment.
        embeddings: what comes before the first layer.
        attention: by layer, up to where it may prune.
        prune: by layer, what a prune there costs.
        feed_forward: by layer, what follows the prune.
        exits: by layers run, what an off-ramp there costs.
        classifier: what comes after the last layer.
    """

    entry: Region
    embeddings: Region
    attention: tuple[Region, ...]
    prune: tuple[Region, ...]
    feed_forward: tuple[Region, ...]
    exits: tuple[Region, ...]
    classifier: Region

    @property
    def num_layers(self) -> int:
        """Encoder layers."""
        return len(self.attention)

    def list_parts(
        self, is_first: bool, first: int, exit_layer: int, seq_len: Size, point: OperatingPoint
    ) -> Iterator[Part]:
        """Parts of a segment: embeddings or entry, layers `first` to `exit_layer`, the head or classifier there.

        Args:
            is_first: whether it starts from ids; after an exit at layer 0 another segment starts at that layer, too.
            seq_len: tokens that enter.
            point: for what it prunes.
        """
        yield Part(self.embeddings if is_first else self.entry, seq_len)
        length = seq_len
        for layer in range(first, exit_layer):
            yield Part(self.attention[layer], length)
            if layer in point.prune_layers:
                yield Part(self.prune[layer], length, point.keep_ratio_at(layer))
                length = count_kept(point.keep_ratio_at(layer), length)
            yield Part(self.feed_forward[layer], length)
        yield Part(self.classifier if exit_layer == self.num_layers else self.exits[exit_layer], length)


@dataclass(frozen=True)
class Part:
    """A region as it is run.

    Attributes:
        region: which.
        seq_len: tokens that enter, a number or an array.
        keep_ratio: of a prune, 1 elsewhere.
    """

    region: Region
    seq_len: Size
    keep_ratio: float = 1.0


def estimate_work(captured: CapturedModel, fusion: str) -> GraphWork:
    """Counts the work of a model, region by region.

    Args:
        captured: the model.
        fusion: rules to count with, of `FUSIONS`; a backend names its own.

    Returns:
        The work, counted once in a process for graphs of the same code and shapes: all precisions of a run share it.
    """
    shapes = str([(name, value.shape) for name, value in captured.graph_module.state_dict().items()])
    key = (captured.graph_module.code, shapes, captured.num_labels, captured.max_length, fusion)
    if key not in _COUNTED:
        if len(_COUNTED) >= _MAX_COUNTED:
            _COUNTED.pop(next(iter(_COUNTED)))
        _COUNTED[key] = _count_work(captured, fusion)
    return _COUNTED[key]


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
    shared: dict[Region, Region] = {}  # layers are alike: one compiled function and one cached table serve them all

    def region(*place: Hashable) -> Region:
        made = Region.of(by_place.get(place, []))
        return shared.setdefault(made, made)

    layers = range(num_layers)
    return GraphWork(
        entry=Region.of(_entry_groups(size, FUSIONS[fusion])),
        embeddings=region("embeddings"),
        attention=tuple(region("attention", layer) for layer in layers),
        prune=tuple(region("prune", layer) for layer in layers),
        feed_forward=tuple(region("feed_forward", layer) for layer in layers),
        exits=tuple(region("exit", layer) for layer in layers),
        classifier=region("classifier"),
    )


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
