"""Segments as ONNX: named sizes, casts in the graph, nothing in it that depends on data."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from mpcompile.contract.inputs import name_output, size_names
from mpcompile.contract.segment import Segment
from mpcompile.errors import BackendError
from mpcompile.graph.export import export_segment
from mpcompile.graph.lowering import DTYPES, lower

if TYPE_CHECKING:
    import onnx

OPSET = 18
"""Of ONNX: a layer norm is one operator from 17 on."""


def export_onnx(segment: Segment) -> bytes:
    """A segment in its precision as a serialised ONNX model; every size is dynamic and has a name, see `size_names`.

    Raises:
        BackendError: when onnx is not installed, the precision is not a float's, tokens are pruned by a threshold (what
            is kept then depends on data), or the exporter fails.
    """
    if segment.precision not in DTYPES:
        raise BackendError(
            f"segment {segment.index} in {segment.precision}: expected {', '.join(DTYPES)} to write it as ONNX"
        )
    if segment.prunes_by_threshold:
        raise BackendError(
            f"segment {segment.index} prunes by threshold: how many tokens are kept depends on them, which an engine "
            "would stop for; use selection='top'"
        )
    program = export_segment(lower(segment, spells_out_attention=True), DTYPES[segment.precision])
    try:
        with _quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(segment.input_names),
                output_names=[name_output(name) for name in segment.output_names],
                optimize=True,
                verbose=False,
            )
    except ImportError as error:
        raise BackendError("onnx and onnxscript are not installed; pip install 'mpcompile[onnx]'") from error
    except torch.onnx.errors.OnnxExporterError as error:
        raise BackendError(f"segment {segment.index}: torch.onnx failed: {error}") from error
    assert exported is not None
    model: onnx.ModelProto = exported.model_proto
    _name_sizes(model, segment)
    _strip(model)
    serialised: bytes = model.SerializeToString()
    return serialised


def _name_sizes(model: onnx.ModelProto, segment: Segment) -> None:
    """Gives sizes their names in place of the exporter's."""
    names: dict[str, str] = {}
    for value in model.graph.input:
        for dim, size in size_names(value.name).items():
            if segment.index == 0 and size == "rows":
                size = "batch"  # no example left before the first segment
            names.setdefault(value.type.tensor_type.shape.dim[dim].dim_param, size)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = names.get(dimension.dim_param, dimension.dim_param)


def _strip(model: onnx.ModelProto) -> None:
    """Drops what the exporter notes about where a node came from: paths of this machine, larger than a small model."""
    for item in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's warnings about libraries that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
