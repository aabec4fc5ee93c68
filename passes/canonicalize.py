"""Canonicalize: from what torch.export gives to the form that the other passes expect."""

from __future__ import annotations

from typing import ClassVar

from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen

from passes.carry_positions import PositionTables, carry_positions
from passes.encoder import SIZE, EncoderLayer, aten, find_layers, group_by_layer
from passes.masks import MaskReader
from passes.ops import additive_mask
from passes.outputs import set_outputs
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
    Where attention has a window or a bias, or reads angles of positions, it is (see `carry_positions`):
        token_positions: "i64[B, S]" = number_tokens(attention_mask)
        added: "f32[B, 1, S, S]" = window_mask(token_positions, mask, 64)
        added: "f32[B, H, S, S]" = biased_mask(relative_bias(token_positions, ...), mask)

    Args:
        separator_id: token between the parts of a text pair, which no prune may drop; None when there is none.

    Raises:
        PassError: when attention is masked by anything but padding and a window (causal attention), or
            is not the plain softmax of an encoder in evaluation mode.
    """

    name: ClassVar[str] = "Canonicalize"

    def __init__(self, separator_id: int | None = None) -> None:
        self.separator_id = separator_id

    def run(self, gm: GraphModule) -> bool:
        gm.graph.set_codegen(CodeGen())
        gm._forward_pre_hooks.clear()  # torch.export's checks of its own signature
        _remove_checks(gm)
        _remove_dropout(gm)
        _name_outputs(gm)
        attentions, _, members = group_by_layer(gm)
        _check_attention(attentions)
        tables = PositionTables(gm, _find_attention_mask(gm), members[0][0])
        carry_positions(gm, members, tables)
        layers = find_layers(gm)
        self._replace_masks(gm, layers, tables)
        _localise_sizes(gm, layers)
        return True

    def ensures(self, gm: GraphModule) -> None:
        verify(gm)

    def _replace_masks(self, gm: GraphModule, layers: tuple[EncoderLayer, ...], tables: PositionTables) -> None:
        source = _find_attention_mask(gm)
        arguments: tuple[Node | int, ...] = (source,)
        if self.separator_id is not None:
            input_ids = next(node for node in gm.graph.nodes if node.target == "input_ids")
            arguments = (source, input_ids, self.separator_id)
        with gm.graph.inserting_before(min(layers[0].nodes)):
            mask = gm.graph.call_function(additive_mask, arguments)
        mask.meta["val"] = source.meta["val"][:, None, None, :].float()
        reader = MaskReader(gm, mask)
        for layer in layers:
            reader.replace(layer, tables.positions() if reader.has_window(layer) else None)


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
    values = gm.graph.output_node().all_input_nodes
    if len(values) != 1:
        raise PassError(f"the graph returns {len(values)} values, expected the logits alone")
    set_outputs(gm, {"logits": values[0]})


def _check_attention(attentions: list[Node]) -> None:
    for index, node in enumerate(attentions):
        dropout = node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)
        causal = node.args[5] if len(node.args) > 5 else node.kwargs.get("is_causal", False)
        if causal or dropout or node.kwargs.get("enable_gqa", False):
            raise PassError(
                f"layer {index}: attention has is_causal={causal}, dropout_p={dropout}, "
                f"enable_gqa={node.kwargs.get('enable_gqa', False)}; expected a plain encoder's False, 0.0, False"
            )


def _find_attention_mask(gm: GraphModule) -> Node:
    found: list[Node] = [n for n in gm.graph.nodes if n.op == "placeholder" and n.target == "attention_mask"]
    if not found:
        raise PassError("the graph has no input named attention_mask")
    return found[0]


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
