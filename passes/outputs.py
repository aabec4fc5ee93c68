"""The named outputs of a canonical graph."""

from __future__ import annotations

from collections.abc import Mapping

from torch.fx import GraphModule, Node

from passes.pass_base import PassError


def find_outputs(gm: GraphModule) -> dict[str, Node]:
    """What the graph returns, by name, in its order.

    Raises:
        PassError: when its outputs have no names.
    """
    outputs = gm.graph.output_node().args[0]
    if not isinstance(outputs, dict):
        raise PassError("the graph does not return a dict of named outputs; run Canonicalize first")
    return dict(outputs)


def set_outputs(gm: GraphModule, outputs: Mapping[str, Node]) -> None:
    """Returns these values instead."""
    gm.graph.output_node().args = (dict(outputs),)
