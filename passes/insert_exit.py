"""InsertExit and TruncateAfterExit: off-ramps between layers."""

from __future__ import annotations

import operator
from typing import ClassVar

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from passes.encoder import find_hidden_after
from passes.ops import label_entropy, normalised_entropy, pool_features
from passes.outputs import find_outputs, set_outputs
from passes.pass_base import Pass, PassError
from passes.verify import verify


class ExitHead(nn.Module):
    """Classifier at an off-ramp: [CLS] and the mean over real tokens, one hidden layer.

    Args:
        hidden_size: D of the encoder.
        num_labels: C, classes.
        width: units of the hidden layer.
        multi_label: whether each label holds or not by itself, instead of one of them alone.
    """

    def __init__(self, hidden_size: int, num_labels: int, width: int = 128, multi_label: bool = False) -> None:
        super().__init__()
        self.multi_label = multi_label
        self.hidden = nn.Linear(2 * hidden_size, width)
        self.activation = nn.GELU()
        self.output = nn.Linear(width, num_labels)

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, C) of pooled features (B, 2D)."""
        logits: Tensor = self.output(self.activation(self.hidden(features)))
        return logits

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and normalised entropy (B,) of a hidden state (B, S, D) and its mask."""
        logits = self.classify(pool_features(hidden, mask))
        return logits, label_entropy(logits) if self.multi_label else normalised_entropy(logits)


class InsertExit(Pass):
    """Inserts an off-ramp after a layer.

    Before:
        h: "f32[B, S, D]" = ...                         # output of layer `exit_layer`
        return {"logits": logits}
    After:
        h: "f32[B, S, D]" = ...
        logits_4: "f32[B, C]", entropy_4: "f32[B]" = exits.4(h, mask)
        return {"logits_4": logits_4, "entropy_4": entropy_4, "logits": logits}

    Args:
        exit_layer: layers run before it; 0 is right after the embeddings.
        head: its classifier.

    Raises:
        PassError: when the graph has no such layer, or an exit there already.
    """

    name: ClassVar[str] = "InsertExit"

    def __init__(self, exit_layer: int, head: nn.Module) -> None:
        self.exit_layer = exit_layer
        self.head = head

    def run(self, gm: GraphModule) -> bool:
        hidden, mask = find_hidden_after(gm, self.exit_layer)
        if self.exit_layer in find_exits(gm):
            raise PassError(f"exit_layer {self.exit_layer}: there is an exit already")
        gm.add_submodule(f"exits.{self.exit_layer}", self.head)
        with gm.graph.inserting_after(max(hidden, mask)):
            call = gm.graph.call_module(f"exits.{self.exit_layer}", (hidden, mask))
        _return_exit(gm, self.exit_layer, call)
        return True

    def ensures(self, gm: GraphModule) -> None:
        verify(gm)


class TruncateAfterExit(Pass):
    """Makes an off-ramp the end of the model: layers after it are not built.

    Before:
        return {"logits_4": ..., "entropy_4": ..., "logits": logits}
    After:
        return {"logits_4": ..., "entropy_4": ...}      # layers 4.. are dead code

    Args:
        exit_layer: the exit that becomes unconditional.
    """

    name: ClassVar[str] = "TruncateAfterExit"

    def __init__(self, exit_layer: int) -> None:
        self.exit_layer = exit_layer

    def run(self, gm: GraphModule) -> bool:
        exits = find_exits(gm)
        if self.exit_layer not in exits:
            raise PassError(f"exit_layer {self.exit_layer}: the graph has exits {sorted(exits)}")
        kept = {f"{kind}_{layer}" for layer in exits if layer <= self.exit_layer for kind in ("logits", "entropy")}
        kept |= {f"kept_{layer}" for layer in range(self.exit_layer)}
        set_outputs(gm, {name: value for name, value in find_outputs(gm).items() if name in kept})
        return True


def find_exits(gm: GraphModule) -> dict[int, Node]:
    """The calls of exit heads, by the layer they follow."""
    calls = {}
    for node in gm.graph.nodes:
        if node.op == "call_module" and str(node.target).startswith("exits."):
            calls[int(str(node.target).removeprefix("exits."))] = node
    return calls


def _return_exit(gm: GraphModule, exit_layer: int, call: Node) -> None:
    with gm.graph.inserting_after(call):
        entropy = gm.graph.call_function(operator.getitem, (call, 1))
        logits = gm.graph.call_function(operator.getitem, (call, 0))
    outputs = {f"logits_{exit_layer}": logits, f"entropy_{exit_layer}": entropy, **find_outputs(gm)}
    final = outputs.pop("logits", None)
    ordered = sorted(outputs.items(), key=lambda item: (int(item[0].rsplit("_", 1)[1]), item[0].startswith("entropy")))
    set_outputs(gm, {**dict(ordered), **({} if final is None else {"logits": final})})
