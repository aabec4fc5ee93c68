"""Tests of the inductor backend on the CPU: the same answers, and no compilation for another size."""

import shutil

import numpy as np
import pytest
import torch

from mpcompile.backends import find_backend
from mpcompile.backends.eager import EagerEngine
from mpcompile.capture import capture
from mpcompile.errors import BackendError
from mpcompile.operating_point import OperatingPoint
from mpcompile.partition import partition
from mpcompile.runtime import Runtime
from mpcompile.segment import BuildConfig, Segment
from tests.models import NUM_LABELS, build_head, family_model, random_batch

SPLIT = (8.0, 8.0)


@pytest.fixture(scope="module")
def segments() -> tuple[Segment, ...]:
    return partition(capture(family_model("bert")), {1: build_head(1)}, (0, 2))


@pytest.fixture(scope="module")
def runtime(segments: tuple[Segment, ...]) -> Runtime:
    backend = find_backend("inductor", "cpu")
    return Runtime(segments, [backend.load(b"", s, BuildConfig()) for s in segments], NUM_LABELS, SPLIT)


def inputs(lengths: list[int]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in random_batch(family_model("bert"), lengths).items()}


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles C++ on a CPU, and there is no compiler")
def test_chain_answers_as_the_eager_one_and_hardly_ever_compiles(
    segments: tuple[Segment, ...], runtime: Runtime
) -> None:
    eager = Runtime(segments, [EagerEngine(segment) for segment in segments], NUM_LABELS, SPLIT)
    point = OperatingPoint((1, 3), (0.985,), (0, 2), (0.7, 0.5))
    # By sizes of one, which inductor treats apart: a whole batch, one of a batch, and one alone in each segment.
    everyone = OperatingPoint((1, 3), (0.0,), (0, 2), (0.7, 0.5))
    for lengths, first in (([12, 5, 7, 9], everyone), ([12], everyone), ([30, 4, 4, 4, 4], point)):
        runtime.run(inputs(lengths), first)
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for lengths in ([12, 5, 7, 9], [24] * 6, [17, 30, 6], [8, 8], [19], [31, 3]):
        found, expected = (r.run(inputs(lengths), point) for r in (runtime, eager))
        np.testing.assert_array_equal(found.exit_layer, expected.exit_layer)
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= compiled + 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_is_not_there_is_no_silent_cpu() -> None:
    with pytest.raises(BackendError, match="device 'cuda': torch sees no GPU here"):
        find_backend("inductor", "cuda")


@pytest.mark.parametrize(("name", "device"), [("openvino", "cuda"), ("auto", "cuda"), ("tensorrt", "cpu")])
def test_backend_on_a_device_that_it_does_not_run_on_is_refused(name: str, device: str) -> None:
    with pytest.raises(BackendError, match=f"device '{device}': backend '{name}' runs on"):
        find_backend(name, device)
