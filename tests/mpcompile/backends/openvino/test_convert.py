"""Tests of the way from a segment to an OpenVINO model."""

import logging

import numpy as np
import pytest

pytest.importorskip("openvino")

import openvino

from mpcompile.backends.openvino import convert as converting
from mpcompile.graph.export import export_segment
from mpcompile.graph.onnx_check import draw_inputs
from mpcompile.graph.segments import partition
from tests.models import build_head, captured_model


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta", "mpnet", "modernbert"])
@pytest.mark.parametrize("selection", ["top", "threshold"])
def test_operators_that_openvino_lacks_are_replaced_without_a_second_trace(
    family: str, selection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("decomposed")

    monkeypatch.setattr("torch.export.ExportedProgram.run_decompositions", refuse)
    segment = partition(captured_model(family), {1: build_head(1)}, (0, 2), selection=selection)[0]
    assert len(converting.convert(segment).outputs) == len(segment.output_names)


def test_answers_are_those_of_openvino_s_own_way() -> None:
    segment = partition(captured_model("bert"), {1: build_head(1)}, (0, 2))[0]
    inputs = draw_inputs(segment, 3, 9, 0.5, 30, np.random.default_rng(0))
    ours, theirs = (
        openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(
            [inputs[n] for n in segment.input_names]
        )
        for model in (converting.convert(segment), openvino.convert_model(export_segment(segment)))
    )
    for i in range(len(segment.output_names)):
        np.testing.assert_allclose(ours[i], theirs[i], atol=1e-6)


def test_what_cannot_be_replaced_is_decomposed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converting, "_REPLACEMENTS", {})
    segment, level = partition(captured_model("bert"), {})[0], logging.getLogger().level
    assert len(converting.convert(segment).outputs) == 1
    assert logging.getLogger().level == level
