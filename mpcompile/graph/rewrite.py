"""Rewrites a canonical graph: which passes run, and in which order."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from torch import nn
from torch.fx import GraphModule

from passes import InsertExit, PruneByThreshold, PruneTokens, TapFeatures, TruncateAfterExit, run_passes
from passes.pass_base import Pass

PRUNES = {"top": PruneTokens, "threshold": PruneByThreshold}
"""Passes that prune, by `selection`."""


def rewrite(
    graph_module: GraphModule,
    heads: Mapping[int, nn.Module],
    prune_layers: tuple[int, ...],
    last_exit: int | None = None,
    selection: str = "top",
) -> GraphModule:
    """Copies a canonical graph, sharing its weights, and inserts exits and prunes.

    Args:
        selection: what a prune keeps: "top", as many tokens as the host says, or "threshold", those that receive
            enough attention.
    """
    passes: list[Pass] = [InsertExit(layer, head) for layer, head in sorted(heads.items())]
    if last_exit is not None:
        passes.append(TruncateAfterExit(last_exit))
    return _run(graph_module, passes, prune_layers, selection)


def insert_taps(
    graph_module: GraphModule, exit_layers: Sequence[int], prune_layers: tuple[int, ...], selection: str = "top"
) -> GraphModule:
    """Copies a canonical graph, sharing its weights, and returns what heads at some exits would read, too.

    Args:
        graph_module: left as it is.
        exit_layers: off-ramps to tap.
        prune_layers: layers that prune.
        selection: see `rewrite`.
    """
    return _run(graph_module, [TapFeatures(exit_layers)], prune_layers, selection)


def _run(
    graph_module: GraphModule, passes: Sequence[Pass], prune_layers: tuple[int, ...], selection: str
) -> GraphModule:
    rewritten = GraphModule(graph_module, copy.deepcopy(graph_module.graph))
    # NOTE: prunes come last: an exit reads the mask of its place, which a prune before it then replaces,
    # and a truncated graph has no layers left to prune after its end.
    prune = PRUNES[selection]
    return run_passes(rewritten, [*passes, *(prune(layer) for layer in prune_layers)])
