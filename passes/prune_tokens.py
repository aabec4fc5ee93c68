"""PruneTokens: drop tokens that stopped mattering, inside one layer."""

from __future__ import annotations

import operator
from typing import ClassVar

from torch.fx import GraphModule, Node
from torch.fx.node import Argument

from passes.encoder import PRUNES, SIZE, EncoderLayer, find_layer
from passes.ops import additive_mask, keep_positions, prune_tokens
from passes.pass_base import Pass, PassError
from passes.verify import verify


class PruneTokens(Pass):
    """Inserts a prune between attention and feed-forward of one layer.

    How much to keep stays an input of the graph, so that another keep ratio is no rebuild.

    Before:
        h: "f32[B, S, D]" = layer_norm(...)                      # after attention
        ...                                                      # later nodes use h, mask and S
    After (K = the largest num_kept in the batch):
        num_kept_3: "i64[B]", slots_3: "i64[K]" = new inputs
        h': "f32[B, K, D]", mask': "f32[B, 1, 1, K]", kept_index: "i64[B, K]"
            = prune_tokens(h, mask, (query, key, value, scale), num_kept_3, slots_3)
        ...                                                      # later nodes use h', mask' and K

    Where the layer reads token positions, those after the prune are the kept tokens' own:
        token_positions': "i64[B, K]" = keep_positions(token_positions, kept_index)
    Where a separator is known, `separated` is set: no prune drops one.

    With `num_kept` the length of every example and K = S the outputs are bitwise equal.

    Args:
        layer: index of the layer, from 0.

    Raises:
        PassError: when the graph has no such layer or it already prunes.
    """

    name: ClassVar[str] = "PruneTokens"

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def run(self, gm: GraphModule) -> bool:
        layer = find_layer(gm, self.layer)
        if any(node.target in PRUNES for node in layer.nodes):
            raise PassError(f"layer {self.layer} already prunes")
        if layer.mask is None:
            raise PassError(f"layer {self.layer} has no mask: run Canonicalize first")
        prune, hidden, mask = self._insert(gm, layer)
        later = set(_nodes_after(gm, hidden))
        layer.attention_output.replace_all_uses_with(hidden, delete_user_cb=later.__contains__)
        layer.mask.replace_all_uses_with(mask, delete_user_cb=later.__contains__)
        if layer.positions is not None:
            positions = _insert_positions(gm, prune, layer.positions)
            layer.positions.replace_all_uses_with(positions, delete_user_cb=later.__contains__)
        _resize(gm, layer, hidden, later)
        return True

    def ensures(self, gm: GraphModule) -> None:
        verify(gm)

    def _insert(self, gm: GraphModule, layer: EncoderLayer) -> tuple[Node, Node, Node]:
        prune = self._call_prune(gm, layer)
        with gm.graph.inserting_after(prune):
            mask = gm.graph.call_function(operator.getitem, (prune, 1))
            hidden = gm.graph.call_function(operator.getitem, (prune, 0))
        for node in (hidden, mask):
            node.meta["nn_module_stack"] = prune.meta["nn_module_stack"]
        assert layer.mask is not None
        hidden.meta["val"], mask.meta["val"] = layer.attention_output.meta["val"], layer.mask.meta["val"]
        return prune, hidden, mask

    def _call_prune(self, gm: GraphModule, layer: EncoderLayer) -> Node:
        """The node that gives the pruned hidden state, the mask and the kept positions, in this order."""
        num_kept = insert_input(gm, f"num_kept_{self.layer}")
        slots = insert_input(gm, f"slots_{self.layer}")
        site = layer.attention_output
        attention = (*layer.attention.args[:3], layer.scale, *(() if layer.bias is None else (layer.bias,)))
        options: dict[str, Argument] = {"separated": True} if knows_separator(gm) else {}
        with gm.graph.inserting_after(site):
            prune = gm.graph.call_function(prune_tokens, (site, layer.mask, attention, num_kept, slots), options)
        prune.meta["nn_module_stack"] = site.meta["nn_module_stack"]
        return prune


def insert_input(gm: GraphModule, name: str) -> Node:
    """Gives a graph one more input, after the others."""
    last_input = [node for node in gm.graph.nodes if node.op == "placeholder"][-1]
    with gm.graph.inserting_after(last_input):
        return gm.graph.placeholder(name)


def _insert_positions(gm: GraphModule, prune: Node, token_positions: Node) -> Node:
    """Makes later layers, which tell by them how far apart tokens stood, read those of the kept tokens."""
    with gm.graph.inserting_after(prune):
        kept_index = gm.graph.call_function(operator.getitem, (prune, 2))
    with gm.graph.inserting_after(kept_index):
        kept = gm.graph.call_function(keep_positions, (token_positions, kept_index))
    for node in (kept_index, kept):
        node.meta["nn_module_stack"] = prune.meta["nn_module_stack"]
    kept.meta["val"] = token_positions.meta["val"]
    return kept


def knows_separator(gm: GraphModule) -> bool:
    """Whether the graph's mask protects separators."""
    return any(node.target is additive_mask and len(node.args) > 1 for node in gm.graph.nodes)


def _nodes_after(gm: GraphModule, node: Node) -> list[Node]:
    nodes = list(gm.graph.nodes)
    return nodes[nodes.index(node) + 1 :]


def _resize(gm: GraphModule, layer: EncoderLayer, hidden: Node, later: set[Node]) -> None:
    """Nodes of the layer after the prune that read the layer's length read the pruned one."""
    for size in [user for user in layer.input.users if user.target is SIZE]:
        users = [user for user in size.users if user in later]
        if users:
            with gm.graph.inserting_after(hidden):
                local = gm.graph.call_function(SIZE, (hidden, size.args[1]))
            local.meta["val"] = size.meta["val"]
            for user in users:
                user.replace_input_with(size, local)
