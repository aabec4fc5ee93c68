"""SoftenTokens: fade the tokens of one layer that a threshold would drop, to learn the threshold."""

from __future__ import annotations

import operator
from typing import ClassVar

from torch.fx import GraphModule

from passes.encoder import find_layer
from passes.outputs import find_outputs, set_outputs
from passes.pass_base import Pass, PassError
from passes.prune_tokens import insert_input, knows_separator
from passes.threshold_ops import soften_tokens


class SoftenTokens(Pass):
    """Multiplies what a layer gives by a soft mask; for training alone, nothing gets shorter.

    Before:
        h: "f32[B, S, D]" = layer_norm(...)                      # output of the layer
        return {"logits": logits}
    After:
        token_threshold_3: "f32[1]" = new input
        h': "f32[B, S, D]", share: "f32[B]"
            = soften_tokens(h, mask, (added, query, key, scale), token_threshold_3, temperature)
        return {"logits": logits, "soft_kept_3": share}          # the soft mask's mean, for the regulariser

    Args:
        layer: index of the layer, from 0.
        temperature: of the soft mask.

    Raises:
        PassError: when the graph has no such layer, or it has no mask.
    """

    name: ClassVar[str] = "SoftenTokens"

    def __init__(self, layer: int, temperature: float) -> None:
        self.layer, self.temperature = layer, temperature

    def run(self, gm: GraphModule) -> bool:
        layer = find_layer(gm, self.layer)
        if layer.mask is None:
            raise PassError(f"layer {self.layer} has no mask: run Canonicalize first")
        readers = set(layer.output.users)
        attention = (layer.added, *layer.attention.args[:2], layer.scale)
        threshold = insert_input(gm, f"token_threshold_{self.layer}")
        with gm.graph.inserting_after(layer.output):
            # NOTE: without the layer's place in the model: what reads the attention once more is not part of it.
            call = gm.graph.call_function(
                soften_tokens,
                (layer.output, layer.mask, attention, threshold, self.temperature),
                {"separated": True} if knows_separator(gm) else {},
            )
        with gm.graph.inserting_after(call):
            share = gm.graph.call_function(operator.getitem, (call, 1))
            hidden = gm.graph.call_function(operator.getitem, (call, 0))
        hidden.meta["val"] = layer.output.meta["val"]
        layer.output.replace_all_uses_with(hidden, delete_user_cb=readers.__contains__)
        set_outputs(gm, {**find_outputs(gm), f"soft_kept_{self.layer}": share})
        return True
