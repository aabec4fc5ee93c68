"""Tests of Torch-TensorRT as a builder: what it is handed and what is refused, on a stand-in that builds nothing."""

import sys
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mpcompile.backends import find_backend
from mpcompile.backends.tensorrt import torch_builder
from mpcompile.backends.tensorrt.torch_builder import build_with_torch_tensorrt, find_reason_against
from mpcompile.contract.profile import OptimizationProfile, Range
from mpcompile.contract.segment import Segment
from mpcompile.errors import BackendError
from mpcompile.graph.segments import partition
from tests.models import build_head, captured_model

PROFILE = OptimizationProfile(Range(1, 2, 16), Range(2, 8, 24))


def cut(prunes: tuple[int, ...] = (), precision: str = "f16") -> tuple[Segment, ...]:
    return partition(captured_model("bert"), {1: build_head(1)}, prunes, precision=precision)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., bytes]], None]:
    """Puts a module in the place of torch_tensorrt."""

    def put(convert: Callable[..., bytes]) -> None:
        dynamo = SimpleNamespace(convert_exported_program_to_serialized_trt_engine=convert)
        module = SimpleNamespace(dynamo=dynamo, Input=lambda **given: SimpleNamespace(**given))
        monkeypatch.setitem(sys.modules, "torch_tensorrt", module)
        monkeypatch.setattr(torch_builder, "describe_torch_tensorrt", lambda: "torch_tensorrt 2.14.0")

    return put


def test_builder_is_handed_the_segment_its_profile_and_our_names(install: Callable[..., None]) -> None:
    handed: dict[str, Any] = {}

    def convert(
        program: torch.export.ExportedProgram,
        *,
        arg_inputs: tuple[()],
        kwarg_inputs: Mapping[str, Any],
        kwarg_input_binding_names: Mapping[str, str],
        output_binding_names: Mapping[str, str],
    ) -> bytes:
        handed.update(program=program, inputs=kwarg_inputs, outputs=output_binding_names)
        assert arg_inputs == () and list(kwarg_input_binding_names) == list(kwarg_inputs)
        return b"plan"

    install(convert)
    segment = cut()[1]
    assert build_with_torch_tensorrt(segment, PROFILE) == b"plan"
    hidden = handed["inputs"]["hidden"]
    assert (hidden.min_shape, hidden.max_shape, hidden.dtype) == ((1, 2, 32), (16, 24, 32), torch.float16)
    assert tuple(handed["inputs"]) == segment.input_names and handed["outputs"] == {"logits": "logits"}
    kinds = {node.target for node in handed["program"].graph.nodes}
    assert torch.ops.aten.scaled_dot_product_attention.default not in kinds


def test_layer_that_prunes_is_refused_with_the_reason() -> None:
    reason = find_reason_against(cut(prunes=(0, 2))[1])
    assert (
        reason is not None and "prunes in layer 2, where Torch-TensorRT splits" in reason and "builder='onnx'" in reason
    )
    assert find_reason_against(cut()[1]) is None
    with pytest.raises(BackendError, match="segment 1: it prunes in layer 2"):
        build_with_torch_tensorrt(cut(prunes=(0, 2))[1], PROFILE)


def test_version_that_names_outputs_itself_is_refused(install: Callable[..., None]) -> None:
    install(lambda program, *, kwarg_inputs: b"plan")
    with pytest.raises(BackendError, match=r"torch_tensorrt 2\.14\.0 lacks .*output_binding_names.*2\.14 or later"):
        build_with_torch_tensorrt(cut()[0], PROFILE)


def test_failed_build_says_what_torch_tensorrt_said(install: Callable[..., None]) -> None:
    def convert(
        program: object,
        kwarg_inputs: object,
        kwarg_input_binding_names: object,
        output_binding_names: object,
        **_: object,
    ) -> bytes:
        raise TypeError("no converter")

    install(convert)
    with pytest.raises(BackendError, match="segment 0: Torch-TensorRT could not build it: no converter"):
        build_with_torch_tensorrt(cut()[0], PROFILE)


def test_missing_torch_tensorrt_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(BackendError, match=r"builder 'torch_tensorrt': it cannot be imported .*builder='onnx'"):
        build_with_torch_tensorrt(cut()[0], PROFILE)


@pytest.mark.parametrize(
    ("backend", "builder", "message"),
    [
        ("tensorrt", "trtexec", "builder 'trtexec': expected 'auto', 'onnx', 'torch_tensorrt'"),
        ("openvino", "torch_tensorrt", "backend 'openvino' has none to choose; pass backend='tensorrt'"),
    ],
)
def test_builder_that_does_not_fit_is_refused(backend: str, builder: str, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        find_backend(backend, builder=builder)
