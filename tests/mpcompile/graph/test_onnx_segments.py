"""Tests of segments as ONNX: they answer as the graphs do, in every precision, at every corner of a profile."""

import functools

import numpy as np
import onnx
import pytest
import torch
from transformers import PreTrainedModel

from mpcompile.backends.torch.eager import EagerEngine
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.profile import OptimizationProfile, Range
from mpcompile.contract.segment import Segment
from mpcompile.errors import BackendError
from mpcompile.graph.capture import CapturedModel, capture
from mpcompile.graph.onnx_check import OnnxEngine, check_onnx, corner_inputs
from mpcompile.graph.onnx_segments import export_onnx
from mpcompile.graph.segments import partition
from mpcompile.runtime.runtime import Runtime
from tests.models import NUM_LABELS, VOCAB_SIZE, build_head, build_model, captured_model, family_model, random_batch

PROFILE = OptimizationProfile(Range(1, 2, 5), Range(2, 8, 24))
LENGTHS = [12, 5, 1, 9]


@functools.cache
def export(precision: str, index: int) -> tuple[Segment, bytes]:
    """A segment of the chain that most tests look at; exporting it takes seconds."""
    segment = cut(captured_model("bert"), precision)[index]
    return segment, export_onnx(segment)


def cut(captured: CapturedModel, precision: str = "f32") -> tuple[Segment, ...]:
    """An exit after layer 1, prunes in layers 0 and 2."""
    return partition(captured, {1: build_head(1)}, (0, 2), precision=precision)


@pytest.mark.parametrize(("precision", "largest"), [("f32", 1e-5), ("f16", 1e-2), ("bf16", 8e-2)])
@pytest.mark.parametrize("index", [0, 1])
def test_segment_answers_as_its_graph_at_the_corners(index: int, precision: str, largest: float) -> None:
    segment, model = export(precision, index)
    assert check_onnx(segment, model, PROFILE, VOCAB_SIZE) < largest


def test_model_in_bf16_that_answers_otherwise_is_refused(tiny_bert: PreTrainedModel) -> None:
    torch.manual_seed(3)
    other = cut(capture(type(tiny_bert)(tiny_bert.config).eval()), "bf16")[0]
    with pytest.raises(BackendError, match="differs from the graph by"):
        check_onnx(other, export("bf16", 0)[1], PROFILE, VOCAB_SIZE)


@pytest.mark.parametrize(
    ("family", "exit_layers"),
    [("albert", ()), ("mpnet", (1,)), ("modernbert", (1,)), ("deberta", (1,)), ("distilbert", ())],
)
def test_other_families_answer_as_their_graphs(family: str, exit_layers: tuple[int, ...]) -> None:
    """Those with positions inside attention hand them on to a second segment."""
    captured = capture(build_model(family, num_layers=1 + len(exit_layers)))
    for segment in partition(captured, {layer: build_head(layer) for layer in exit_layers}, (len(exit_layers),)):
        assert check_onnx(segment, export_onnx(segment), PROFILE, VOCAB_SIZE) < 1e-4


def test_chain_of_onnx_segments_answers_as_the_eager_chain() -> None:
    segments, models = zip(*(export("f32", index) for index in range(2)), strict=True)
    point = OperatingPoint((1, 3), (0.99,), (0, 2), (0.7, 0.5))
    engines = [OnnxEngine(segment, model) for segment, model in zip(segments, models, strict=True)]
    inputs = {name: value.numpy() for name, value in random_batch(family_model("bert"), LENGTHS).items()}
    found = Runtime(segments, engines, NUM_LABELS, (8.0, 8.0)).run(inputs, point)
    expected = Runtime(segments, [EagerEngine(s) for s in segments], NUM_LABELS, (8.0, 8.0)).run(inputs, point)
    np.testing.assert_array_equal(found.exit_layer, expected.exit_layer)
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)


def test_sizes_have_names() -> None:
    model = onnx.load_from_string(export("f32", 1)[1])
    sizes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in model.graph.input
    }
    assert sizes["hidden"] == ["batch", "seq_len", 32] and sizes["mask"] == ["batch", 1, 1, "seq_len"]
    assert sizes["num_kept_2"] == sizes["rows"] == ["rows"] and sizes["slots_2"] == ["kept_2"]


def test_inputs_and_outputs_share_no_name(captured: CapturedModel) -> None:
    segment = partition(captured, {1: build_head(1), 2: build_head(2)})[1]
    model = onnx.load_from_string(export_onnx(segment))
    assert {value.name for value in model.graph.output} == {"next_hidden", "next_mask", "logits", "entropy"}


def test_half_precision_hands_on_half_and_keeps_norms_and_softmax_in_f32() -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(export("f16", 1)[1]))
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    kinds = {kind: {types[node.output[0]] for node in model.graph.node if node.op_type == kind}
             for kind in ("MatMul", "Softmax", "LayerNormalization")}  # fmt: skip
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert kinds == {"MatMul": {half}, "Softmax": {full}, "LayerNormalization": {full}}
    assert types["hidden"] == half and types["mask"] == types["logits"] == full


def test_weights_are_stored_once_and_in_the_precision() -> None:
    full, half = (onnx.load_from_string(export(precision, 0)[1]) for precision in ("f32", "f16"))
    full_bytes, half_bytes = (sum(len(w.raw_data) for w in m.graph.initializer if w.dims) for m in (full, half))
    head_bytes = sum(4 * p.numel() for p in build_head(1).parameters())
    assert half_bytes - head_bytes == pytest.approx((full_bytes - head_bytes) / 2, rel=0.05)


def test_model_holds_no_path_of_this_machine() -> None:
    assert b"site-packages" not in export("f32", 0)[1]


def test_nothing_in_a_segment_depends_on_data() -> None:
    models = [onnx.load_from_string(export("f32", index)[1]) for index in range(2)]
    kinds = {node.op_type for model in models for node in model.graph.node}
    assert kinds.isdisjoint({"NonZero", "If", "Loop", "Compress", "Unique", "ScatterND"})


def test_model_that_answers_otherwise_is_refused(tiny_bert: PreTrainedModel) -> None:
    torch.manual_seed(3)
    other = cut(capture(type(tiny_bert)(tiny_bert.config).eval()))[0]
    with pytest.raises(BackendError, match="differs from the graph by"):
        check_onnx(other, export("f32", 0)[1], PROFILE, VOCAB_SIZE)


def test_threshold_pruning_is_refused_with_a_reason(captured: CapturedModel) -> None:
    segment = partition(captured, {}, (1,), selection="threshold")[0]
    with pytest.raises(BackendError, match="depends on them"):
        export_onnx(segment)


def test_int8_is_refused(captured: CapturedModel) -> None:
    with pytest.raises(BackendError, match="int8: expected f32, f16, bf16"):
        export_onnx(cut(captured, "int8")[0])


def test_corners_hold_one_more_than_survives(captured: CapturedModel) -> None:
    corners = list(corner_inputs(cut(captured)[1], PROFILE, VOCAB_SIZE, np.random.default_rng(0)))
    assert len(corners) == 2 * 2 * 3
    assert {(len(c["rows"]), c["hidden"].shape[:2]) for c in corners} == {
        (1, (2, 3)),
        (1, (2, 25)),
        (5, (6, 3)),
        (5, (6, 25)),
    }
