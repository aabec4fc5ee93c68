"""Tests of engines on a device, on a fake of it: buffers, addresses and profiles, with real numbers in them."""

import gc
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpcompile.backends.tensorrt.cuda import Cuda, DeviceMemoryError
from mpcompile.backends.tensorrt.engine import DeviceArray, TensorRtEngine
from mpcompile.backends.tensorrt.profiles import find_shapes, list_shapes, shrink_profiles, split_profile
from mpcompile.backends.torch.eager import EagerEngine
from mpcompile.contract.backend import BuildConfig
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.profile import OptimizationProfile, Range
from mpcompile.contract.segment import Segment
from mpcompile.errors import BackendError, BatchTooLarge
from mpcompile.graph.onnx_segments import export_onnx
from mpcompile.graph.segments import partition
from mpcompile.runtime.runtime import Runtime
from tests.models import NUM_LABELS, build_head, captured_model, family_model, random_batch
from tests.mpcompile.backends.tensorrt.fake import FakeDevice, make_session

PROFILE = OptimizationProfile(Range(1, 2, 16), Range(2, 8, 24))
SPLIT = (8.0, 8.0, 8.0)


@pytest.fixture(scope="module")
def chain() -> list[tuple[Segment, bytes]]:
    """Exits after layers 1 and 2, prunes in layers 0 and 2."""
    segments = partition(captured_model("bert"), {1: build_head(1), 2: build_head(2)}, (0, 2))
    return [(segment, export_onnx(segment)) for segment in segments]


def load(
    chain: list[tuple[Segment, bytes]], device: FakeDevice, graph_tokens: int = 200, flavour: str = "tensorrt"
) -> list[TensorRtEngine]:
    profiles = {plan: [find_shapes(segment, part) for part in split_profile(PROFILE)] for segment, plan in chain}
    session, config = make_session(device, profiles, flavour), BuildConfig(graph_tokens=graph_tokens)
    return [TensorRtEngine(plan, segment, session, config) for segment, plan in chain]


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
    engine = load(chain, FakeDevice(), graph_tokens=0)[0]
    outputs = engine({**inputs([5, 4]), "num_kept_0": np.array([4, 4]), "slots_0": np.arange(4)})
    assert isinstance(outputs["hidden"], DeviceArray) and outputs["hidden"].shape == (2, 4, 32)
    assert outputs["logits"].shape == (2, NUM_LABELS) and outputs["logits"].dtype == np.float32


def make_first_inputs(lengths: list[int]) -> dict[str, np.ndarray]:
    """Of segment 0, keeping everything."""
    return {**inputs(lengths), "num_kept_0": np.array(lengths), "slots_0": np.arange(max(lengths))}


def test_text_outside_of_the_profile_is_refused(chain: list[tuple[Segment, bytes]]) -> None:
    engine = load(chain, FakeDevice())[0]
    with pytest.raises(BackendError, match=r"segment 0: input_ids of shape \(1, 25\), .*\(1, 2\) to \(16, 24\)"):
        engine(make_first_inputs([25]))


def test_batch_outside_of_the_profile_is_to_be_split(chain: list[tuple[Segment, bytes]]) -> None:
    engine = load(chain, FakeDevice())[0]
    with pytest.raises(BatchTooLarge, match="segment 0: its engine takes batches of at most 16") as caught:
        engine(make_first_inputs([5] * 17))
    assert caught.value.max_rows == 16


def run_both(
    chain: list[tuple[Segment, bytes]], engines: list[TensorRtEngine], lengths: list[int], seed: int = 0
) -> None:
    """Answers of engines are those of the eager ones."""
    segments, point = [segment for segment, _ in chain], OperatingPoint((1, 2, 3), (0.985, 0.99), (0, 2), (0.7, 0.5))
    batch = {name: value.numpy() for name, value in random_batch(family_model("bert"), lengths, seed=seed).items()}
    found = Runtime(segments, engines, NUM_LABELS, SPLIT).run(batch, point)
    expected = Runtime(segments, [EagerEngine(s) for s in segments], NUM_LABELS, SPLIT).run(batch, point)
    np.testing.assert_array_equal(found.exit_layer, expected.exit_layer)
    np.testing.assert_array_equal(found.tokens_kept, expected.tokens_kept)
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=st.lists(st.lists(st.integers(1, 24), min_size=1, max_size=6), min_size=1, max_size=4))
def test_graphs_answer_as_the_eager_engines(chain: list[tuple[Segment, bytes]], requests: list[list[int]]) -> None:
    device = FakeDevice()
    engines = load(chain, device)
    for seed in range(3):  # launched kernel by kernel, captured, replayed: with other tokens in the same sizes
        for lengths in requests:
            run_both(chain, engines, lengths, seed)
    assert device.num_captured and device.num_launched > device.num_captured


