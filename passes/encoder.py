"""Where the encoder is in an exported graph: the only file that knows its structure.

Layers are found from module metadata (an attention node under `something.N.`) and from
data flow (what enters and leaves those modules), never from node names.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from passes.ops import (
    biased_mask,
    keep_positions,
    look_up_distances,
    look_up_positions,
    prune_tokens,
    relative_bias,
    window_mask,
)
from passes.pass_base import PassError
from passes.threshold_ops import prune_by_threshold

aten = torch.ops.aten
ATTENTION = aten.scaled_dot_product_attention.default
SIZE = aten.sym_size.int
MASKS = (biased_mask, window_mask)
"""What an attention may add instead of the additive mask of the padding, which is their second argument."""
POSITIONAL = (keep_positions, look_up_distances, look_up_positions, relative_bias, window_mask)
"""What reads token positions: their first argument."""
PRUNES = (prune_tokens, prune_by_threshold)
"""What drops tokens: they give the hidden state, the mask in force and the kept positions first."""

LOOKED_FOR = (
    "looked for one scaled_dot_product_attention per layer, inside a numbered list of modules such as "
    "`bert.encoder.layer.0`, with a hidden state (batch, length, hidden size) passed from layer to layer"
)


@dataclass(frozen=True)
class EncoderLayer:
    """One Transformer layer of the graph.

    Attributes:
        index: position of the layer, from 0.
        path: name of its module, such as `bert.encoder.layer.0`.
        nodes: its nodes in graph order, parameters and size reads excluded.
        input: hidden state that enters, (B, S, D).
        attention: its scaled_dot_product_attention node.
        attention_output: hidden state between attention and feed-forward, (B, S, D); everything
            after it in the layer depends on the tokens through it alone.
        output: hidden state that leaves, (B, S, D).
    """

    index: int
    path: str
    nodes: tuple[Node, ...]
    input: Node
    attention: Node
    attention_output: Node
    output: Node

    @property
    def added(self) -> Node | None:
        """All that its attention adds to its scores: a mask, maybe with a bias in it, or None."""
        added = self.attention.args[3] if len(self.attention.args) > 3 else self.attention.kwargs.get("attn_mask")
        assert added is None or isinstance(added, Node)
        return added

    @property
    def mask(self) -> Node | None:
        """The additive mask that it reads, (B, 1, 1, S), or None."""
        added = self.added
        return added.all_input_nodes[1] if added is not None and added.target in MASKS else added

    @property
    def bias(self) -> Node | None:
        """What its attention adds to its scores beside the mask, (B, H, S, S), or None."""
        added = self.added
        return added.all_input_nodes[0] if added is not None and added.target is biased_mask else None

    @property
    def positions(self) -> Node | None:
        """The token positions that it reads, (B, S) int64; None where the model needs none."""
        inside = set(self.nodes)
        return next(
            (n.all_input_nodes[0] for n in self.nodes if n.target in POSITIONAL and n.all_input_nodes[0] not in inside),
            None,
        )

    @property
    def scale(self) -> float:
        """What its attention multiplies scores by."""
        return find_scale(self.attention)


def find_scale(attention: Node) -> float:
    """What an attention node multiplies scores by; 1 / sqrt(head size) unless the graph says otherwise."""
    given = attention.kwargs.get("scale")
    if given is not None:
        return float(given)  # type: ignore[arg-type]
    query = attention.args[0]
    assert isinstance(query, Node)
    return 1.0 / math.sqrt(int(query.meta["val"].shape[-1]))


def is_setting(node: Node) -> bool:
    """Whether a node is an input of the graph that is of one layer, whose index ends its name: how much it prunes."""
    return node.op == "placeholder" and re.search(r"_\d+$", str(node.target)) is not None


def find_layers(gm: GraphModule) -> tuple[EncoderLayer, ...]:
    """Finds the encoder's layers, first to last.

    Raises:
        PassError: when the graph holds none, or a layer has no single hidden state in and out.
    """
    attentions, paths, members = group_by_layer(gm)
    return tuple(
        _read_layer(index, path, nodes, attention)
        for index, (path, nodes, attention) in enumerate(zip(paths, members, attentions, strict=True))
    )


def find_layer(gm: GraphModule, index: int) -> EncoderLayer:
    """One layer of the encoder.

    Raises:
        PassError: when the graph has no such layer.
    """
    layers = find_layers(gm)
    if not 0 <= index < len(layers):
        raise PassError(f"layer {index}: the model has {len(layers)} encoder layers (0-{len(layers) - 1})")
    return layers[index]


def group_by_layer(gm: GraphModule) -> tuple[list[Node], list[str], list[list[Node]]]:
    """Attention, name and nodes of each layer, parameters and size reads excluded.

    Raises:
        PassError: when the graph holds no layers.
    """
    attentions = [node for node in gm.graph.nodes if node.target is ATTENTION]
    if not attentions:
        raise PassError(f"no encoder layers: {LOOKED_FOR}; the graph has no attention node")
    calls = _layer_calls(attentions)
    where = {call: index for index, (call, _) in enumerate(calls)}
    members: list[list[Node]] = [[] for _ in calls]
    for node in gm.graph.nodes:
        index = next((where[call] for call in _module_stack(node) if call in where), None)
        if index is not None and node.op not in ("placeholder", "get_attr") and node.target is not SIZE:
            members[index].append(node)
    return attentions, [path for _, path in calls], members


def find_hidden_after(gm: GraphModule, exit_layer: int) -> tuple[Node, Node]:
    """Hidden state (B, S, D) and additive mask (B, 1, 1, S) at an off-ramp.

    Args:
        exit_layer: layers run before it; 0 is right after the embeddings.

    Raises:
        PassError: when the graph has no such layer.
    """
    layers = find_layers(gm)
    if not 0 <= exit_layer <= len(layers):
        raise PassError(f"exit_layer {exit_layer}: the model has {len(layers)} encoder layers (exits 0-{len(layers)})")
    if exit_layer == 0:
        return layers[0].input, _mask_of(layers[0])
    return layers[exit_layer - 1].output, find_mask_after(gm, layers[exit_layer - 1])


def find_mask_after(gm: GraphModule, layer: EncoderLayer) -> Node:
    """The mask in force after a layer: the one its prune hands on, else the one its attention reads."""
    prune = next((node for node in layer.nodes if node.target in PRUNES), None)
    if prune is None:
        return _mask_of(layer)
    for user in prune.users:
        if user.args[1] == 1:
            return user
    with gm.graph.inserting_after(prune):  # nothing read it yet, so it had been removed as dead
        return gm.graph.call_function(operator.getitem, (prune, 1))


def _mask_of(layer: EncoderLayer) -> Node:
    if layer.mask is None:
        raise PassError(f"layer {layer.index} has no mask: run Canonicalize first")
    return layer.mask


def find_positions_after(gm: GraphModule, exit_layer: int) -> Node | None:
    """Token positions (B, S) in force at an off-ramp, None where no layer after it reads any."""
    if not any(node.target in POSITIONAL for node in gm.graph.nodes):
        return None
    behind = find_layers(gm)[exit_layer:]
    return behind[0].positions if behind else None


def module_path(node: Node) -> str:
    """Dotted name of the innermost module that a node came from, '' when unknown."""
    stack = _module_stack(node)
    return list(stack.values())[-1] if stack else ""


def is_hidden(node: Node) -> bool:
    """Whether a node's value has the shape of a hidden state, (B, S, D) in floating point."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dim() == 3 and value.is_floating_point()


