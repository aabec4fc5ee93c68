"""The spec that a graph meets between passes."""

from __future__ import annotations

import itertools

from torch.fx import GraphModule, Node

from passes.encoder import SIZE, EncoderLayer, find_layers, is_setting
from passes.evaluate import find_ancestors
from passes.outputs import find_outputs
from passes.pass_base import PassError


def verify(gm: GraphModule) -> None:
    """Checks that a canonical graph is one chain of layers joined by hidden state, mask and token positions alone.

    That is what allows a cut between any two layers, another length after any of them, and
    a batch compacted to the survivors: nothing else may cross. Token positions are there only where
    the model tells by them how far apart tokens stood.

    Raises:
        PassError: naming the first layer that reads something else.
    """
    layers = find_layers(gm)
    for before, after in itertools.pairwise(layers):
        if after.input is not before.output:
            raise PassError(f"layer {after.index} does not read the hidden state that layer {before.index} gives")
    for layer in layers:
        _verify_layer(layer)
    _verify_tail(list(find_outputs(gm).values()), layers)


def _verify_layer(layer: EncoderLayer) -> None:
    inside = set(layer.nodes)
    for node in layer.nodes:
        for arg in node.all_input_nodes:
            if arg not in inside and not _may_enter(arg, layer):
                raise PassError(f"layer {layer.index}: {node.target} reads {arg.name} from outside the layer")


def _may_enter(arg: Node, layer: EncoderLayer) -> bool:
    is_own_size = arg.target is SIZE and (arg.args[0] is layer.input or arg.args[0] in layer.nodes)
    is_parameter = arg.op == "get_attr"
    is_carried = arg in (layer.input, layer.mask, layer.positions)
    return is_carried or is_own_size or is_parameter or is_setting(arg) or _is_made_of_parameters(arg)


def _is_made_of_parameters(node: Node) -> bool:
    """Whether a value is the same for every batch, as a norm of a table is: each segment computes its own."""
    return not any(n.op in ("placeholder", "call_module") or n.target is SIZE for n in find_ancestors(node))


def _verify_tail(outputs: list[Node], layers: tuple[EncoderLayer, ...]) -> None:
    """Behind a layer, nothing is read but its hidden state, the mask in force and parameters."""
    inside = {node for layer in layers for node in layer.nodes} | {layers[0].input, layers[0].mask, layers[0].positions}
    waiting, seen = outputs, set()
    while waiting:
        node = waiting.pop()
        if node in inside or node in seen:
            continue
        seen.add(node)
        if node.op == "placeholder":
            raise PassError(f"the classifier reads {node.target} beside the hidden state")
        waiting.extend(node.all_input_nodes)
