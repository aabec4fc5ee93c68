"""Graphs that the cost model's tests trace: captured, rewritten and split, each made and traced once."""

import functools

from torch.fx import GraphModule

from mpcompile.cost.tracing import Operator, trace_operators
from mpcompile.graph.rewrite import rewrite
from passes import split_segments
from tests.models import HIDDEN_SIZE, build_head, canonical_graph

PRUNES = (0, 2)
EXIT_LAYER = 1


@functools.cache
def build_graph(family: str, kind: str) -> GraphModule:
    """A graph of a family's tiny model; shared, so leave it as it is.

    Args:
        kind: "captured"; "rewritten", with an exit after one layer and prunes in layers 0 and 2; or "segment 0" and
            "segment 1" of that.
    """
    if kind == "captured":
        return canonical_graph(family)
    if kind == "rewritten":
        return rewrite(canonical_graph(family), {EXIT_LAYER: build_head(EXIT_LAYER)}, PRUNES)
    return split_segments(build_graph(family, "rewritten"))[int(kind.removeprefix("segment "))]


@functools.cache
def traced(family: str, kind: str) -> tuple[Operator, ...]:
    """The operators of such a graph."""
    return tuple(trace_operators(build_graph(family, kind), HIDDEN_SIZE))
