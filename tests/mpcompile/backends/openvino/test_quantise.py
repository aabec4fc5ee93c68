"""Tests of int8 engines: what is quantised, what is not, and what that does to answers."""

import collections
import functools
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from mpcompile.backends import find_backend
from mpcompile.backends.openvino import quantise as quantisation
from mpcompile.compile.recording import record_inputs
from mpcompile.contract.backend import BuildConfig, Engine
from mpcompile.contract.profile import default_profile
from mpcompile.contract.segment import Segment
from mpcompile.errors import BackendError
from mpcompile.graph.capture import CapturedModel, capture
from mpcompile.graph.segments import partition, tap
from tests.models import HIDDEN_SIZE, MAX_POSITIONS, NUM_LABELS, build_head, build_model, prune_inputs, random_batch

pytest.importorskip("nncf")
openvino = pytest.importorskip("openvino")

if "int8" not in find_backend("openvino").precisions():
    pytest.skip("this CPU does not run int8", allow_module_level=True)

CONFIG, PROFILE = BuildConfig(num_threads=1), default_profile(MAX_POSITIONS)
RATIOS = {0: 0.7, 1: 0.5}
NUM_LINEAR = 6
"""Products with weights in a layer: query, key, value, output, up, down."""


@functools.cache
def captured() -> CapturedModel:
    return capture(build_model("bert", num_layers=2))


@functools.cache
def segments(precision: str) -> tuple[Segment, ...]:
    """Two segments with a prune in each."""
    return partition(captured(), {1: build_head(1)}, (0, 1), precision=precision)


def batch(lengths: list[int], seed: int = 0) -> dict[str, np.ndarray]:
    drawn = random_batch(build_model("bert", num_layers=1), lengths, seed=seed)
    return {name: value.numpy() for name, value in drawn.items()}


@functools.cache
def samples() -> tuple[list[dict[str, np.ndarray]], ...]:
    return record_inputs(segments("int8"), [engine_of("f32", 0)], [batch([4 + i], seed=i) for i in range(16)])


@functools.cache
def plan_of(precision: str, index: int) -> bytes:
    given = samples()[index] if precision == "int8" else None
    return find_backend("openvino").build(segments(precision)[index], PROFILE, CONFIG, given)


@functools.cache
def engine_of(precision: str, index: int) -> Engine:
    return find_backend("openvino").load(plan_of(precision, index), segments(precision)[index], CONFIG)


