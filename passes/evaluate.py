"""Values in a graph that no input of the model has a say in: constants, and what follows from positions alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from passes.encoder import SIZE


def find_constant_maybe(value: object) -> float | None:
    """The number that an argument of a node always is, None when it is not one number."""
    if isinstance(value, int | float):
        return float(value)
    if not isinstance(value, Node) or not reads_no_input(value):
        return None
    result = value.meta.get("val")
    if not isinstance(result, Tensor) or result.dim() != 0:
        return None
    owner = value.graph.owning_module
    assert owner is not None
    return float(evaluate(owner, value, seq_len=2))


def reads_no_input(node: Node) -> bool:
    """Whether a value depends on the sizes of the batch at most, never on what is in it."""
    return not any(current.op in ("placeholder", "call_module") for current in find_ancestors(node))


def evaluate(gm: GraphModule, node: Node, seq_len: int) -> Tensor:
    """The value of a node that reads no input, for one example of `seq_len` tokens."""
    values: dict[Node, Any] = {}
    needed = find_ancestors(node)
    interpreter = Interpreter(gm)
    interpreter.env = values
    with torch.no_grad():
        for current in gm.graph.nodes:
            if current in needed:
                is_size = current.target is SIZE
                values[current] = (1, seq_len)[int(current.args[1])] if is_size else interpreter.run_node(current)
    result: Tensor = values[node]
    return result


def find_ancestors(node: Node) -> set[Node]:
    """A node and all that it is computed from; what sizes are read off is left out."""
    waiting, seen = [node], {node}
    while waiting:
        current = waiting.pop()
        for arg in current.all_input_nodes if current.target is not SIZE else ():
            if arg not in seen:
                seen.add(arg)
                waiting.append(arg)
    return seen


def find_longest(gm: GraphModule) -> int:
    """Tokens of the longest text that the graph was exported for."""
    source = next(node for node in gm.graph.nodes if node.target == "attention_mask")
    size = source.meta["val"].shape[1].node
    return int(size.shape_env.bound_sympy(size.expr).upper)
