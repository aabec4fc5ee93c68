"""TapFeatures, FeatureTap: what exit heads would read, as outputs of the graph or in place of an exit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.fx import GraphModule

from passes.encoder import find_hidden_after
from passes.ops import pool_features
from passes.outputs import find_outputs, set_outputs
from passes.pass_base import Pass
from passes.verify import verify


class FeatureTap(nn.Module):
    """Stands in place of an exit head and answers with what that would read: segments are cut there as by the head."""

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features (B, 2D) of a hidden state (B, S, D) and its mask, and a number (B,) that means nothing."""
        features = pool_features(hidden, mask)
        return features, features.mean(-1)


class TapFeatures(Pass):
    """Returns the pooled features of several off-ramps beside the logits, for training their heads.

    Before:
        return {"logits": logits}
    After:
        features_4: "f32[B, 2D]" = pool_features(h4, mask4)
        return {"features_4": features_4, "logits": logits}

    Args:
        exit_layers: layers run before each off-ramp; 0 is right after the embeddings.
    """

    name: ClassVar[str] = "TapFeatures"

    def __init__(self, exit_layers: Sequence[int]) -> None:
        self.exit_layers = tuple(exit_layers)

    def run(self, gm: GraphModule) -> bool:
        taps = {}
        for exit_layer in self.exit_layers:
            hidden, mask = find_hidden_after(gm, exit_layer)
            with gm.graph.inserting_after(max(hidden, mask)):
                taps[f"features_{exit_layer}"] = gm.graph.call_function(pool_features, (hidden, mask))
        set_outputs(gm, {**taps, **find_outputs(gm)})
        return True

    def ensures(self, gm: GraphModule) -> None:
        verify(gm)
