"""Tests of the backends: every engine answers as the segment's graph does."""

import functools
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from mpcompile.backends import find_backend
from mpcompile.contract.backend import Backend, BuildConfig, Engine
from mpcompile.contract.profile import OptimizationProfile, Range
from mpcompile.contract.segment import Segment
from mpcompile.errors import BackendError
from mpcompile.graph.capture import capture
from mpcompile.graph.segments import partition
from tests.models import build_head, build_model, prune_inputs, random_batch
from tests.reference import count_kept, run_reference

PROFILE = OptimizationProfile(batch_size=Range(1, 2, 8), seq_len=Range(2, 8, 38))
CONFIG = BuildConfig(num_threads=1)
RATIOS = {0: 0.7, 1: 0.5}
# Tokens of each example, and the examples that survive the exit between the two segments.
CASES = (
    ([9, 5, 7], [2, 0]),
    ([9, 5, 7], [0, 1, 2]),
    ([2], [0]),
    ([1], [0]),
    ([38, 1], [1]),
    ([6] * 8, [7, 6, 3]),
    ([4, 11, 4, 2], [3]),
)

Arrays = dict[str, np.ndarray]


@functools.cache
def model_of(family: str) -> PreTrainedModel:
    return build_model(family, num_layers=2)


@functools.cache
def bert_segments() -> tuple[Segment, ...]:
    """Two segments with a prune in each."""
    return partition(capture(model_of("bert")), {1: build_head(1)}, prune_layers=(0, 1))


@functools.cache
def plan_of(name: str, index: int) -> bytes:
    return find_backend(name).build(bert_segments()[index], PROFILE, CONFIG)


@functools.cache
def engine_of(name: str, index: int) -> Engine:
    return find_backend(name).load(plan_of(name, index), bert_segments()[index], CONFIG)


def to_arrays(tensors: Mapping[str, torch.Tensor]) -> Arrays:
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in tensors.items()}


def run(engine: Engine, segment: Segment, inputs: Mapping[str, np.ndarray]) -> Arrays:
    outputs = engine({name: inputs[name] for name in segment.input_names})
    return {name: value.copy() for name, value in outputs.items()}


def run_graph(segment: Segment, inputs: Mapping[str, np.ndarray]) -> Arrays:
    """What the segment's graph answers: the truth that engines are held against."""
    assert segment.graph_module is not None
    with torch.no_grad():
        given = {name: torch.from_numpy(inputs[name]) for name in segment.input_names}
        return to_arrays(segment.graph_module(**given))


def first_inputs(lengths: list[int], ratios: Mapping[int, float]) -> Arrays:
    return to_arrays({**random_batch(model_of("bert"), lengths), **prune_inputs(lengths, ratios)})


def next_inputs(outputs: Arrays, lengths: list[int], rows: list[int], ratios: Mapping[int, float]) -> Arrays:
    """Inputs of the second segment for the survivors of the first."""
    left = [count_kept(ratios[0], lengths[row]) for row in rows]
    entered = {"hidden": outputs["hidden"], "mask": outputs["mask"], "rows": np.array(rows)}
    prunes = to_arrays(prune_inputs(left, {1: ratios[1]}))
    return {**entered, "positions": np.arange(max(left)), **prunes}


def run_both(
    name: str, lengths: list[int], rows: list[int], ratios: Mapping[int, float]
) -> list[tuple[Arrays, Arrays]]:
    """What engine and graph answer, for the first segment and then for the survivors in the second."""
    first, second = bert_segments()
    inputs = first_inputs(lengths, ratios)
    graph_outputs = run_graph(first, inputs)
    later = next_inputs(graph_outputs, lengths, rows, ratios)
    return [
        (run(engine_of(name, 0), first, inputs), graph_outputs),
        (run(engine_of(name, 1), second, later), run_graph(second, later)),
    ]


@pytest.fixture(params=["openvino", "eager"])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    return find_backend(str(request.param))


