"""Tests of the other encoders end to end: captured, segmented, built and run as the reference says."""

import copy
import functools
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import mpcompile
from mpcompile.backends import find_backend
from mpcompile.contract.backend import BuildConfig
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.profile import default_profile
from mpcompile.cost.work import estimate_work
from mpcompile.errors import CaptureError
from mpcompile.graph.capture import CapturedModel, capture
from mpcompile.graph.segments import partition
from mpcompile.runtime.runtime import Runtime
from passes.ops import additive_mask, prune_tokens
from tests.models import MORE_FAMILIES, WORDS, build_head, build_model, captured_model, family_model, random_batch
from tests.reference import run_reference

pytestmark = pytest.mark.usefixtures("few_batches")
RATIOS = {0: 0.7, 1: 0.6}
POINT = OperatingPoint((1, 3), (0.9,), (0, 1), (0.7, 0.6))
LENGTHS = [14, 6, 1, 20]
STRUCTURES = ("albert", "mpnet", "modernbert", "deberta")


@functools.cache
def captured_family(family: str) -> CapturedModel:
    return captured_model(family)


def make_runtime(family: str, backend_name: str) -> Runtime:
    """An exit after the first of three layers, prunes in the first two."""
    captured, backend, config = captured_family(family), find_backend(backend_name), BuildConfig(num_threads=1)
    segments = partition(captured, {1: build_head(1)}, (0, 1))
    profile = default_profile(captured.max_length)
    engines = [backend.load(backend.build(segment, profile, config), segment, config) for segment in segments]
    return Runtime(segments, engines, captured.num_labels, [8.0] * len(segments))


# XLM-R and CamemBERT are RoBERTa to a compiler: one engine fewer to build says as much.
@pytest.mark.parametrize(
    ("family", "backend_name"),
    [*((family, "eager") for family in MORE_FAMILIES), *((family, "openvino") for family in STRUCTURES)],
)
def test_runtime_answers_as_the_reference(family: str, backend_name: str) -> None:
    model = family_model(family)
    batch = random_batch(model, LENGTHS)
    inputs = {name: value.numpy() for name, value in batch.items()}
    result = make_runtime(family, backend_name).run(inputs, POINT)
    for row, length in enumerate(LENGTHS):
        example = {name: value[row, :length].tolist() for name, value in batch.items() if name != "attention_mask"}
        trace = run_reference(model, **example, keep_ratios=RATIOS, heads={1: build_head(1)})
        logits, exit_layer = trace.answer({1: 0.9})
        assert result.exit_layer[row] == exit_layer
        np.testing.assert_allclose(result.logits[row], logits, atol=2e-4)


@pytest.mark.parametrize("family", ["mpnet", "modernbert", "deberta"])
@pytest.mark.parametrize("backend", ["OpenVINO", "per operator"])
def test_work_of_relative_positions_is_estimated(family: str, backend: str) -> None:
    work = estimate_work(captured_family(family), backend)
    short, long = (work.attention[1].count_flops(np.float64(4), np.float64(length)) for length in (10, 20))
    assert 2 * short < long
    assert work.prune[1].count_flops(np.float64(4), np.float64(20), np.float64(10)) > 0


def test_mean_pooled_modernbert_is_refused() -> None:
    with pytest.raises(CaptureError, match="classifier reads attention_mask"):
        capture(build_model("modernbert", classifier_pooling="mean"))


def test_deberta_with_a_convolution_is_refused() -> None:
    with pytest.raises(CaptureError, match="layer 1 does not read the hidden state that layer 0 gives"):
        capture(build_model("deberta", conv_kernel_size=3, conv_act="gelu"))


def test_separator_is_remembered() -> None:
    assert capture(family_model("bert"), separator_id=3).separator_id == 3
    assert captured_family("mpnet").separator_id is None


def test_openvino_keeps_separators() -> None:
    model = family_model("bert")
    backend, config = find_backend("openvino"), BuildConfig(num_threads=1)
    (segment,) = partition(capture(model, separator_id=3), {}, (0, 1))
    engine = backend.load(backend.build(segment, default_profile(38), config), segment, config)
    runtime = Runtime([segment], [engine], 3, [8.0])
    batch = random_batch(model, [16, 11])
    for row, length in enumerate([16, 11]):
        batch["input_ids"][row, [5, length - 1]] = 3
    inputs = {name: value.numpy() for name, value in batch.items()}
    result = runtime.run(inputs, OperatingPoint((3,), (), (0, 1), (0.5, 0.5)))
    for row, length in enumerate([16, 11]):
        ids, types = (batch[name][row, :length].tolist() for name in ("input_ids", "token_type_ids"))
        expected = run_reference(model, ids, types, keep_ratios={0: 0.5, 1: 0.5}, separator_id=3).logits
        np.testing.assert_allclose(result.logits[row], expected, atol=2e-4)


def test_pairs_are_optimized_end_to_end(
    tiny_bert: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, cache_dir: Path, tmp_path: Path
) -> None:
    pairs = [
        (
            " ".join(WORDS[(7 * i + j) % 95] for j in range(1 + i % 9)),
            " ".join(WORDS[(5 * i + 3 * j) % 95] for j in range(8)),
        )
        for i in range(40)
    ]
    model = copy.deepcopy(tiny_bert)
    optimized = mpcompile.optimize(
        model, 1.0, tokenizer=tiny_tokenizer, texts=pairs, progress=False, cache_dir=cache_dir, backend="eager"
    )
    graphs = [segment.graph_module for segment in optimized.runtime.segments]
    masks = [node for graph in graphs for node in graph.graph.nodes if node.target is additive_mask]
    prunes = [node for graph in graphs for node in graph.graph.nodes if node.target is prune_tokens]
    assert [mask.args[2] for mask in masks] == [tiny_tokenizer.sep_token_id]
    assert all(prune.kwargs["separated"] for prune in prunes)
    optimized.save(tmp_path / "artifact")
    again = mpcompile.load(tmp_path / "artifact")
    assert [a.label for a in again.predict(pairs[:6])] == [a.label for a in optimized.predict(pairs[:6])]
