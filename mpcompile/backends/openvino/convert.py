"""From segments to OpenVINO models. Needs torch."""

from __future__ import annotations

import itertools
import operator
import warnings
from collections.abc import Callable
from typing import Any

import openvino
import torch
from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
from torch.fx import GraphModule, Node

from mpcompile.contract.segment import Segment
from mpcompile.errors import BackendError
from mpcompile.graph.export import export_segment
from mpcompile.logs import kept_root_logger

aten = torch.ops.aten
_FAILURES = (RuntimeError, openvino.frontend.OpConversionFailure)


def convert(segment: Segment) -> openvino.Model:
    """Converts a segment to an OpenVINO model with named inputs and outputs.

    OpenVINO's own way from an exported program traces all of it once more to decompose operators, which takes twice as
    long as exporting it. The few operators of our graphs that it lacks are replaced here; where it lacks another one,
    everything is decomposed.

    Raises:
        BackendError: when OpenVINO cannot convert it.
    """
    program = export_segment(segment)
    try:
        with warnings.catch_warnings(), kept_root_logger():
            warnings.simplefilter("ignore")
            try:
                graph_module = spell_out(program.module())
                model = openvino.convert_model(TorchFXPythonDecoder(graph_module, dynamic_shapes=True))
            except _FAILURES:
                model = openvino.convert_model(program)
    except _FAILURES as error:
        raise BackendError(f"segment {segment.index}: OpenVINO could not convert it: {error}") from error
    number_operations(model)
    # Ports keep the program's order; the names that the converter gives them are its own.
    for port, name in zip(model.inputs, segment.input_names, strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(model.outputs, segment.output_names, strict=True):
        port.get_tensor().set_names({name})
    return model


def spell_out(graph_module: GraphModule) -> GraphModule:
    """Replaces the operators that OpenVINO has no conversion for, in place.

    Before:
        y: "f32[B, S, D]" = layer_norm(x, [D], weight, bias, eps)
        z: "f32[B, D]" = flatten(y, 1)
    After:
        normed = native_layer_norm(x, [D], weight, bias, eps)
        y: "f32[B, S, D]" = normed[0]
        z: "f32[B, D]" = reshape(y, [sym_size(y, 0), -1])

    Raises:
        RuntimeError: for chunks whose size is not a number.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        replace = _REPLACEMENTS.get(node.target)
        if replace is not None:
            with graph.inserting_before(node):
                new = replace(node)
            new.meta.setdefault("val", node.meta["val"])
            node.replace_all_uses_with(new)
            graph.erase_node(node)
    graph_module.recompile()
    return graph_module


def _replace_layer_norm(node: Node) -> Node:
    graph, names = node.graph, ("input", "normalized_shape", "weight", "bias", "eps")
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    values = (*(given.get(name) for name in names[:4]), given.get("eps", 1e-5))
    normed = graph.call_function(aten.native_layer_norm.default, values)
    normed.meta["val"] = (node.meta["val"],) * 3
    return graph.call_function(operator.getitem, (normed, 0))


def _replace_flatten(node: Node) -> Node:
    source, rank = _source(node), _source(node).meta["val"].dim()
    given: tuple[Any, ...] = node.args[1:]
    start, end = (value % rank for value in (*given, *(0, -1)[len(given) :]))
    before, after = [_size(source, i) for i in range(start)], [_size(source, i) for i in range(end + 1, rank)]
    return node.graph.call_function(aten.view.default, (source, [*before, -1, *after]))


def _replace_expand_as(node: Node) -> Node:
    other = node.args[1]
    assert isinstance(other, Node)
    sizes = [_size(other, i) for i in range(other.meta["val"].dim())]
    return node.graph.call_function(aten.expand.default, (node.args[0], sizes))


def _replace_reshape(node: Node) -> Node:
    return node.graph.call_function(aten.view.default, node.args)


def _replace_softmax(node: Node) -> Node:
    return node.graph.call_function(aten._softmax.default, (node.args[0], node.args[1], False))


def _replace_log_softmax(node: Node) -> Node:
    return node.graph.call_function(aten._log_softmax.default, (node.args[0], node.args[1], False))


def _replace_square(node: Node) -> Node:
    return node.graph.call_function(aten.mul.Tensor, (node.args[0], node.args[0]))


def _replace_and(node: Node) -> Node:
    return node.graph.call_function(aten.bitwise_and.Tensor, node.args)


def _replace_or(node: Node) -> Node:
    return node.graph.call_function(aten.bitwise_or.Tensor, node.args)


def _replace_matmul(node: Node) -> Node:
    """OpenVINO's bmm multiplies the last two dimensions of tensors of any rank."""
    return node.graph.call_function(aten.bmm.default, node.args)


def _replace_unbind(node: Node) -> Node:
    source = _source(node)
    dimension = node.args[1] if len(node.args) > 1 else 0
    return _read_parts(node, lambda index: (aten.select.int, (source, dimension, index)))


def _replace_chunk(node: Node) -> Node:
    source = _source(node)
    dimension = node.args[2] if len(node.args) > 2 else 0
    sizes = [value.shape[dimension] for value in node.meta["val"]]
    if not all(isinstance(size, int) for size in sizes):
        raise RuntimeError(f"{node}: chunks of sizes {sizes}")
    ends = list(itertools.accumulate(sizes, initial=0))
    return _read_parts(node, lambda index: (aten.slice.Tensor, (source, dimension, *ends[index : index + 2])))


def _read_parts(node: Node, read: Callable[[int], tuple[Any, tuple[Any, ...]]]) -> Node:
    """Reads each part of a list of tensors where it is used, in place of the list; `read` gives a call by index."""
    for user in list(node.users):
        index = user.args[1]
        assert user.target is operator.getitem
        assert isinstance(index, int)
        with node.graph.inserting_before(user):
            part = node.graph.call_function(*read(index))
        part.meta["val"] = user.meta["val"]
        user.replace_all_uses_with(part)
        node.graph.erase_node(user)
    return _source(node)


def _replace_cast(node: Node) -> Node:
    return node.graph.call_function(aten._to_copy.default, (node.args[0],), {"dtype": node.meta["val"].dtype})


def _replace_where(node: Node) -> Node:
    """Numbers become tensors without dimensions."""
    graph, (condition, *branches) = node.graph, node.args
    value = node.meta["val"]

    def to_node(branch: Any) -> Node:
        if isinstance(branch, Node):
            return branch
        number = graph.call_function(aten.full.default, ([], branch), {"dtype": value.dtype})
        number.meta["val"] = value.new_empty(())
        return number

    return graph.call_function(aten.where.self, (condition, *map(to_node, branches)))


def _source(node: Node) -> Node:
    """The tensor that a node reads first."""
    assert isinstance(node.args[0], Node)
    return node.args[0]


def _size(node: Node, dimension: int) -> Node:
    """A size of a tensor, as a node."""
    size = node.graph.call_function(aten.sym_size.int, (node, dimension))
    size.meta["val"] = node.meta["val"].shape[dimension]
    return size


_REPLACEMENTS: dict[object, Callable[[Node], Node]] = {
    aten.layer_norm.default: _replace_layer_norm,
    aten.flatten.using_ints: _replace_flatten,
    aten.expand_as.default: _replace_expand_as,
    aten.reshape.default: _replace_reshape,
    aten.softmax.int: _replace_softmax,
    aten.contiguous.default: _source,
    aten.log_softmax.int: _replace_log_softmax,
    aten.square.default: _replace_square,
    aten.to.dtype: _replace_cast,
    aten.to.dtype_layout: _replace_cast,
    aten.__and__.Tensor: _replace_and,
    aten.__or__.Tensor: _replace_or,
    aten.matmul.default: _replace_matmul,
    aten.unbind.int: _replace_unbind,
    aten.chunk.default: _replace_chunk,
    aten.type_as.default: _replace_cast,
    aten.where.Scalar: _replace_where,
    aten.where.ScalarOther: _replace_where,
    aten.where.ScalarSelf: _replace_where,
}
"""What to put in the place of an operator that OpenVINO 2026.4 has no conversion for."""


def number_operations(model: openvino.Model) -> None:
    """Names operations by their order.

    The converter numbers what it makes through the life of the process: one segment would give many plans.
    """
    model.set_friendly_name("segment")
    for position, operation in enumerate(model.get_ordered_ops()):
        operation.set_friendly_name(f"{operation.get_type_name()}_{position}")
