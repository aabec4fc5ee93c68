"""The base class of every pass, and the error it raises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch.fx import GraphModule


class PassError(Exception):
    """A pass met a graph that it cannot handle, or left one that breaks its promise."""


class Pass:
    """A rewrite of a graph, in place; its settings are constructor arguments.

    An author implements `run` and, where the pass promises something that can be
    checked, `ensures`. Calling the pass removes dead code, lints, recompiles and
    checks the promise, so that none of these can be forgotten.
    """

    name: ClassVar[str]

    def run(self, gm: GraphModule) -> bool:
        """Rewrites `gm` in place; returns whether anything changed."""
        raise NotImplementedError

    def ensures(self, gm: GraphModule) -> None:
        """Raises PassError when the rewritten graph breaks the pass's promise."""

    def __call__(self, gm: GraphModule) -> bool:
        changed = self.run(gm)
        if changed:
            # Attention counts as random (its dropout), and would stay for that reason.
            gm.graph.eliminate_dead_code(lambda node: node.is_impure(impure_random=False))
            gm.delete_all_unused_submodules()
        gm.graph.lint()
        gm.recompile()
        self.ensures(gm)
        return changed


def run_passes(gm: GraphModule, passes: Sequence[Pass]) -> GraphModule:
    """Runs passes in the order given and returns the same, rewritten `gm`.

    Raises:
        PassError: from the pass that failed, naming the passes that ran before it.
    """
    done: list[str] = []
    for rewrite in passes:
        try:
            rewrite(gm)
        except PassError as error:
            before = ", ".join(done) or "none"
            raise PassError(f"{rewrite.name}: {error} (passes that ran before: {before})") from error
        done.append(rewrite.name)
    return gm