def test_rounded_sizes_fit_the_profiles_of_shrinking_lengths(chain: list[tuple[Segment, bytes]]) -> None:
    segments, point = [segment for segment, _ in chain], OperatingPoint((1, 2, 3), (0.0, 0.0), (0, 2), (0.7, 0.5))
    profiles = dict(zip((plan for _, plan in chain), shrink_profiles(PROFILE, segments, [point]), strict=True))
    session = make_session(FakeDevice(), {plan: list_shapes(s, profiles[plan]) for s, plan in chain})
    engines = [TensorRtEngine(plan, segment, session, BuildConfig(graph_tokens=200)) for segment, plan in chain]
    for lengths in ([24, 3], [24, 3], [17], [17]):
        found = Runtime(segments, engines, NUM_LABELS, SPLIT).run(inputs(lengths), point)
        expected = Runtime(segments, [EagerEngine(s) for s in segments], NUM_LABELS, SPLIT).run(inputs(lengths), point)
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)


def test_sizes_that_round_up_alike_share_a_graph(chain: list[tuple[Segment, bytes]]) -> None:
    device = FakeDevice()
    engine = load(chain, device)[0]
    for lengths in ([3, 2, 3], [16] * 4, [9, 5, 7]):
        engine(make_first_inputs(lengths))
    assert (device.num_captured, device.num_launched) == (1, 2)


def test_large_calls_are_neither_padded_nor_captured(chain: list[tuple[Segment, bytes]]) -> None:
    device = FakeDevice()
    engine = load(chain, device, graph_tokens=47)[0]
    for _ in range(3):
        outputs = engine(make_first_inputs([15] * 3))
    assert device.num_captured == 0 and outputs["hidden"].shape == (3, 15, 32)


def test_rtx_captures_its_own_graphs(chain: list[tuple[Segment, bytes]]) -> None:
    device = FakeDevice()
    engines = load(chain, device, flavour="tensorrt_rtx")
    for _ in range(3):
        run_both(chain, engines, [9, 4])
    assert device.num_captured == 0


def test_what_cannot_be_captured_runs_without_graphs(
    chain: list[tuple[Segment, bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    class Device(FakeDevice):
        def capture(self, queue: Callable[[], object]) -> list[Callable[[], None]]:
            super().capture(queue)
            raise BackendError("cudaStreamEndCapture: operation not permitted")

    engines = load(chain, Device())
    for _ in range(3):
        run_both(chain, engines, [9])
    told = [record.message for record in caplog.records]
    assert told and all("runs without CUDA graphs" in message for message in told)


def test_engines_share_scratch_memory(chain: list[tuple[Segment, bytes]]) -> None:
    devices = [FakeDevice() for _ in range(3)]
    engines = [load(chain[i : i + 1], device)[0] for i, device in enumerate(devices)]
    together = FakeDevice()
    kept = load(chain, together)
    sizes = sorted(engine._engine.device_memory_size_v2 for engine in engines)
    assert sum(device.bytes_taken for device in devices) - together.bytes_taken == sum(sizes[:-1])
    assert len(kept) == len(chain)


def test_memory_is_given_back_with_the_engines(chain: list[tuple[Segment, bytes]]) -> None:
    device = FakeDevice()
    engines = load(chain, device)
    for _ in range(3):
        run_both(chain, engines, [9, 4])
    assert device.bytes_taken > 0
    del engines
    gc.collect()
    assert device.bytes_taken == 0


@pytest.mark.parametrize("share", [0.7, 0.3])
def test_engine_that_does_not_fit_takes_smaller_batches_and_says_so(
    chain: list[tuple[Segment, bytes]], share: float, caplog: pytest.LogCaptureFixture
) -> None:
    whole = FakeDevice()
    kept = load(chain, whole)
    engines = load(chain, FakeDevice(share * whole.bytes_taken))
    for lengths in ([24] * 16, [9, 4, 7], [9, 4, 7], [9, 4, 7], [5] * 11):
        run_both(chain, engines, lengths)
    assert len(kept) == len(engines)
    assert any("too little memory for batches of 16" in record.message for record in caplog.records)


def test_device_without_room_for_one_example_is_an_error(chain: list[tuple[Segment, bytes]]) -> None:
    with pytest.raises(DeviceMemoryError):
        load(chain, FakeDevice(1000))


def test_plan_of_another_gpu_is_refused(chain: list[tuple[Segment, bytes]]) -> None:
    with pytest.raises(BackendError, match="another GPU or version, or is damaged; build it again"):
        TensorRtEngine(b"", chain[0][0], make_session(FakeDevice(), {}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_machine_without_a_gpu_is_told_so() -> None:
    with pytest.raises(BackendError, match=r"cuda-python is not installed|cudaGetDeviceCount"):
        Cuda()
