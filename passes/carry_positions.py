"""Values that follow from the tokens' positions, read by position wherever the tokens are then.

A helper of `Canonicalize`: relative position biases (MPNet), rotary angles (ModernBERT) and relative
positions (DeBERTa) are computed once from 0..S-1. After a prune, the tokens' positions are no longer that.

Shapes: B examples, S tokens, N positions that the model knows, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from passes.encoder import SIZE, aten
from passes.evaluate import evaluate, find_longest, reads_no_input
from passes.ops import look_up_distances, look_up_positions, number_tokens, relative_bias
from passes.pass_base import PassError

_RESHAPES = (
    aten.expand.default, aten.contiguous.default, aten.unsqueeze.default, aten.permute.default,
    aten.to.dtype, aten.clone.default,
)  # fmt: skip


class PositionTables:
    """Constants of a graph by position or distance, each kept once.

    Args:
        gm: the graph; a table becomes a buffer of it.
        source: its `attention_mask`.
        before: first node of the first layer.
    """

    def __init__(self, gm: GraphModule, source: Node, before: Node) -> None:
        self._gm, self._source, self._before = gm, source, before
        self._tables: list[tuple[Tensor, Node]] = []
        self._positions: Node | None = None

    def positions(self) -> Node:
        """The node that numbers the tokens, (B, S) int64."""
        if self._positions is None:
            with self._gm.graph.inserting_before(self._before):
                self._positions = self._gm.graph.call_function(number_tokens, (self._source,))
            self._positions.meta["val"] = self._source.meta["val"]
        return self._positions

    def add(self, table: Tensor) -> Node:
        """A node that gives a table."""
        for known, node in self._tables:
            if known.dtype == table.dtype and torch.equal(known, table):
                return node
        name = f"position_table_{len(self._tables)}"
        self._gm.register_buffer(name, table.contiguous())
        with self._gm.graph.inserting_before(self._before):
            node = self._gm.graph.get_attr(name)
        node.meta["val"] = table
        self._tables.append((table, node))
        return node


def carry_positions(gm: GraphModule, members: list[list[Node]], tables: PositionTables) -> None:
    """Makes layers look up by token position what was computed from 0..S-1.

    Before:
        cos: "f32[1, S, E]" = ...                              # from arange(S)
        q': "f32[B, H, S, E]" = q * cos[:, None]
    After:
        token_positions: "i64[B, S]" = number_tokens(attention_mask)
        cos: "f32[B, S, E]" = look_up_positions(token_positions, table)
        q': "f32[B, H, S, E]" = q * cos[:, None]

    Args:
        gm: exported graph, attention fused.
        members: nodes of each layer.
        tables: of the graph.

    Raises:
        PassError: when such a value depends on more than one token's position or two tokens' distance.
    """
    for index, nodes in enumerate(members):
        replaced: dict[Node, Node] = {}
        for node in nodes:
            for value in [arg for arg in node.all_input_nodes if _follows_from_positions(arg)]:
                if reads_no_input(node):
                    continue
                if value not in replaced:
                    replaced[value] = _replace(gm, index, value, node, tables)
                node.replace_input_with(value, replaced[value])
        for value in replaced:
            _erase_unused(value)


def _erase_unused(node: Node) -> None:
    """Removes a node without users, and the nodes that only it used."""
    if not node.users and node.op not in ("placeholder", "get_attr"):
        sources = node.all_input_nodes
        node.graph.erase_node(node)
        for source in sources:
            _erase_unused(source)


def _follows_from_positions(node: Node) -> bool:
    """Whether a value is a tensor as long as the text that only positions have a say in."""
    return node.target is not SIZE and bool(_length_axes(node)) and reads_no_input(node)


def _length_axes(node: Node) -> list[int]:
    value = node.meta.get("val")
    graph_input = next(n for n in node.graph.nodes if n.target == "attention_mask")
    length = graph_input.meta["val"].shape[1]
    if not isinstance(value, Tensor):
        return []
    return [
        axis for axis, size in enumerate(value.shape) if isinstance(size, torch.SymInt) and str(size) == str(length)
    ]


def _replace(gm: GraphModule, index: int, value: Node, reader: Node, tables: PositionTables) -> Node:
    axes, rank = _length_axes(value), value.meta["val"].dim()
    longest = find_longest(gm)
    token_positions = tables.positions()
    made: list[Node] = []
    with gm.graph.inserting_before(reader):
        if len(axes) == 1:
            made = _by_position(gm, value, axes[0], longest, token_positions, tables)
        elif axes == [rank - 2, rank - 1] and value.meta["val"].is_floating_point():
            made = _bias_by_distance(gm, value, longest, token_positions, tables)
        elif axes == [rank - 2, rank - 1]:
            made = _by_distance(gm, value, longest, token_positions, tables)
    if not made:
        raise PassError(
            f"layer {index}: {reader.target} reads {value.target}, which follows from the tokens' positions, but is no "
            "table by position and none by the distance of two tokens: a prune's tokens could not look it up"
        )
    for node in made:
        node.meta = {"val": value.meta["val"], "nn_module_stack": reader.meta["nn_module_stack"]}
    return made[-1]


def _by_position(
    gm: GraphModule, value: Node, axis: int, longest: int, token_positions: Node, tables: PositionTables
) -> list[Node]:
    """(1, 1, S, E) or (1, S, E) as rows of a table."""
    table = evaluate(gm, value, longest)
    if axis != table.dim() - 2 or any(size != 1 for size in table.shape[:axis]):
        return []
    made = [_call(gm, look_up_positions, token_positions, tables.add(table.reshape(table.shape[axis:])))]
    for _ in range(axis - 1):
        made.append(_call(gm, aten.unsqueeze.default, made[-1], 1))
    return made


def _by_distance(
    gm: GraphModule, value: Node, longest: int, token_positions: Node, tables: PositionTables
) -> list[Node]:
    """(B * H, S, S) of integers, by how far apart two tokens are."""
    table, copies = _read_distances(evaluate(gm, value, longest)), int(evaluate(gm, value, 2).shape[0])
    if table is None or value.meta["val"].dim() != 3:
        return []
    made = [_call(gm, look_up_distances, token_positions, tables.add(table))]
    if copies > 1:
        made.append(_call(gm, aten.repeat_interleave.self_int, made[-1], copies, 0))
    return made


def _bias_by_distance(
    gm: GraphModule, value: Node, longest: int, token_positions: Node, tables: PositionTables
) -> list[Node]:
    """(B, H, S, S) of a bias that is looked up in a table of buckets, by how far apart two tokens are."""
    lookup = value
    while lookup.target in _RESHAPES:
        lookup = lookup.args[0]  # type: ignore[assignment]
    if lookup.target is not aten.embedding.default:
        return []
    weight, index = lookup.args[:2]
    assert isinstance(weight, Node)
    assert isinstance(index, Node)
    table = _read_distances(evaluate(gm, index, longest))
    if table is None:
        return []
    short = min(longest, 64)  # the reshapes do not depend on the length
    buckets = table[longest - short : longest + short - 1]
    expected = evaluate(gm, value, short)
    if not torch.equal(relative_bias(torch.arange(short)[None], buckets, evaluate(gm, weight, short)), expected):
        return []
    return [_call(gm, relative_bias, token_positions, tables.add(table), weight)]


def _read_distances(values: Tensor) -> Tensor | None:
    """The table (2N - 1,) that values (..., N, N) are looked up in, None when they are no function of the distance."""
    plane = values.reshape(-1, *values.shape[-2:])[0]
    table = torch.cat([plane[1:, 0].flip(0), plane[0]])
    looked_up = look_up_distances(torch.arange(len(plane))[None], table)[0]
    return table if torch.equal(looked_up.expand_as(values), values) else None


def _call(gm: GraphModule, target: object, *arguments: object) -> Node:
    return gm.graph.call_function(target, arguments)  # type: ignore[arg-type]
