"""Splitting: one graph with exits becomes a chain of graphs, each ending at an exit."""

from __future__ import annotations

import operator

from torch.fx import Graph, GraphModule, Node

from passes.insert_exit import find_exits
from passes.ops import enter_segment
from passes.pass_base import PassError


def split_segments(gm: GraphModule) -> list[GraphModule]:
    """Splits a canonical graph behind each exit that is not its end.

    Before:
        h4, mask4 = ...; logits_4, entropy_4 = exits.4(h4, mask4)
        logits = ...(h4, mask4)
        return {"logits_4": logits_4, "entropy_4": entropy_4, "logits": logits}
    After:
        segment 0: return {"hidden": h4, "mask": mask4, "logits": logits_4, "entropy": entropy_4}
        segment 1: h, m = enter_segment(hidden, mask, rows, positions)
                   return {"logits": ...(h, m)}

    Args:
        gm: rewritten graph with at least one output.

    Returns:
        The segments in order. Segments after the first read `hidden` (B, S, D), `mask`
        (B, 1, 1, S), `rows` (R,) and `positions` (L,), then what their prunes need.

    Raises:
        PassError: when something besides hidden state and mask would cross a cut.
    """
    outputs = gm.graph.output_node().args[0]
    assert isinstance(outputs, dict)
    exits = find_exits(gm)
    ends_in_exit = "logits" not in outputs
    cuts = [exits[layer] for layer in sorted(exits)]
    ends: list[dict[str, Node]] = []
    for layer in sorted(exits):
        named = {"logits": outputs[f"logits_{layer}"], "entropy": outputs[f"entropy_{layer}"]}
        hidden, mask = exits[layer].all_input_nodes
        ends.append({"hidden": hidden, "mask": mask, **named})
    if ends_in_exit:
        cuts.pop()
        ends[-1] = {"logits": ends[-1]["logits"]}
    else:
        ends.append({"logits": outputs["logits"]})
    starts = [None, *cuts]
    return [_extract(gm, start, end) for start, end in zip(starts, ends, strict=True)]


def _extract(gm: GraphModule, start: Node | None, end: dict[str, Node]) -> GraphModule:
    """Copies what lies between two cuts into a graph of its own."""
    graph = Graph()
    copies: dict[Node, Node] = {}
    needed = _needed(start, end)
    if start is not None:
        hidden, mask = start.all_input_nodes
        _enter(graph, copies, hidden, mask)
    for node in gm.graph.nodes:
        if node in needed and node not in copies:
            if start is not None and not _may_cross(node):
                raise PassError(
                    f"{node.target} is read behind the exit at {start.target}: the graph cannot be cut there"
                )
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output({name: copies[node] for name, node in end.items()})
    graph.lint()
    return GraphModule(gm, graph)


def _may_cross(node: Node) -> bool:
    return node.op != "placeholder" or str(node.target).startswith(("num_kept_", "slots_"))


def _needed(start: Node | None, end: dict[str, Node]) -> set[Node]:
    given = set(start.all_input_nodes) if start is not None else set()
    needed: set[Node] = set()
    waiting = list(end.values())
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            if node not in given:
                waiting.extend(node.all_input_nodes)
    return needed


def _enter(graph: Graph, copies: dict[Node, Node], hidden: Node, mask: Node) -> None:

    inputs = [graph.placeholder(name) for name in ("hidden", "mask", "rows", "positions")]
    entered = graph.call_function(enter_segment, tuple(inputs))
    for position, node in enumerate((hidden, mask)):
        copies[node] = graph.call_function(operator.getitem, (entered, position))
        copies[node].meta = dict(node.meta)
