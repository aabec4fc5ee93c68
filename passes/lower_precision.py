"""LowerPrecision: products in fp16 or bf16, norms and softmax in fp32, said in the graph itself."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from passes.encoder import ATTENTION, MASKS, PRUNES, SIZE
from passes.insert_exit import find_exits
from passes.ops import enter_segment, pool_features, pool_tokens
from passes.outputs import find_outputs, set_outputs
from passes.pass_base import Pass

aten = torch.ops.aten
PRODUCTS = (aten.linear.default, aten.matmul.default, ATTENTION)
"""What runs on tensor cores: operands, all of them floats, and result are in the low precision."""
NORMS = (aten.layer_norm.default,)
"""What fp16 overflows in (TensorRT issues 1196 and 1500): a norm, and the sum that it reads, are in fp32."""
POOLS = (pool_features, pool_tokens)
_CAST = aten.to.dtype


class LowerPrecision(Pass):
    """Writes casts into a segment's graph, so that a strongly typed compiler has nothing left to decide.

    Weights and the hidden state between segments are in the low precision; masks, importance, exit heads, logits
    and entropy stay in fp32. Attention is one node of low precision: what spells it out does its softmax in fp32.

    Before:
        added: "f32[B, S, D]" = add(linear(x, weight, bias), residual)
        h: "f32[B, S, D]" = layer_norm(added, [D], scale, shift)
    After:
        low: "f16[B, S, D]" = linear(x, weight_f16, bias_f16)
        added: "f32[B, S, D]" = add(to(low, f32), to(residual, f32))
        h: "f16[B, S, D]" = to(layer_norm(added, [D], scale, shift), f16)

    Args:
        dtype: torch.float16 or torch.bfloat16.
    """

    name: ClassVar[str] = "LowerPrecision"

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def run(self, gm: GraphModule) -> bool:
        _Lowering(gm, self.dtype).run()
        return True


class _Lowering:
    """One walk over a graph, in its order: which values are in the low precision is known when they are read."""

    def __init__(self, gm: GraphModule, dtype: torch.dtype) -> None:
        self.gm, self.dtype = gm, dtype
        self.low: set[Node] = set()
        self.casts: dict[tuple[Node, torch.dtype], Node] = {}
        self.summed = {term for norm in gm.graph.nodes if norm.target in NORMS for term in _find_sums(norm.args[0])}
        self.exits = set(find_exits(gm).values())

    def run(self) -> None:
        for node in list(self.gm.graph.nodes):
            self._lower(node)
        outputs = find_outputs(self.gm)
        for name, value in outputs.items():
            if name == "hidden" or value in self.low:
                outputs[name] = self._cast(value, self.dtype if name == "hidden" else torch.float32)
        set_outputs(self.gm, outputs)

    def _lower(self, node: Node) -> None:
        if node.op == "placeholder" and node.target == "hidden":
            self.low.add(node)
        elif node.target in PRODUCTS:
            self._read(node, node.all_input_nodes, self.dtype)
            self.low.add(node)
        elif node.target is aten.embedding.default:
            self._read(node, node.all_input_nodes[:1], self.dtype)
            self.low.add(node)
        elif node.target in NORMS:
            self._read(node, self._find_low(node), torch.float32)
            self._lower_result(node)
        elif node in self.summed or node in self.exits or node.target in (*POOLS, *MASKS):
            self._read(node, self._find_low(node), torch.float32)
        elif node.target in PRUNES:
            self._read(node, [arg for arg in self._find_low(node) if arg is not node.args[0]], torch.float32)
        elif node.target is operator.getitem:
            source, index = node.args
            if isinstance(source, Node) and source.target in (*PRUNES, enter_segment) and index == 0:
                self.low.add(node)
        elif node.op == "call_function" and node.target not in (SIZE, enter_segment):
            self._follow(node)

    def _follow(self, node: Node) -> None:
        """Everything else is in the precision of what it reads, parameters aside; in fp32 where that is mixed."""
        floats = [arg for arg in node.all_input_nodes if self._is_float(arg)]
        computed = [arg for arg in floats if arg.op != "get_attr"]
        if not self.low.isdisjoint(computed):
            is_low = self.low.issuperset(computed)
            self._read(node, floats if is_low else self._find_low(node), self.dtype if is_low else torch.float32)
            self.low.update([node] if is_low else [])

    def _find_low(self, node: Node) -> list[Node]:
        return [arg for arg in node.all_input_nodes if arg in self.low]

    def _is_float(self, node: Node) -> bool:
        value = self._find_parameter(node) if node.op == "get_attr" else node.meta.get("val")
        return node in self.low or (isinstance(value, Tensor) and value.is_floating_point())

    def _read(self, node: Node, args: Sequence[Node], dtype: torch.dtype) -> None:
        """Makes a node read some of its arguments in a precision."""
        for arg in args:
            node.replace_input_with(arg, self._cast(arg, dtype))

    def _cast(self, value: Node, dtype: torch.dtype) -> Node:
        if (value in self.low) == (dtype == self.dtype):
            return value
        if (value, dtype) not in self.casts:
            is_parameter = value.op == "get_attr"
            self.casts[value, dtype] = self._cast_parameter(value) if is_parameter else self._insert_cast(value, dtype)
        return self.casts[value, dtype]

    def _cast_parameter(self, value: Node) -> Node:
        """A parameter is stored in the low precision: a cast would keep both."""
        name = f"low_{str(value.target).replace('.', '_')}"
        self.gm.register_buffer(name, self._find_parameter(value).detach().to(self.dtype))
        with self.gm.graph.inserting_before(value):
            return self.gm.graph.get_attr(name)

    def _insert_cast(self, value: Node, dtype: torch.dtype) -> Node:
        with self.gm.graph.inserting_after(value):
            cast = self.gm.graph.call_function(_CAST, (value, dtype))
        if dtype == self.dtype:
            self.low.add(cast)
        return cast

    def _lower_result(self, node: Node) -> None:
        users = list(node.users)
        cast = self._insert_cast(node, self.dtype)
        for user in users:
            user.replace_input_with(node, cast)

    def _find_parameter(self, node: Node) -> Tensor:
        value: Tensor = operator.attrgetter(str(node.target))(self.gm)
        return value


def _find_sums(value: object) -> set[Node]:
    """The sums that a norm reads, through sums alone."""
    if not isinstance(value, Node) or value.target is not aten.add.Tensor or len(value.users) > 1:
        return set()
    return {value}.union(*map(_find_sums, value.args))
