"""Canonicalize: from what torch.export gives to the form that the other passes expect."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.graph import CodeGen

from passes.encoder import SIZE, EncoderLayer, aten, find_layers
from passes.ops import additive_mask
from passes.pass_base import Pass, PassError
from passes.verify import verify

_CHECKS = (aten._assert_tensor_metadata.default, aten.sym_constrain_range_for_size.default)


class Canonicalize(Pass):
    """Gives the graph one additive mask, sizes read from the hidden state, and named outputs.

    Before:
        _guards_fn(input_ids, attention_mask)
        S: "Sym" = sym_size(attention_mask, 1)
        allowed: "b8[B, 1, S, S]" = ...                       # built from attention_mask
        q: "f32[B, H, S, D/H]" = view(linear(h), [B, S, H, D/H]).transpose(1, 2)
        a: "f32[B, H, S, D/H]" = scaled_dot_product_attention(q, k, v, allowed)
        return (logits,)
    After:
        mask: "f32[B, 1, 1, S]" = additive_mask(attention_mask)
        S: "Sym" = sym_size(h, 1)                             # of the layer's own input
        q: "f32[B, H, S, D/H]" = view(linear(h), [B, S, H, D/H]).transpose(1, 2)
        a: "f32[B, H, S, D/H]" = scaled_dot_product_attention(q, k, v, mask)
        return {"logits": logits}

    Raises:
        PassError: when attention is masked by anything but padding (causal, windowed, biased
            attention), or is not the plain softmax of an encoder in evaluation mode.
    """

    name: ClassVar[str] = "Canonicalize"

    def run(self, gm: GraphModule) -> bool:
        gm.graph.set_codegen(CodeGen())
        gm._forward_pre_hooks.clear()  # torch.export's checks of its own signature
        _remove_checks(gm)
        _remove_dropout(gm)
        _name_outputs(gm)
        layers = find_layers(gm)
        _check_attention(layers)
        _replace_masks(gm, layers)
        _localise_sizes(gm, layers)
        return True

    def ensures(self, gm: GraphModule) -> None:
        verify(gm)


def _remove_checks(gm: GraphModule) -> None:
    for node in list(gm.graph.nodes):
        if node.op == "call_module" or node.target in _CHECKS:
            if node.users:
                raise PassError(f"{node.target}: a call of a module was left in the exported graph")
            gm.graph.erase_node(node)


def _remove_dropout(gm: GraphModule) -> None:
    for node in list(gm.graph.nodes):
        if node.target is aten.dropout.default:
            source, _, training = node.args
            if training:
                raise PassError("the graph was exported in training mode: call model.eval() first")
            node.replace_all_uses_with(source)
            gm.graph.erase_node(node)


def _name_outputs(gm: GraphModule) -> None:
    output = gm.graph.output_node()
    values = output.all_input_nodes
    if len(values) != 1:
        raise PassError(f"the graph returns {len(values)} values, expected the logits alone")
    output.args = ({"logits": values[0]},)


def _check_attention(layers: tuple[EncoderLayer, ...]) -> None:
    for layer in layers:
        node = layer.attention
        dropout = node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)
        causal = node.args[5] if len(node.args) > 5 else node.kwargs.get("is_causal", False)
        if causal or dropout or node.kwargs.get("enable_gqa", False):
            raise PassError(
                f"layer {layer.index}: attention has is_causal={causal}, dropout_p={dropout}, "
                f"enable_gqa={node.kwargs.get('enable_gqa', False)}; expected a plain encoder's False, 0.0, False"
            )


def _replace_masks(gm: GraphModule, layers: tuple[EncoderLayer, ...]) -> None:
    source = next(
        (node for node in gm.graph.nodes if node.op == "placeholder" and node.target == "attention_mask"), None
    )
    if source is None:
        raise PassError("the graph has no input named attention_mask")
    masks = {layer.mask for layer in layers if layer.mask is not None}
    for mask in masks:
        _check_is_padding_mask(gm, mask)
    with gm.graph.inserting_before(min(layers[0].nodes)):
        mask = gm.graph.call_function(additive_mask, (source,))
    mask.meta["val"] = source.meta["val"][:, None, None, :].float()
    for layer in layers:
        layer.attention.args = (*layer.attention.args[:3], mask)


def _check_is_padding_mask(gm: GraphModule, mask: Node) -> None:
    """Evaluates the mask that the model builds and compares it with "every row sees every token"."""
    source = next(node for node in gm.graph.nodes if node.target == "attention_mask")
    size = source.meta["val"].shape[1].node
    longest = int(size.shape_env.bound_sympy(size.expr).upper)  # a window shows on the longest text alone
    sample = (torch.arange(longest) < torch.tensor([longest, longest // 2 + 1, 2])[:, None]).long()
    inputs = [
        sample if node.target == "attention_mask" else torch.ones_like(sample)
        for node in gm.graph.nodes
        if node.op == "placeholder"
    ]
    value = _Until(gm, mask).run_until(*inputs)
    allowed = value if value.dtype == torch.bool else value > -1.0
    exact = value.dtype == torch.bool or bool((value[allowed] == 0).all())
    if not exact or not torch.equal(allowed, (sample != 0)[:, None, None, :].expand_as(allowed)):
        raise PassError(
            "attention is masked by more than padding (causal, windowed or biased attention); "
            "expected every token to see every real token"
        )


class _Until(Interpreter):
    """Runs a graph up to one node and returns its value."""

    def __init__(self, gm: GraphModule, last: Node) -> None:
        super().__init__(gm)
        self._last = last

    def run_until(self, *inputs: torch.Tensor) -> torch.Tensor:
        self.args_iter = iter(inputs)
        for node in self.graph.nodes:
            self.env[node] = self.run_node(node)
            if node is self._last:
                break
        result: torch.Tensor = self.env[self._last]
        return result


def _localise_sizes(gm: GraphModule, layers: tuple[EncoderLayer, ...]) -> None:
    """Makes each layer, and what follows the last, read batch and length from its own hidden state."""
    for layer in layers:
        _read_sizes_from(gm, layer.nodes, layer.input)
    tail = list(gm.graph.nodes)
    _read_sizes_from(gm, tuple(tail[tail.index(layers[-1].output) + 1 :]), layers[-1].output)


def _read_sizes_from(gm: GraphModule, nodes: tuple[Node, ...], hidden: Node) -> None:
    local: dict[object, Node] = {}
    for node in nodes:
        for size in [arg for arg in node.all_input_nodes if arg.target is SIZE and arg.args[0] is not hidden]:
            dim = size.args[1]
            if dim not in local:
                with gm.graph.inserting_after(hidden):
                    local[dim] = gm.graph.call_function(SIZE, (hidden, dim))
                local[dim].meta["val"] = size.meta["val"]
            node.replace_input_with(size, local[dim])