def run(precision: str, index: int, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = segments(precision)[index].input_names
    outputs = engine_of(precision, index)({name: inputs[name] for name in names})
    return {name: value.copy() for name, value in outputs.items()}


def first_inputs(lengths: list[int]) -> dict[str, np.ndarray]:
    prunes = {name: value.numpy() for name, value in prune_inputs(lengths, RATIOS).items()}
    return {**batch(lengths, seed=99), **prunes}


def read_model(plan: bytes) -> "openvino.Model":
    (length,) = struct.unpack_from("<Q", plan)
    return openvino.Core().read_model(plan[8 : 8 + length], plan[8 + length :])


def upstream(node: "openvino.Node") -> list["openvino.Node"]:
    """Operations that a node reads, through what only moves or rescales numbers."""
    found, waiting = [], [node]
    while waiting:
        for port in waiting.pop().inputs():
            source = port.get_source_output().get_node()
            found.append(source)
            if source.get_type_name() in ("Reshape", "Multiply", "Transpose", "Convert"):
                waiting.append(source)
    return found


def test_products_with_weights_are_quantised() -> None:
    for index, num_heads in ((0, 2), (1, 2)):  # an exit head has two products; so have pooler and classifier
        products = [op for op in read_model(plan_of("int8", index)).get_ops() if op.get_type_name() == "MatMul"]
        quantised = [op for op in products if "FakeQuantize" in {node.get_type_name() for node in upstream(op)}]
        assert len(products) == NUM_LINEAR + num_heads
        assert len(quantised) == NUM_LINEAR


def test_nothing_but_products_reads_quantised_numbers() -> None:
    for index in (0, 1):
        model = read_model(plan_of("int8", index))
        fakes = [op for op in model.get_ops() if op.get_type_name() == "FakeQuantize"]
        readers = collections.Counter(
            port.get_node().get_type_name() for op in fakes for port in op.output(0).get_target_inputs()
        )
        assert fakes
        assert set(readers) <= {"MatMul", "Reshape"}


def test_float_plans_have_nothing_quantised() -> None:
    assert not any(op.get_type_name() == "FakeQuantize" for op in read_model(plan_of("f32", 0)).get_ops())


def test_answers_are_close_to_those_in_f32() -> None:
    inputs = first_inputs([9, 5, 12])
    exact, close = run("f32", 0, inputs), run("int8", 0, inputs)
    np.testing.assert_array_equal(close["mask"], exact["mask"])
    error = np.sqrt(np.square(close["hidden"] - exact["hidden"]).mean() / np.square(exact["hidden"]).mean())
    assert 0 < error < 0.1  # numbers of eight bits, summed up by a layer of random weights


def test_importance_keeps_the_same_tokens() -> None:
    inputs = first_inputs([12])
    exact, close = (run(name, 0, inputs)["hidden"] for name in ("f32", "int8"))
    # Norms make every vector as long as any other; one of another token would point elsewhere.
    cosine = (exact * close).sum(2) / np.linalg.norm(exact, axis=2) / np.linalg.norm(close, axis=2)
    assert cosine.min() > 0.98


def test_chain_of_int8_engines_answers_batches_of_other_sizes() -> None:
    outputs = run("int8", 0, first_inputs([9, 5, 12]))
    rows = np.array([2, 0])
    kept = outputs["hidden"].shape[1]
    inputs = {
        "hidden": outputs["hidden"], "mask": outputs["mask"], "rows": rows, "positions": np.arange(kept),
        "num_kept_1": np.array([3, 2]), "slots_1": np.arange(3),
    }  # fmt: skip
    exact, close = (run(name, 1, inputs)["logits"] for name in ("f32", "int8"))
    assert close.shape == (2, NUM_LABELS)
    assert np.abs(close - exact).max() < 0.1 * np.abs(exact).max()


def test_same_samples_give_the_same_plan() -> None:
    segment = segments("int8")[1]
    again = find_backend("openvino").build(segment, PROFILE, CONFIG, samples()[1])
    assert again == plan_of("int8", 1)


def test_other_samples_give_another_plan() -> None:
    segment = segments("int8")[1]
    louder = [{**sample, "hidden": 3 * sample["hidden"]} for sample in samples()[1]]
    assert find_backend("openvino").build(segment, PROFILE, CONFIG, louder) != plan_of("int8", 1)


def test_tapped_model_is_quantised_and_gives_features() -> None:
    segment = tap(captured(), (0, 1), (), "int8")
    (given,) = record_inputs([segment], [], [batch([4 + i], seed=i) for i in range(8)])
    backend = find_backend("openvino")
    engine = backend.load(backend.build(segment, PROFILE, CONFIG, given), segment, CONFIG)
    inputs = {name: value for name, value in batch([7, 4]).items() if name in segment.input_names}
    outputs = engine(inputs)
    assert outputs["features_1"].shape == (2, 2 * HIDDEN_SIZE)
    assert segment.graph_module is not None
    with torch.no_grad():
        expected = segment.graph_module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    np.testing.assert_allclose(outputs["features_0"], expected["features_0"], atol=0.05)  # bf16 at most


def test_quantising_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    find_backend("openvino").build(segments("int8")[1], PROFILE, CONFIG, samples()[1][:2])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("given", [None, []])
def test_int8_without_samples_is_refused(given: list[dict[str, np.ndarray]] | None) -> None:
    message = "segment 1, precision 'int8': no samples to calibrate on; give texts, or choose precision 'f32' or 'bf16'"
    with pytest.raises(BackendError, match=message):
        find_backend("openvino").build(segments("int8")[1], PROFILE, CONFIG, given)


def test_int8_without_nncf_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    given = samples()[1]
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(BackendError, match=r"pip install \"mpcompile\[int8\]\""):
        find_backend("openvino").build(segments("int8")[1], PROFILE, CONFIG, given)


@pytest.mark.parametrize(
    ("machine", "flags", "is_wide"),
    [
        ("x86_64", "fpu avx2 avx512_vnni", True),
        ("AMD64", "fpu avx2 avx_vnni", True),
        ("x86_64", "fpu avx2 avx512f", False),
        ("x86_64", None, False),
        ("aarch64", None, True),
    ],
)
def test_x86_without_vnni_gets_narrow_weights(
    machine: str, flags: str | None, is_wide: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(quantisation.platform, "machine", lambda: machine)
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"flags\t: {flags}\n")
    assert quantisation.sums_wide(tmp_path / "cpuinfo") is is_wide


@pytest.mark.parametrize(("is_wide", "largest"), [(True, 127), (False, 64)])
def test_weights_have_seven_bits_where_sums_are_narrow(
    is_wide: bool, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantisation, "sums_wide", lambda: is_wide)
    model = read_model(find_backend("openvino").build(segments("int8")[1], PROFILE, CONFIG, samples()[1]))
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    weights = [op.get_data() for op in constants if op.get_element_type() == openvino.Type.i8]
    assert len(weights) == NUM_LINEAR and max(int(np.abs(value.astype(int)).max()) for value in weights) == largest