@pytest.mark.parametrize(("lengths", "rows"), CASES, ids=str)
def test_segments_answer_as_their_graphs(backend: Backend, lengths: list[int], rows: list[int]) -> None:
    for answered, expected in run_both(backend.name, lengths, rows, RATIOS):
        assert list(answered) == list(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(answered[name], value, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("ratios", [{0: 1.0, 1: 1.0}, {0: 0.3, 1: 1.0}, {0: 1.0, 1: 0.1}, {0: 0.05, 1: 0.05}], ids=str)
def test_another_keep_ratio_needs_no_other_engine(backend: Backend, ratios: dict[int, float]) -> None:
    for answered, expected in run_both(backend.name, [9, 5, 7], [2, 1], ratios):
        for name, value in expected.items():
            np.testing.assert_allclose(answered[name], value, atol=1e-4, err_msg=name)


def test_prune_shortens_what_is_handed_on(backend: Backend) -> None:
    first, _ = bert_segments()
    outputs = run(engine_of(backend.name, 0), first, first_inputs([12, 8], {0: 0.5, 1: 1.0}))
    assert outputs["hidden"].shape == (2, 6, first.hidden_size)
    assert outputs["mask"].shape == (2, 1, 1, 6)
    assert (outputs["mask"][:, 0, 0] == 0).sum(1).tolist() == [6, 4]


def test_survivors_are_gathered_in_the_order_asked_for(backend: Backend) -> None:
    first, second = bert_segments()
    lengths = [9, 5, 7]
    outputs = run_graph(first, first_inputs(lengths, RATIOS))
    forth, back = (
        run(engine_of(backend.name, 1), second, next_inputs(outputs, lengths, rows, RATIOS))["logits"]
        for rows in ([0, 2], [2, 0])
    )
    np.testing.assert_allclose(forth, back[::-1], atol=1e-5)


def test_chain_equals_the_reference(backend: Backend) -> None:
    model, lengths = model_of("bert"), [9, 5, 7]
    (first, _), (second, _) = run_both(backend.name, lengths, [0, 1, 2], RATIOS)
    batch = random_batch(model, lengths)
    for row, length in enumerate(lengths):
        ids, types = (batch[name][row, :length].tolist() for name in ("input_ids", "token_type_ids"))
        trace = run_reference(model, ids, types, RATIOS, {1: build_head(1)})
        np.testing.assert_allclose(first["logits"][row], trace.exits[1][0], atol=1e-4)
        np.testing.assert_allclose(first["entropy"][row], trace.exits[1][1], atol=1e-4)
        np.testing.assert_allclose(second["logits"][row], trace.logits, atol=1e-4)


@pytest.mark.parametrize("family", ["roberta", "electra", "distilbert"])
def test_other_families_answer_as_the_model(backend: Backend, family: str) -> None:
    model = model_of(family)
    (segment,) = partition(capture(model), {})
    engine = backend.load(backend.build(segment, PROFILE, CONFIG), segment, CONFIG)
    for lengths in ([9, 5, 7], [1], [38]):
        batch = random_batch(model, lengths)
        with torch.no_grad():
            expected = model(**batch).logits
        np.testing.assert_allclose(run(engine, segment, to_arrays(batch))["logits"], expected, atol=1e-4)


def test_engine_answers_the_same_when_it_is_called_again(backend: Backend) -> None:
    first, _ = bert_segments()
    engine, inputs = engine_of(backend.name, 0), first_inputs([9, 5], RATIOS)
    once = run(engine, first, inputs)
    run(engine, first, first_inputs([3, 12, 4], RATIOS))
    again = run(engine, first, inputs)
    assert all(np.array_equal(once[name], again[name]) for name in once)


def test_two_engines_of_one_plan_do_not_share_buffers(backend: Backend) -> None:
    first, _ = bert_segments()
    one, other = (backend.load(plan_of(backend.name, 0), first, CONFIG) for _ in range(2))
    inputs = first_inputs([9, 5], RATIOS)
    kept = one({name: inputs[name] for name in first.input_names})
    expected = {name: value.copy() for name, value in kept.items()}
    other({name: value for name, value in first_inputs([4, 3], RATIOS).items() if name in first.input_names})
    assert all(np.array_equal(kept[name], expected[name]) for name in expected)


def test_engine_leaves_its_inputs_as_they_are(backend: Backend) -> None:
    first, _ = bert_segments()
    inputs = first_inputs([9, 5], RATIOS)
    before = {name: value.copy() for name, value in inputs.items()}
    run(engine_of(backend.name, 0), first, inputs)
    assert all(np.array_equal(inputs[name], before[name]) for name in before)


def test_entropy_is_a_share(backend: Backend) -> None:
    first, _ = bert_segments()
    entropy = run(engine_of(backend.name, 0), first, first_inputs([9, 5, 1, 20], RATIOS))["entropy"]
    assert ((entropy >= 0) & (entropy <= 1 + 1e-6)).all()
    assert all(math.isfinite(value) for value in entropy)


def test_fingerprint_is_stable_and_made_of_strings(backend: Backend) -> None:
    fingerprint = backend.fingerprint()
    assert fingerprint == find_backend(backend.name).fingerprint()
    assert fingerprint
    assert all(isinstance(key, str) and isinstance(value, str) and value for key, value in fingerprint.items())


def test_plan_is_bytes(backend: Backend) -> None:
    assert isinstance(plan_of(backend.name, 0), bytes)


def test_f32_comes_first_among_the_precisions(backend: Backend) -> None:
    assert backend.precisions()[0] == "f32"


def test_f32_segment_is_supported(backend: Backend) -> None:
    assert backend.unsupported_reason(bert_segments()[0]) is None


def test_every_native_precision_is_supported(backend: Backend) -> None:
    for precision in backend.precisions():
        assert backend.unsupported_reason(Segment(0, 1, (), 32, (), (), precision)) is None


def test_unsupported_precision_is_named(backend: Backend) -> None:
    reason = backend.unsupported_reason(Segment(0, 1, (), 32, (), (), "fp4"))
    assert reason is not None
    assert "fp4" in reason


def test_eager_does_not_support_reduced_precision() -> None:
    reason = find_backend("eager").unsupported_reason(Segment(0, 1, (), 32, (), (), "bf16"))
    assert reason == "eager runs in f32, not bf16"


def test_eager_engine_needs_the_graph() -> None:
    with pytest.raises(BackendError, match="segment 4: the eager backend runs a graph and none was given"):
        find_backend("eager").load(b"", Segment(4, 1, (), 32, (), ()), CONFIG)


def test_openvino_plan_needs_no_graph() -> None:
    pytest.importorskip("openvino")
    first, _ = bert_segments()
    bare = Segment(0, 1, first.prune_layers, first.hidden_size, first.input_names, first.output_names)
    engine = find_backend("openvino").load(plan_of("openvino", 0), bare, CONFIG)
    inputs = first_inputs([9, 5], RATIOS)
    np.testing.assert_allclose(run(engine, bare, inputs)["logits"], run_graph(first, inputs)["logits"], atol=1e-4)


@pytest.mark.parametrize("damage", ["empty", "cut", "foreign"])
def test_damaged_openvino_plan_is_refused(damage: str) -> None:
    pytest.importorskip("openvino")
    plan = plan_of("openvino", 0)
    damaged = {"empty": b"", "cut": plan[: len(plan) // 2], "foreign": b"x" * 200}[damage]
    with pytest.raises(BackendError, match="segment 0: OpenVINO could not load its engine"):
        find_backend("openvino").load(damaged, bert_segments()[0], CONFIG)


def test_auto_is_openvino() -> None:
    pytest.importorskip("openvino")
    assert find_backend("auto").name == "openvino"


def test_backends_are_found_by_their_names(backend: Backend) -> None:
    assert find_backend(backend.name, device="cpu").name == backend.name


def test_unknown_backend_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(BackendError) as caught:
        find_backend("nope")
    assert str(caught.value) == "backend 'nope': expected 'auto' or one of 'openvino', 'eager', 'inductor', 'tensorrt'"


def test_unknown_device_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(BackendError, match="device 'tpu': expected 'auto', 'cpu', 'cuda'"):
        find_backend("eager", device="tpu")


def test_plan_is_the_same_whenever_it_is_built(backend: Backend) -> None:
    first, _ = bert_segments()
    backend.build(bert_segments()[1], PROFILE, CONFIG)
    assert backend.build(first, PROFILE, CONFIG) == plan_of(backend.name, 0)


def test_backend_says_how_many_threads_it_takes(backend: Backend) -> None:
    assert 1 <= backend.count_threads() <= (os.cpu_count() or 1)


def test_streams_answer_at_the_same_time(backend: Backend) -> None:
    first, _ = bert_segments()
    streams = backend.load_streams(plan_of(backend.name, 0), first, BuildConfig(num_streams=3))
    assert len(streams) == 3
    requests = [first_inputs([9, 5 + i, 2 + i], RATIOS) for i in range(3)]
    expected = [run(engine_of(backend.name, 0), first, inputs) for inputs in requests]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(5):
            results = list(pool.map(lambda engine, inputs: run(engine, first, inputs), streams, requests))
            for result, right in zip(results, expected, strict=True):
                for name, value in right.items():
                    np.testing.assert_allclose(result[name], value, atol=1e-5)
