"""FuseAttention: attention written out by hand becomes one node."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node

from passes.encoder import ATTENTION, aten
from passes.evaluate import find_constant_maybe
from passes.pass_base import Pass, PassError

PRODUCTS = (aten.matmul.default, aten.bmm.default)
SUMS = (aten.add.Tensor, aten.add_.Tensor)
_VIEWS = (aten.view.default, aten.reshape.default, aten.contiguous.default)
_UNCHANGED = (aten.dropout.default, aten._assert_tensor_metadata.default)


class FuseAttention(Pass):
    """Replaces matmul, scale, add, softmax, matmul by scaled_dot_product_attention.

    Models of transformers that were never ported to its attention interface (MPNet, DeBERTa) write
    attention out. Found by targets and data flow: a softmax whose input is a product of two
    activations, scaled, with whatever is added, and whose output is multiplied by a third.

    Before:
        scores: "f32[B, H, S, S]" = matmul(q, k.transpose(-1, -2)) / sqrt(D / H)
        p: "f32[B, H, S, S]" = softmax(scores + bias + mask, -1)
        a: "f32[B, H, S, D/H]" = matmul(p, v)
    After:
        a: "f32[B, H, S, D/H]" = scaled_dot_product_attention(q, k, v, bias + mask, scale=1 / sqrt(D / H))

    Equal but for rounding. A graph without such a softmax stays as it is.

    Raises:
        PassError: when such a softmax is there and what follows it is not attention's product.
    """

    name: ClassVar[str] = "FuseAttention"

    def run(self, gm: GraphModule) -> bool:
        changed = _make_functional(gm)
        for node in [n for n in gm.graph.nodes if n.target is aten.softmax.int]:
            scores = _read_scores(node.args[0])
            if scores is not None:
                _fuse(gm, node, scores)
                changed = True
        return changed


def _make_functional(gm: GraphModule) -> bool:
    """Replaces operators that write into their first argument, which is not read afterwards."""
    changed = False
    for node in gm.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or not schema.is_mutable:
            continue
        written = node.args[0]
        functional = getattr(aten, schema.name.removeprefix("aten::").removesuffix("_"), None)
        if functional is None or any(user > node for user in written.users):
            raise PassError(f"{node.target} changes a value that is read again: expected a graph without side effects")
        node.target = getattr(functional, schema.overload_name or "default")
        changed = True
    return changed


@dataclass(frozen=True)
class _Scores:
    """What a softmax is taken of: scale * query @ key^T + all that is added.

    Attributes:
        query: (B, H, S, D / H).
        key: (B, H, S, D / H).
        scale: a number.
        added: (B, H, S, S) or what can be added to it.
        hidden: where the score is replaced by a very negative one.
    """

    query: Node
    key: Node
    scale: float
    added: tuple[Node, ...] = ()
    hidden: tuple[Node, ...] = ()


def _read_scores(node: Any) -> _Scores | None:
    """The parts of scores; None when there is no product of two activations at their root."""
    if not isinstance(node, Node):
        return None
    if node.target in PRODUCTS:
        return _read_product(node)
    if node.target in (*_VIEWS, *_UNCHANGED):
        inner = _read_scores(node.args[0])
        # What was added before batch and heads were parted has to be parted likewise.
        return None if inner is None else replace(inner, added=tuple(_like(node, term) for term in inner.added))
    if node.target is aten.masked_fill.Scalar and float(node.args[2]) < -1e3:  # type: ignore[arg-type]
        inner = _read_scores(node.args[0])
        return None if inner is None else replace(inner, hidden=(*inner.hidden, node.args[1]))  # type: ignore[arg-type]
    if node.target in SUMS:
        for term, other in (node.args[:2], node.args[1::-1]):
            inner = _read_scores(term)
            if inner is not None and isinstance(other, Node):
                return replace(inner, added=(*inner.added, other))
        return None
    if node.target in (aten.div.Tensor, aten.mul.Tensor):
        inner = _read_scores(node.args[0])
        factor = _read_factor(node)
        return None if inner is None or inner.added or factor is None else replace(inner, scale=inner.scale * factor)
    return None


def _read_product(node: Node) -> _Scores | None:
    query, scale = _strip(node.args[0])
    transposed, key_scale = _strip(node.args[1])
    if transposed.target is not aten.transpose.int or set(transposed.args[1:]) != {-1, -2}:
        return None
    key, inner_scale = _strip(transposed.args[0])
    query, key = _part_heads(query), _part_heads(key)
    shapes = [n.meta["val"].shape for n in (query, key)]
    if any(len(shape) != 4 for shape in shapes):
        return None
    return _Scores(query, key, scale * key_scale * inner_scale)


def _strip(node: Any) -> tuple[Node, float]:
    """A node without the number that it is multiplied or divided by."""
    factor = 1.0
    while node.target in (aten.div.Tensor, aten.mul.Tensor):
        number = _read_factor(node)
        if number is None:
            break
        factor, node = factor * number, node.args[0]
    return node, factor


def _read_factor(node: Node) -> float | None:
    """The number that a node multiplies its first argument by, None when it is no number."""
    number = find_constant_maybe(node.args[1])
    if number is None:
        return None
    return 1.0 / number if node.target is aten.div.Tensor else number


def _part_heads(node: Node) -> Node:
    """(B * H, S, D / H) as it was before batch and heads were joined, (B, H, S, D / H)."""
    while node.meta["val"].dim() == 3 and node.target in _VIEWS:
        node = node.args[0]  # type: ignore[assignment]
    return node


def _like(view: Node, term: Node) -> Node:
    """The same view of another node."""
    if view.target in _UNCHANGED:
        return term
    graph = view.graph
    with graph.inserting_after(view):
        copy = graph.call_function(view.target, (term, *view.args[1:]))  # type: ignore[arg-type]
    copy.meta = dict(view.meta)
    return copy


def _fuse(gm: GraphModule, softmax: Node, scores: _Scores) -> None:
    if softmax.args[1] not in (-1, 3):
        raise PassError(f"attention takes a softmax over dimension {softmax.args[1]}; expected the last")
    product, parted = _find_product(softmax)
    value = _part_heads(product.args[1])  # type: ignore[arg-type]
    with gm.graph.inserting_before(product):
        added = _add_up(gm, softmax, scores)
        fused = gm.graph.call_function(ATTENTION, (scores.query, scores.key, value, *added), {"scale": scores.scale})
        fused.meta = {**product.meta, "val": scores.query.meta["val"]}
        result = fused
        if parted:  # batch and heads are joined again for the readers of the product
            result = gm.graph.call_function(aten.flatten.using_ints, (fused, 0, 1))
            result.meta = dict(product.meta)
    product.replace_all_uses_with(result)


def _find_product(softmax: Node) -> tuple[Node, bool]:
    """The product of attention's weights with the values, and whether batch and heads are one dimension in it."""
    node = softmax
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.target in PRODUCTS:
            return node, node.meta["val"].dim() == 3
        if node.target not in (*_VIEWS, *_UNCHANGED):
            break
    raise PassError(f"a softmax over scores of queries and keys is followed by {node.target}; expected a product")


def _add_up(gm: GraphModule, softmax: Node, scores: _Scores) -> tuple[Node, ...]:
    """What is added to the scores as one node, or nothing."""
    terms = list(scores.added)
    for hidden in scores.hidden:
        zero = gm.graph.call_function(aten.zeros_like.default, (hidden,), {"dtype": torch.float32})
        filled = gm.graph.call_function(aten.masked_fill.Scalar, (zero, hidden, torch.finfo(torch.float32).min))
        for node in (zero, filled):
            node.meta = {**softmax.meta, "val": hidden.meta["val"].float()}
        terms.append(filled)
    if not terms:
        return ()
    total = terms[0]
    for term in terms[1:]:
        total = gm.graph.call_function(aten.add.Tensor, (total, term))
        total.meta = dict(softmax.meta)
    return (total,)