def _module_stack(node: Node) -> dict[str, str]:
    """Names of the modules that a node came from, outermost first, by call: a module called again is another call."""
    stack = node.meta.get("nn_module_stack") or {}
    return {str(call): str(path) for call, (path, _) in stack.items()}


def _layer_calls(attentions: list[Node]) -> list[tuple[str, str]]:
    """The call, and the name, of the module that is the layer of each attention.

    `bert.encoder.layer.3` in `bert.encoder.layer.3.attention.self`: a member of a numbered list. Where
    layers share one module (ALBERT), it is the outermost numbered one that is called for each layer anew.
    """
    stacks = [_module_stack(node) for node in attentions]
    split = [module_path(node).split(".") for node in attentions]
    for depth in range(min(map(len, split))):
        parts = [names[depth] for names in split]
        if all(part.isdigit() for part in parts) and [int(part) for part in parts] == list(range(len(parts))):
            paths = [".".join(names[: depth + 1]) for names in split]
            return [_find_call(stack, path) for stack, path in zip(stacks, paths, strict=True)]
    is_shared = len({tuple(names) for names in split}) < len(stacks)
    for calls in zip(*(stack.items() for stack in stacks), strict=False) if is_shared else ():
        is_numbered = all(path.rsplit(".", 1)[-1].isdigit() for _, path in calls)
        if is_numbered and len({call for call, _ in calls}) == len(stacks):
            return list(calls)
    found = sorted({".".join(names) for names in split})
    raise PassError(f"no encoder layers: {LOOKED_FOR}; attention is in {', '.join(found)}")


def _find_call(stack: dict[str, str], path: str) -> tuple[str, str]:
    call = next((call for call, name in stack.items() if name == path), None)
    if call is None:
        raise PassError(f"no encoder layers: {LOOKED_FOR}; {path} is never called as a module")
    return call, path


def _read_layer(index: int, path: str, nodes: list[Node], attention: Node) -> EncoderLayer:
    inside = set(nodes)
    entering = {arg for node in nodes for arg in node.all_input_nodes if arg not in inside and is_hidden(arg)}
    leaving = [node for node in nodes if is_hidden(node) and any(user not in inside for user in node.users)]
    if len(entering) != 1 or not leaving:
        raise PassError(
            f"layer {index} ({path}): {LOOKED_FOR}; "
            f"found {len(entering)} hidden states entering and {len(leaving)} leaving"
        )
    return EncoderLayer(
        index=index,
        path=path,
        nodes=tuple(nodes),
        input=entering.pop(),
        attention=attention,
        attention_output=_find_attention_output(index, nodes, attention),
        output=max(leaving),
    )


def _find_attention_output(index: int, nodes: list[Node], attention: Node) -> Node:
    """First hidden state after attention that all later nodes of the layer depend on alone."""
    after = [node for node in nodes if node > attention]
    for position, node in enumerate(after):
        if is_hidden(node) and _is_cut(node, after[position + 1 :], set(nodes)):
            users = list(node.users)
            # A norm reads its input alone: pruning after it keeps "add, norm" one fused kernel.
            while len(users) == 1 and users[0].target is aten.layer_norm.default:
                node = users[0]
                users = list(node.users)
            return node
    raise PassError(f"layer {index}: no hidden state separates its attention from its feed-forward part")


def _is_cut(node: Node, later: Iterable[Node], inside: set[Node]) -> bool:
    allowed = {node, *later}
    return all(
        arg in allowed or (arg not in inside and not is_hidden(arg)) for use in later for arg in use.all_input_nodes
    )
