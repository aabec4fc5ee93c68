"""Tests of engines on a device, on a fake of it: buffers, addresses and profiles, with real numbers in them."""

import numpy as np
import pytest
import torch

from mpcompile.backends.eager import EagerEngine
from mpcompile.backends.tensorrt.cuda import Cuda
from mpcompile.backends.tensorrt.engine import DeviceArray, TensorRtEngine
from mpcompile.backends.tensorrt.profiles import find_shapes, split_profile
from mpcompile.capture import capture
from mpcompile.errors import BackendError
from mpcompile.onnx_segments import export_onnx
from mpcompile.operating_point import OperatingPoint
from mpcompile.partition import partition
from mpcompile.runtime import Runtime
from mpcompile.segment import OptimizationProfile, Range, Segment
from tests.models import NUM_LABELS, build_head, family_model, random_batch
from tests.mpcompile.backends.fake_tensorrt import FakeDevice, FakeRuntime

PROFILE = OptimizationProfile(Range(1, 2, 16), Range(2, 8, 24))
SPLIT = (8.0, 8.0, 8.0)


@pytest.fixture(scope="module")
def chain() -> list[tuple[Segment, bytes]]:
    """Exits after layers 1 and 2, prunes in layers 0 and 2."""
    segments = partition(capture(family_model("bert")), {1: build_head(1), 2: build_head(2)}, (0, 2))
    return [(segment, export_onnx(segment)) for segment in segments]


def load(chain: list[tuple[Segment, bytes]], device: FakeDevice) -> list[TensorRtEngine]:
    profiles = {plan: [find_shapes(segment, part) for part in split_profile(PROFILE)] for segment, plan in chain}
    return [TensorRtEngine(plan, segment, FakeRuntime(profiles), device) for segment, plan in chain]


def inputs(lengths: list[int]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in random_batch(family_model("bert"), lengths).items()}


@pytest.mark.parametrize("lengths", [[9], [12, 5, 2, 9], [24] * 16])
@pytest.mark.parametrize("thresholds", [(0.0, 0.0), (0.985, 0.99), (1.0, 1.0)])
def test_chain_answers_as_the_eager_one(
    chain: list[tuple[Segment, bytes]], lengths: list[int], thresholds: tuple[float, float]
) -> None:
    segments, point = [segment for segment, _ in chain], OperatingPoint((1, 2, 3), thresholds, (0, 2), (0.7, 0.5))
    found = Runtime(segments, load(chain, FakeDevice()), NUM_LABELS, SPLIT).run(inputs(lengths), point)
    expected = Runtime(segments, [EagerEngine(s) for s in segments], NUM_LABELS, SPLIT).run(inputs(lengths), point)
    np.testing.assert_array_equal(found.exit_layer, expected.exit_layer)
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)


def test_nothing_is_allocated_after_loading_and_the_hidden_state_stays(chain: list[tuple[Segment, bytes]]) -> None:
    device, point = FakeDevice(), OperatingPoint((1, 2, 3), (0.0, 0.0), (0, 2), (1.0, 1.0))
    runtime = Runtime([segment for segment, _ in chain], load(chain, device), NUM_LABELS, (1e9,) * 3)
    allocated = device.num_allocated
    for lengths in ([24] * 16, [3], [12] * 4):
        device.bytes_out = device.num_waits = 0
        runtime.run(inputs(lengths), point)
        # Logits at three exits, entropy at two; one wait for each segment.
        assert device.bytes_out == 4 * len(lengths) * (3 * NUM_LABELS + 2) and device.num_waits == 3
    assert device.num_allocated == allocated


def test_what_is_handed_on_is_an_address(chain: list[tuple[Segment, bytes]]) -> None:
    engine = load(chain, FakeDevice())[0]
    outputs = engine({**inputs([5, 4]), "num_kept_0": np.array([4, 4]), "slots_0": np.arange(4)})
    assert isinstance(outputs["hidden"], DeviceArray) and outputs["hidden"].shape == (2, 4, 32)
    assert outputs["logits"].shape == (2, NUM_LABELS) and outputs["logits"].dtype == np.float32


@pytest.mark.parametrize(("lengths", "shape"), [([5] * 17, r"\(17, 5\)"), ([25], r"\(1, 25\)")])
def test_request_outside_of_the_profile_is_refused(
    chain: list[tuple[Segment, bytes]], lengths: list[int], shape: str
) -> None:
    engine = load(chain, FakeDevice())[0]
    kept = {"num_kept_0": np.array(lengths), "slots_0": np.arange(max(lengths))}
    with pytest.raises(BackendError, match=rf"segment 0: input_ids of shape {shape}, .*\(1, 2\) to \(16, 24\)"):
        engine({**inputs(lengths), **kept})


def test_plan_of_another_gpu_is_refused(chain: list[tuple[Segment, bytes]]) -> None:
    with pytest.raises(BackendError, match="another GPU or version, or is damaged; build it again"):
        TensorRtEngine(b"", chain[0][0], FakeRuntime({}), FakeDevice())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_machine_without_a_gpu_is_told_so() -> None:
    with pytest.raises(BackendError, match=r"cuda-python is not installed|cudaGetDeviceCount"):
        Cuda()
