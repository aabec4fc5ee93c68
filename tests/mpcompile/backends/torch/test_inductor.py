"""Tests of the inductor backend on the CPU: the same answers, and no compilation for another size."""

import dataclasses
import shutil
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from mpcompile.backends import find_backend
from mpcompile.backends.torch.eager import EagerEngine
from mpcompile.backends.torch.inductor import Call, Capture, Captured, InductorEngine
from mpcompile.contract.backend import BuildConfig
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.segment import Segment
from mpcompile.errors import BackendError, BatchTooLarge
from mpcompile.graph.capture import capture
from mpcompile.graph.segments import partition
from mpcompile.runtime.runtime import Runtime
from tests.models import MAX_POSITIONS, NUM_LABELS, build_head, build_model, captured_model, family_model, random_batch

SPLIT = (8.0, 8.0)


@pytest.fixture(scope="module")
def segments() -> tuple[Segment, ...]:
    return partition(captured_model("bert"), {1: build_head(1)}, (0, 2))


def inputs(lengths: list[int]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in random_batch(family_model("bert"), lengths).items()}


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles C++ on a CPU, and there is no compiler")
def test_chain_answers_as_the_eager_one_and_hardly_ever_compiles() -> None:
    """Of two layers: a kernel takes its compiler a second."""
    segments = partition(capture(build_model("bert", num_layers=2)), {1: build_head(1)}, (0, 1))
    backend, point = find_backend("inductor", "cpu"), OperatingPoint((1, 2), (0.985,), (0, 1), (0.7, 0.5))
    runtime = Runtime(segments, [backend.load(b"", s, BuildConfig()) for s in segments], NUM_LABELS, SPLIT)
    eager = Runtime(segments, [EagerEngine(segment) for segment in segments], NUM_LABELS, SPLIT)
    # By sizes of one, which inductor treats apart: a whole batch, one of a batch, and one alone in each segment.
    everyone = dataclasses.replace(point, exit_thresholds=(0.0,))
    for lengths, first in (([12, 5, 7, 9], everyone), ([12], everyone), ([30, 4, 4, 4, 4], point)):
        runtime.run(inputs(lengths), first)
    compiled, layers = torch._dynamo.utils.counters["stats"]["unique_graphs"], set()
    for lengths in ([12, 5, 7, 9], [24] * 6, [17, 30, 6], [8, 8], [19], [31, 3]):
        found, expected = (r.run(inputs(lengths), point) for r in (runtime, eager))
        np.testing.assert_array_equal(found.exit_layer, expected.exit_layer)
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)
        layers |= set(found.exit_layer.tolist())
    assert layers == {1, 2}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= compiled + 1


def capture_on_paper(call: Call, inputs: Mapping[str, torch.Tensor]) -> Captured:
    """A graph without a GPU: its inputs and outputs stay where they are, as those of a real one."""
    outputs = {name: value.clone() for name, value in call(**inputs).items()}

    def replay() -> None:
        for name, value in call(**inputs).items():
            outputs[name].copy_(value)

    return Captured(inputs, outputs, replay)


def load(segments: tuple[Segment, ...], capture: Capture | None, graph_tokens: int = 200) -> Runtime:
    """A chain that is run as it is, without compiling."""
    config, device = BuildConfig(graph_tokens=graph_tokens), torch.device("cpu")
    with torch.compiler.set_stance("force_eager"):
        engines = [InductorEngine(segment, device, config, MAX_POSITIONS, capture) for segment in segments]
    return Runtime(segments, engines, NUM_LABELS, SPLIT)


def test_graphs_answer_as_the_eager_engines(segments: tuple[Segment, ...]) -> None:
    num_captured = 0

    def capture(call: Call, inputs: Mapping[str, torch.Tensor]) -> Captured:
        nonlocal num_captured
        num_captured += 1
        return capture_on_paper(call, inputs)

    runtime, point = load(segments, capture), OperatingPoint((1, 3), (0.985,), (0, 2), (0.7, 0.5))
    eager = Runtime(segments, [EagerEngine(segment) for segment in segments], NUM_LABELS, SPLIT)
    with torch.compiler.set_stance("force_eager"):
        for lengths in (
            [12, 5, 7],
            [16, 3, 9, 8],
            [3],
            [1],
            [14, 2, 2],
            [MAX_POSITIONS],
            [MAX_POSITIONS - 1],
            [30] * 9,
        ):
            found, expected = (r.run(inputs(lengths), point) for r in (runtime, eager))
            np.testing.assert_array_equal(found.exit_layer, expected.exit_layer)
            np.testing.assert_array_equal(found.tokens_kept, expected.tokens_kept)
            np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)
    assert num_captured >= 3


def test_batch_that_runs_out_of_memory_is_split_and_the_limit_is_kept(
    segments: tuple[Segment, ...], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime, point = load(segments, None), OperatingPoint((3,), (), (0, 2), (0.7, 0.5))
    whole, asked = runtime.engines[0]._call, []

    def call(**given: torch.Tensor) -> Mapping[str, torch.Tensor]:
        asked.append(len(given["input_ids"]))
        if len(given["input_ids"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(**given)

    eager = Runtime(segments, [EagerEngine(segment) for segment in segments], NUM_LABELS, SPLIT)
    monkeypatch.setattr(runtime.engines[0], "_call", call)
    with torch.compiler.set_stance("force_eager"):
        found, again = (runtime.run(inputs([9] * 8), point) for _ in range(2))
    assert asked == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    for result in (found, again):
        np.testing.assert_allclose(result.logits, eager.run(inputs([9] * 8), point).logits, atol=1e-5)
    assert any("too little GPU memory for a batch of 8 with 9 tokens each" in r.message for r in caplog.records)


def test_limit_of_short_texts_does_not_refuse_a_long_one(
    segments: tuple[Segment, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, point = load(segments, None), OperatingPoint((3,), (), (0, 2), (0.7, 0.5))
    whole = runtime.engines[0]._call

    def call(**given: torch.Tensor) -> Mapping[str, torch.Tensor]:
        if len(given["input_ids"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(**given)

    monkeypatch.setattr(runtime.engines[0], "_call", call)
    with torch.compiler.set_stance("force_eager"):
        for lengths in ([4, 4], [30], [30, 30]):
            assert (runtime.run(inputs(lengths), point).exit_layer == 3).all()


def test_example_that_does_not_fit_alone_is_an_error(
    segments: tuple[Segment, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(**given: torch.Tensor) -> Mapping[str, torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    runtime = load(segments, None)
    monkeypatch.setattr(runtime.engines[0], "_call", call)
    with pytest.raises(BatchTooLarge, match="too little GPU memory for a batch of 1 with 9 tokens"):
        runtime.run(inputs([9, 9]), OperatingPoint((3,)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_is_not_there_is_no_silent_cpu() -> None:
    with pytest.raises(BackendError, match="device 'cuda': torch sees no GPU here"):
        find_backend("inductor", "cuda")


@pytest.mark.parametrize(("name", "device"), [("openvino", "cuda"), ("auto", "cuda"), ("tensorrt", "cpu")])
def test_backend_on_a_device_that_it_does_not_run_on_is_refused(name: str, device: str) -> None:
    with pytest.raises(BackendError, match=f"device '{device}': backend '{name}' runs on"):
        find_backend(name, device)
