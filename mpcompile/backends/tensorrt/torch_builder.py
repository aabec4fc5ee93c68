"""Builds engines with Torch-TensorRT, for users who have it. Imports it only to build.

Written against the signatures of 2.14, which names the inputs and outputs of an engine as it is told. It needs a GPU
to import, so that nothing of this was ever run. Unlike `builder`, it builds in this process, with one profile.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from typing import Any

from mpcompile.backends.tensorrt.profiles import find_shapes
from mpcompile.contract.inputs import name_output
from mpcompile.contract.profile import OptimizationProfile
from mpcompile.contract.segment import Segment
from mpcompile.errors import BackendError

BUILD_WITH_ONNX = "pass builder='onnx'"
_NEEDED = ("kwarg_inputs", "kwarg_input_binding_names", "output_binding_names")


def find_reason_against(segment: Segment) -> str | None:
    """Why Torch-TensorRT should not build a segment, or None.

    Its partitioner leaves a top-k of a symbolic k, and the sort after it, in PyTorch (a dry run of 2.13): a layer that
    prunes would become engine, PyTorch, engine.
    """
    if not segment.prune_layers:
        return None
    layers = ", ".join(map(str, segment.prune_layers))
    return (
        f"it prunes in layer {layers}, where Torch-TensorRT splits: its top-k takes no k that is known at run time "
        f"alone; {BUILD_WITH_ONNX}, or pruning=False"
    )


def describe_torch_tensorrt() -> str:
    """Name and version of the builder.

    Raises:
        BackendError: when it is not installed.
    """
    try:
        return f"torch_tensorrt {importlib.metadata.version('torch_tensorrt')}"
    except importlib.metadata.PackageNotFoundError as error:
        raise _missing(error) from error


def build_with_torch_tensorrt(segment: Segment, profile: OptimizationProfile) -> bytes:
    """A plan of a segment with its graph.

    Raises:
        BackendError: when Torch-TensorRT is missing, too old, or cannot build it.
    """
    from mpcompile.graph.export import example_inputs, export_segment
    from mpcompile.graph.lowering import DTYPES, lower

    reason = find_reason_against(segment)
    if reason is not None:
        raise BackendError(f"segment {segment.index}: {reason}")
    torch_tensorrt = _import()
    convert = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine
    lacking = [name for name in _NEEDED if name not in inspect.signature(convert).parameters]
    if lacking:
        raise BackendError(
            f"builder 'torch_tensorrt': {describe_torch_tensorrt()} lacks {', '.join(lacking)}, so that outputs could "
            f"not be told apart; 2.14 or later is expected, or {BUILD_WITH_ONNX}"
        )
    dtype = DTYPES[segment.precision]
    program = export_segment(lower(segment, spells_out_attention=True), dtype)
    examples = example_inputs(segment, dtype=dtype)
    inputs = {
        name: torch_tensorrt.Input(min_shape=low, opt_shape=best, max_shape=high, dtype=examples[name].dtype)
        for name, (low, best, high) in find_shapes(segment, profile).items()
    }
    try:
        plan = convert(
            program,
            arg_inputs=(),
            kwarg_inputs=inputs,
            kwarg_input_binding_names={name: name for name in inputs},
            output_binding_names={name: name_output(name) for name in segment.output_names},
        )
    except Exception as error:  # its own kinds, and TensorRT's and torch's
        raise BackendError(f"segment {segment.index}: Torch-TensorRT could not build it: {error}") from error
    return bytes(plan)


def _import() -> Any:
    try:
        return importlib.import_module("torch_tensorrt")
    except (ImportError, OSError, RuntimeError) as error:  # without a GPU, the last
        raise _missing(error) from error


def _missing(error: Exception) -> BackendError:
    return BackendError(
        f"builder 'torch_tensorrt': it cannot be imported ({error}); pip install torch-tensorrt on a machine with a "
        f"GPU, or {BUILD_WITH_ONNX}"
    )
