"""Tests of TensorRT engines that are built here, without a GPU: by TensorRT-RTX, ahead of time, for four GPUs at once.

What they say about kernels and memory is the builder's own log; nothing is run.
"""

import platform
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from mpcompile.backends.tensorrt import builder
from mpcompile.backends.tensorrt.builder import BuilderOptions, BuiltEngine, build_engine
from mpcompile.backends.tensorrt.loader import NAMES, RTX_NAMES, load_tensorrt
from mpcompile.backends.tensorrt.profiles import find_shapes, shrink_profiles, split_profile
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.profile import OptimizationProfile, Range
from mpcompile.contract.segment import Segment
from mpcompile.errors import BackendError
from mpcompile.graph.capture import capture
from mpcompile.graph.onnx_segments import export_onnx
from mpcompile.graph.segments import partition
from passes import ExitHead
from tests.models import build_head, captured_model

PROFILE = OptimizationProfile(Range(1, 8, 64), Range(8, 128, 512))
TARGETS = ("SM80", "SM86", "SM89", "SM120")
MIB = 2**20

HERE = (sys.platform, platform.machine())
needs_rtx = pytest.mark.skipif(HERE != ("linux", "x86_64"), reason="the registry has TensorRT-RTX for x86 Linux")


def build(segment: Segment, targets: tuple[str, ...] = TARGETS) -> BuiltEngine:
    return build_engine(export_onnx(segment), [find_shapes(segment, PROFILE)], BuilderOptions(targets))


@pytest.fixture(scope="module")
def base() -> dict[str, BuiltEngine]:
    """Engines of a third of a BERT-base: an exit after layer 2, prunes in 1 and 3; and two of a single layer."""
    torch.manual_seed(0)
    captured = capture(
        BertForSequenceClassification(BertConfig(num_labels=4, num_hidden_layers=4, vocab_size=4096)).eval()
    )
    heads = {2: ExitHead(768, 4)}
    built = {str(s.index): build(s) for s in partition(captured, heads, (1, 3), precision="f16")}
    heads = {layer: ExitHead(768, 4) for layer in (1, 2, 3)}
    layers = partition(captured, heads, (1,), last_exit=3, precision="f16")
    return {**built, "pruning layer": build(layers[1]), "plain layer": build(layers[2])}


@needs_rtx
@pytest.mark.parametrize("index", ["0", "1"])
def test_attention_is_one_kernel_in_every_layer_whether_it_prunes_or_not(
    base: dict[str, BuiltEngine], index: str
) -> None:
    assert base[index].facts.num_fused_attentions == 2


@needs_rtx
def test_scratch_memory_of_a_pruning_layer_is_bounded(base: dict[str, BuiltEngine]) -> None:
    scratch = base["pruning layer"].facts.scratch_bytes
    assert scratch is not None and scratch <= 420 * MIB


@needs_rtx
def test_scratch_memory_does_not_grow_with_layers(base: dict[str, BuiltEngine]) -> None:
    sizes = [built.facts.scratch_bytes for built in base.values()]
    # An attention that is not fused has B * H * S * S scores: 384 MiB more than all of this.
    assert all(size is not None and size <= 436 * MIB for size in sizes)


@needs_rtx
def test_engines_are_hardly_larger_than_their_weights(base: dict[str, BuiltEngine]) -> None:
    for built in base.values():
        facts = built.facts
        assert facts.weight_bytes is not None and facts.weight_bytes < facts.plan_bytes < facts.weight_bytes + 16 * MIB
        assert facts.build_s > 0


@needs_rtx
def test_wide_profile_becomes_two_and_both_are_fused() -> None:
    segment = partition(captured_model("bert"), {1: build_head(1)}, (0,), precision="f16")[0]
    profiles = split_profile(OptimizationProfile(Range(1, 8, 64), Range(8, 16, 32)))
    model = export_onnx(segment)
    assert [p.batch_size for p in profiles] == [Range(1, 1, 2), Range(1, 8, 64)]
    one, two = (build_engine(model, [find_shapes(segment, p) for p in ps], BuilderOptions(("SM89",)))
                for ps in (profiles[1:], profiles))  # fmt: skip
    assert len(two.facts.kernels) > 1.5 * len(one.facts.kernels)


