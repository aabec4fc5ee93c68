"""PruneByThreshold: drop the tokens of one layer that receive too little attention."""

from __future__ import annotations

import operator
from typing import ClassVar

from torch.fx import GraphModule, Node

from passes.encoder import EncoderLayer
from passes.outputs import find_outputs, set_outputs
from passes.prune_tokens import PruneTokens, insert_input, knows_separator
from passes.threshold_ops import prune_by_threshold


class PruneByThreshold(PruneTokens):
    """Inserts a prune by a threshold between attention and feed-forward of one layer.

    Learned token pruning (Kim et al. 2022, arXiv 2107.00910), as in Magic Pyramid: how many tokens are left
    follows from the text, so that K is known only while the graph runs. The threshold stays an input of the graph.

    Before:
        h: "f32[B, S, D]" = layer_norm(...)                      # after attention
        ...                                                      # later nodes use h, mask and S
        return {"logits": logits}
    After (K = what the example that keeps most keeps):
        token_threshold_3: "f32[1]" = new input
        h': "f32[B, K, D]", mask': "f32[B, 1, 1, K]", kept_index: "i64[B, K]", num_kept: "i64[B]"
            = prune_by_threshold(h, mask, (added, query, key, scale), token_threshold_3)
        ...                                                      # later nodes use h', mask' and K
        return {"logits": logits, "kept_3": num_kept}

    With a threshold of 0 every token is kept and the outputs are bitwise equal.

    Args:
        layer: index of the layer, from 0.

    Raises:
        PassError: when the graph has no such layer or it already prunes.
    """

    name: ClassVar[str] = "PruneByThreshold"

    def _call_prune(self, gm: GraphModule, layer: EncoderLayer) -> Node:
        threshold = insert_input(gm, f"token_threshold_{self.layer}")
        site = layer.attention_output
        with gm.graph.inserting_after(site):
            prune = gm.graph.call_function(
                prune_by_threshold,
                (site, layer.mask, (layer.added, *layer.attention.args[:2], layer.scale), threshold),
                {"separated": True} if knows_separator(gm) else {},
            )
        prune.meta["nn_module_stack"] = site.meta["nn_module_stack"]
        _return_num_kept(gm, self.layer, prune)
        return prune


def _return_num_kept(gm: GraphModule, layer: int, prune: Node) -> None:
    with gm.graph.inserting_after(prune):
        num_kept = gm.graph.call_function(operator.getitem, (prune, 3))
    num_kept.meta["nn_module_stack"] = prune.meta["nn_module_stack"]
    set_outputs(gm, {**find_outputs(gm), f"kept_{layer}": num_kept})
