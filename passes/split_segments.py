"""Splitting: one graph with exits becomes a chain of graphs, each ending at an exit."""

from __future__ import annotations

import operator

from torch.fx import Graph, GraphModule, Node

from passes.encoder import find_positions_after, is_setting
from passes.insert_exit import find_exits
from passes.ops import enter_positions, enter_segment
from passes.outputs import find_outputs
from passes.pass_base import PassError


def split_segments(gm: GraphModule) -> list[GraphModule]:
    """Splits a canonical graph after each exit that is not its end.

    Before:
        h4, mask4 = ...; logits_4, entropy_4 = exits.4(h4, mask4)
        logits = ...(h4, mask4)
        return {"logits_4": logits_4, "entropy_4": entropy_4, "logits": logits}
    After:
        segment 0: return {"hidden": h4, "mask": mask4, "logits": logits_4, "entropy": entropy_4}
        segment 1: h, m = enter_segment(hidden, mask, rows, positions)
                   return {"logits": ...(h, m)}
    Where later layers read token positions, `token_positions` follows `mask`, out of the one and into the other:
        segment 1: p = enter_positions(token_positions, rows, positions)
    A segment that prunes by threshold returns the tokens kept, too: {..., "kept_3": num_kept}.

    Args:
        gm: rewritten graph with at least one output.

    Returns:
        The segments in order. Segments after the first read `hidden` (B, S, D), `mask`
        (B, 1, 1, S), where needed `token_positions` (B, S), `rows` (R,) and `positions` (L,), then
        what their prunes need.

    Raises:
        PassError: when something besides hidden state, mask and token positions would cross a cut.
    """
    outputs = find_outputs(gm)
    exits = find_exits(gm)
    ends_in_exit = "logits" not in outputs
    cuts = [_crossing(gm, layer, exits[layer]) for layer in sorted(exits)]
    ends: list[dict[str, Node]] = [
        {**cut, "logits": outputs[f"logits_{layer}"], "entropy": outputs[f"entropy_{layer}"]}
        for cut, layer in zip(cuts, sorted(exits), strict=True)
    ]
    if ends_in_exit:
        cuts.pop()
        ends[-1] = {"logits": ends[-1]["logits"]}
    else:
        ends.append({"logits": outputs["logits"]})
    _return_num_kept(outputs, sorted(exits), ends)
    starts: list[dict[str, Node]] = [{}, *cuts]
    return [_extract(gm, start, end) for start, end in zip(starts, ends, strict=True)]


def _return_num_kept(outputs: dict[str, Node], exit_layers: list[int], ends: list[dict[str, Node]]) -> None:
    """Makes each segment return how many tokens its prunes by threshold kept, which only its engine knows."""
    for name, value in outputs.items():
        if name.startswith("kept_"):
            layer = int(name.removeprefix("kept_"))
            ends[sum(exit_layer <= layer for exit_layer in exit_layers)][name] = value


def _crossing(gm: GraphModule, exit_layer: int, call: Node) -> dict[str, Node]:
    """The values that cross a cut after an exit, by name."""
    hidden, mask = call.all_input_nodes
    token_positions = find_positions_after(gm, exit_layer)
    named = {} if token_positions is None else {"token_positions": token_positions}
    return {"hidden": hidden, "mask": mask, **named}


def _extract(gm: GraphModule, start: dict[str, Node], end: dict[str, Node]) -> GraphModule:
    """Copies what lies between two cuts into a graph of its own."""
    graph = Graph()
    copies: dict[Node, Node] = {}
    needed = _needed(set(start.values()), end)
    if start:
        _enter(graph, copies, start)
    for node in gm.graph.nodes:
        if node in needed and node not in copies:
            if start and not _may_cross(node):
                raise PassError(
                    f"{node.target} is read behind the exit at {start['hidden']}: the graph cannot be cut there"
                )
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output({name: copies[node] for name, node in end.items()})
    graph.lint()
    return GraphModule(gm, graph)


def _may_cross(node: Node) -> bool:
    return node.op != "placeholder" or is_setting(node)


def _needed(given: set[Node], end: dict[str, Node]) -> set[Node]:
    needed: set[Node] = set()
    waiting = list(end.values())
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            if node not in given:
                waiting.extend(node.all_input_nodes)
    return needed


def _enter(graph: Graph, copies: dict[Node, Node], start: dict[str, Node]) -> None:
    """Compacts what crosses the cut to the survivors."""
    inputs = {name: graph.placeholder(name) for name in (*start, "rows", "positions")}
    entered = graph.call_function(enter_segment, tuple(inputs[n] for n in ("hidden", "mask", "rows", "positions")))
    for position, name in enumerate(("hidden", "mask")):
        copies[start[name]] = graph.call_function(operator.getitem, (entered, position))
    if "token_positions" in start:
        arguments = tuple(inputs[name] for name in ("token_positions", "rows", "positions"))
        copies[start["token_positions"]] = graph.call_function(enter_positions, arguments)
    for node in start.values():
        copies[node].meta = dict(node.meta)
