"""Where the encoder is in an exported graph: the only file that knows its structure.

Layers are found from module metadata (an attention node under `something.N.`) and from
data flow (what enters and leaves those modules), never from node names.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from passes.ops import prune_tokens
from passes.pass_base import PassError

aten = torch.ops.aten
ATTENTION = aten.scaled_dot_product_attention.default
SIZE = aten.sym_size.int

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
    def mask(self) -> Node | None:
        """The mask that its attention adds, or None."""
        mask = self.attention.args[3] if len(self.attention.args) > 3 else self.attention.kwargs.get("attn_mask")
        assert mask is None or isinstance(mask, Node)
        return mask

    @property
    def scale(self) -> float:
        """What its attention multiplies scores by; 1 / sqrt(head size) unless the graph says otherwise."""
        given = self.attention.kwargs.get("scale")
        if given is not None:
            return float(given)  # type: ignore[arg-type]
        query = self.attention.args[0]
        assert isinstance(query, Node)
        return 1.0 / math.sqrt(int(query.meta["val"].shape[-1]))


def find_layers(gm: GraphModule) -> tuple[EncoderLayer, ...]:
    """Finds the encoder's layers, first to last.

    Raises:
        PassError: when the graph holds none, or a layer has no single hidden state in and out.
    """
    attentions = [node for node in gm.graph.nodes if node.target is ATTENTION]
    if not attentions:
        raise PassError(f"no encoder layers: {LOOKED_FOR}; the graph has no attention node")
    paths = _layer_paths([module_path(node) for node in attentions])
    members: dict[str, list[Node]] = {path: [] for path in paths}
    for node in gm.graph.nodes:
        path = next((p for p in paths if f"{module_path(node)}.".startswith(f"{p}.")), None)
        if path is not None and node.op not in ("placeholder", "get_attr") and node.target is not SIZE:
            members[path].append(node)
    return tuple(
        _read_layer(index, path, members[path], attention)
        for index, (path, attention) in enumerate(zip(paths, attentions, strict=True))
    )


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
    """The mask in force behind a layer: the one its prune hands on, else the one its attention reads."""
    prune = next((node for node in layer.nodes if node.target is prune_tokens), None)
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


def module_path(node: Node) -> str:
    """Dotted name of the innermost module that a node came from, '' when unknown."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def is_hidden(node: Node) -> bool:
    """Whether a node's value has the shape of a hidden state, (B, S, D) in floating point."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dim() == 3 and value.is_floating_point()


def _layer_paths(attention_paths: list[str]) -> list[str]:
    """Cuts `bert.encoder.layer.3.attention.self` to `bert.encoder.layer.3`, for every layer."""
    split = [path.split(".") for path in attention_paths]
    for depth in range(min(map(len, split))):
        parts = [names[depth] for names in split]
        if all(part.isdigit() for part in parts) and [int(part) for part in parts] == list(range(len(parts))):
            return [".".join(names[: depth + 1]) for names in split]
    raise PassError(f"no encoder layers: {LOOKED_FOR}; attention is in {', '.join(sorted(set(attention_paths)))}")


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