@needs_rtx
def test_bindings_have_every_name_that_is_called() -> None:
    trt = load_tensorrt().module
    classes = [value for value in vars(trt).values() if isinstance(value, type)]
    known = set(vars(trt)).union(*(dir(value) for value in classes))
    assert set(NAMES) <= known and set(RTX_NAMES) <= known


@needs_rtx
def test_model_that_is_no_onnx_is_refused_with_the_parsers_words() -> None:
    with pytest.raises(BackendError, match=r"segment 3: TensorRT could not build it \(exit code 1\)"):
        build_engine(b"no model", [], BuilderOptions(), name="segment 3")


@pytest.fixture
def replace_builder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Makes the building process run a line of shell instead."""

    def replace(line: str) -> None:
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)
        monkeypatch.setattr(builder.sys, "executable", str(program))

    return replace


def test_builder_that_kills_its_process_is_an_error_here(replace_builder: Callable[[str], None]) -> None:
    replace_builder("echo 'internal error: 42' >&2; kill -SEGV $$")
    with pytest.raises(BackendError, match=r"segment 3: .*\(signal 11\): internal error: 42"):
        build_engine(b"", [], BuilderOptions(), name="segment 3")


def test_builder_that_hangs_is_stopped(replace_builder: Callable[[str], None]) -> None:
    replace_builder("exec sleep 60")
    with pytest.raises(BackendError, match=r"still building after 0\.2 s"):
        build_engine(b"", [], BuilderOptions(limit_s=0.2))


def test_gpu_that_rtx_does_not_build_for_is_refused() -> None:
    with pytest.raises(BackendError, match=r"target 'SM87': .*SM86.*mpcompile export"):
        BuilderOptions(("SM87",))


def test_lengths_shrink_from_segment_to_segment() -> None:
    segments = partition(captured_model("bert"), {1: build_head(1), 2: build_head(2)}, (0, 1))
    fast = OperatingPoint((1, 2, 3), (0.5, 0.5), (0, 1), (0.5, 0.5))
    slow = OperatingPoint((1, 2, 3), (0.5, 0.5), (0, 1), (0.75, 1.0))
    lengths = [profile.seq_len for profile in shrink_profiles(PROFILE, segments, (fast, slow))]
    assert lengths == [Range(8, 128, 512), Range(4, 64, 384), Range(4, 32, 384)]


def test_lengths_are_rounded_as_the_runtime_rounds_them_but_not_beyond_what_enters() -> None:
    segments = partition(captured_model("bert"), {1: build_head(1)}, (0,))
    for ratio, enters, expected in ((0.7, 512, 384), (0.95, 500, 480), (0.99, 500, 500)):
        profile = OptimizationProfile(Range(1, 8, 64), Range(8, 128, enters))
        point = OperatingPoint((1, 3), (0.5,), (0,), (ratio,))
        assert shrink_profiles(profile, segments, [point])[1].seq_len.max == expected


def test_shapes_follow_the_profile() -> None:
    segment = partition(captured_model("bert"), {1: build_head(1)}, (2,))[1]
    shapes = find_shapes(segment, PROFILE)
    assert shapes["hidden"] == ((1, 8, 32), (8, 128, 32), (64, 512, 32))
    assert shapes["mask"] == ((1, 1, 1, 8), (8, 1, 1, 128), (64, 1, 1, 512))
    assert shapes["rows"] == shapes["num_kept_2"] == ((1,), (8,), (64,))
    assert shapes["positions"] == ((8,), (128,), (512,)) and shapes["slots_2"] == ((4,), (128,), (512,))
