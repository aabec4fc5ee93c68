"""PoolTokens: an encoder that gives one vector per text."""

from __future__ import annotations

from typing import ClassVar

from torch.fx import GraphModule

from passes.encoder import find_layers, find_mask_after, is_hidden
from passes.ops import pool_tokens
from passes.outputs import find_outputs, set_outputs
from passes.pass_base import Pass, PassError
from passes.verify import verify


class PoolTokens(Pass):
    """Makes the mean over the real tokens of the last hidden state the answer of an encoder.

    The mask is the one in force after the last layer, so that tokens dropped by any prune are left out.

    Before:
        h: "f32[B, S, D]" = ...                         # output of the encoder
        return {"logits": h}
    After:
        h: "f32[B, S, D]" = ...
        vector: "f32[B, D]" = pool_tokens(h, mask, normalise)
        return {"logits": vector}

    Args:
        normalise: whether vectors are divided by their length.

    Raises:
        PassError: when the graph does not return a hidden state.
    """

    name: ClassVar[str] = "PoolTokens"

    def __init__(self, normalise: bool) -> None:
        self.normalise = normalise

    def run(self, gm: GraphModule) -> bool:
        outputs = find_outputs(gm)
        hidden = outputs.get("logits")
        if len(outputs) != 1 or hidden is None or not is_hidden(hidden):
            raise PassError("the graph does not return a hidden state (B, S, D) alone; run Canonicalize first")
        mask = find_mask_after(gm, find_layers(gm)[-1])
        with gm.graph.inserting_before(gm.graph.output_node()):
            vector = gm.graph.call_function(pool_tokens, (hidden, mask, self.normalise))
        vector.meta["val"] = hidden.meta["val"].mean(1)
        set_outputs(gm, {"logits": vector})
        return True

    def ensures(self, gm: GraphModule) -> None:
        verify(gm)
