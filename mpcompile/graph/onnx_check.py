"""Checks ONNX segments against their graphs: ONNX Runtime on the CPU against torch, over a profile's corners.

ONNX Runtime has too few kernels for bf16: there the model is read as if each bf16 in it were an f32. Weights are the
rounded ones, and every node, cast and size is looked at; how the device rounds in between is not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from mpcompile.contract.inputs import LayerSetting, fill_inputs, name_output
from mpcompile.contract.profile import OptimizationProfile
from mpcompile.contract.segment import Segment
from mpcompile.errors import BackendError
from mpcompile.graph.lowering import DTYPES, lower
from passes.ops import MASKED

TOLERANCES = {"f32": 1e-4, "f16": 2e-2, "bf16": 8e-2}
"""Largest difference of an example's output, see `_compare`: products have 11 bits in f16, and 8 in bf16."""


class OnnxEngine:
    """Runs an ONNX segment on the CPU, in f32 where it is in bf16; slow in f16, most of which is computed in f32."""

    def __init__(self, segment: Segment, model: bytes) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendError("onnxruntime is not installed; pip install 'mpcompile[onnx]'") from error
        if segment.precision == "bf16":
            model = _widen(model)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._names = segment.output_names

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        values = self._session.run([name_output(name) for name in self._names], dict(inputs))
        return dict(zip(self._names, values, strict=True))


def check_onnx(segment: Segment, model: bytes, profile: OptimizationProfile, vocab_size: int, seed: int = 0) -> float:
    """Compares outputs at every corner of a profile and returns the largest difference, see `TOLERANCES`.

    In f16 and bf16 nothing is pruned for it: two tokens that matter alike may be ranked either way.

    Args:
        segment: in f32, f16 or bf16.
        model: its ONNX model.
        profile: whose corners are tried.
        vocab_size: token ids are drawn below it.
        seed: of the inputs.

    Raises:
        BackendError: when an output differs by more than `TOLERANCES`, or the precision cannot be checked.
    """
    if segment.precision not in TOLERANCES:
        raise BackendError(f"segment {segment.index} in {segment.precision}: ONNX Runtime checks {tuple(TOLERANCES)}")
    engine, lowered = OnnxEngine(segment, model), lower(segment)
    assert lowered.graph_module is not None
    rng, worst = np.random.default_rng(seed), 0.0
    for inputs in corner_inputs(segment, profile, vocab_size, rng):
        found = engine(inputs)
        with torch.no_grad():
            given = {name: torch.from_numpy(value) for name, value in inputs.items()}
            if "hidden" in given:
                given["hidden"] = given["hidden"].to(DTYPES[segment.precision])
            expected = lowered.graph_module(**given)
        for name, value in found.items():
            difference = _compare(value, expected[name].double().numpy())
            worst = max(worst, difference)
            if not difference <= TOLERANCES[segment.precision]:
                sizes = {key: array.shape for key, array in inputs.items()}
                raise BackendError(
                    f"segment {segment.index} in {segment.precision}: {name} of the ONNX model differs from the graph "
                    f"by {difference:.2g} at {sizes}; at most {TOLERANCES[segment.precision]} is expected. This is a "
                    "bug of mpcompile or of torch.onnx: please report it"
                )
    return worst


def _compare(value: np.ndarray, truth: np.ndarray) -> float:
    """Length of the difference over that of the truth, at least 1, of the example that differs most.

    The largest of many single values says little: among half a million, one is far off where nothing is wrong.
    """
    error, size = (array.reshape(len(truth), -1) for array in (value - truth, truth))
    return float((np.linalg.norm(error, axis=1) / np.maximum(np.linalg.norm(size, axis=1), 1.0)).max())


def _widen(model: bytes) -> bytes:
    """An ONNX model with f32 in the place of every bf16."""
    import onnx

    proto = onnx.load_from_string(model)
    narrow, wide = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    graph = proto.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == narrow:
            value.type.tensor_type.elem_type = wide
    tensors = [*graph.initializer, *(a.t for node in graph.node for a in node.attribute if a.HasField("t"))]
    for tensor in tensors:
        if tensor.data_type == narrow:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == narrow:
                attribute.i = wide
    widened: bytes = proto.SerializeToString()
    return widened


def corner_inputs(
    segment: Segment, profile: OptimizationProfile, vocab_size: int, rng: np.random.Generator
) -> Iterator[dict[str, np.ndarray]]:
    """Inputs at the smallest and largest sizes: survivors, tokens, tokens kept.

    One example more than survive was in the buffers, and one token more than the longest survivor has.
    """
    batch_sizes, lengths = ({sizes.min, sizes.max} for sizes in (profile.batch_size, profile.seq_len))
    shares = (0.0, 0.5, 1.0) if segment.precision == "f32" and segment.prune_layers else (1.0,)
    for survivors, longest, share in itertools.product(sorted(batch_sizes), sorted(lengths), shares):
        yield draw_inputs(segment, survivors, longest, share, vocab_size, rng)


def draw_inputs(
    segment: Segment, survivors: int, longest: int, keep_ratio: float, vocab_size: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Random inputs of a segment: texts of all lengths up to the longest, padded on the right."""
    enters = "rows" in segment.input_names
    batch_size, seq_len = survivors + enters, longest + enters
    length = rng.integers(1, longest + 1, batch_size)
    length[0] = longest
    real = np.arange(seq_len) < length[:, None]
    hidden = rng.standard_normal((batch_size, seq_len, segment.hidden_size))
    dtype = np.float16 if segment.precision == "f16" else np.float32
    given = {
        "input_ids": rng.integers(0, vocab_size, (batch_size, seq_len)),
        "attention_mask": real.astype(np.int64),
        "token_type_ids": np.zeros((batch_size, seq_len), np.int64),
        "hidden": hidden.astype(dtype),
        "mask": np.where(real, 0.0, MASKED).astype(np.float32)[:, None, None, :],
        "token_positions": np.tile(np.arange(seq_len), (batch_size, 1)),
        "rows": np.arange(survivors)[::-1].copy(),
        "positions": np.arange(longest),
    }
    left = length[given["rows"]] if enters else length
    for layer in segment.prune_layers:
        left = np.maximum(np.ceil(keep_ratio * left).astype(np.int64), 1)
        given |= fill_inputs(segment.input_names, LayerSetting(layer, left, int(left.max())))
    return {name: given[name] for name in segment.input_names}
