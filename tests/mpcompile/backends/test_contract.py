"""One contract for all backends: each goes through the main job, from capture to answers after tuning.

A backend that is added to `BACKENDS` is in this suite by itself. TensorRT runs on the fake device, and what inductor
compiles is run eagerly: its compiler has a test of its own.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

import mpcompile
from mpcompile.backends import BACKENDS, find_backend
from mpcompile.backends.tensorrt.loader import TensorRt
from mpcompile.backends.torch.eager import EagerEngine
from mpcompile.compile.rebuild import rebuild_segments
from mpcompile.contract.backend import Target
from mpcompile.contract.segment import Segment
from mpcompile.cost.grids import Grid
from mpcompile.cost.profiles import find_profile
from mpcompile.graph.onnx_segments import export_onnx
from mpcompile.runtime.artifact import read_manifest, write_manifest
from mpcompile.runtime.runtime import Runtime
from mpcompile.store.results import Store, digest_arrays
from mpcompile.tuning import tune
from tests.models import build_model
from tests.mpcompile.backends.tensorrt.fake import FakeDevice, make_session
from tests.mpcompile.cost.made_up import declare_profile

JOBS = [(name, "f16" if name == "tensorrt" else "f32") for name in BACKENDS]
"""TensorRT's f32 engines answer for the original on the way to those in f16."""
ATOL = {"f32": 1e-4, "f16": 0.2}
"""Of logits of about 1: heads fitted to forty texts make a hundred times more of the rounding of half precision."""
GRID = (Grid(32, 2, (1, 2), (4, 8), (0.5,), 64),)


def put_on_paper(patch: pytest.MonkeyPatch) -> None:
    """Gives TensorRT a device and a builder: a plan is the ONNX model, exported once for segments that are alike."""
    device, profiles, exported = FakeDevice(), {}, {}  # type: ignore[var-annotated]
    module = make_session(device, profiles).found.module

    def build(model: bytes, shapes: Any, *_: Any, **__: Any) -> Any:
        profiles[model] = shapes
        return SimpleNamespace(plan=model)

    def export_once(segment: Segment) -> bytes:
        assert segment.graph_module is not None
        weights = {name: value.detach().numpy() for name, value in segment.graph_module.state_dict().items()}
        key = (segment.graph_module.code, segment.precision, digest_arrays(weights))
        if key not in exported:
            exported[key] = export_onnx(segment)
        return exported[key]

    place = "mpcompile.backends.tensorrt.backend"
    patch.setattr("mpcompile.graph.onnx_segments.export_onnx", export_once)
    patch.setattr(f"{place}.Cuda", lambda: device)
    patch.setattr(f"{place}.load_tensorrt", lambda: TensorRt(module, "tensorrt"))
    patch.setattr(f"{place}.build_engine", build)


@pytest.fixture(scope="module", params=JOBS, ids=lambda job: " ".join(job))
def job(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """A backend and a precision, and a machine that has it."""
    name, precision = request.param
    with pytest.MonkeyPatch.context() as patch, torch.compiler.set_stance("force_eager"):
        put_on_paper(patch)
        patch.setattr("mpcompile.cost.grid_bench.NUM_LAYERS", 2)
        patch.setattr("mpcompile.cost.profiles.QUICK", GRID)
        patch.setattr("mpcompile.cost.profiles.FULL", GRID)
        yield name, precision


@pytest.fixture(scope="module")
def artifact(
    job: tuple[str, str],
    capture_once: None,
    few_batches: None,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tiny_texts: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A BERT of two layers, optimized and saved."""
    name, precision = job
    folder = tmp_path_factory.mktemp("contract")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpcompile.cost.calibration.calibrate", declare_profile)
        optimized = mpcompile.optimize(
            build_model("bert", num_layers=2), 2.0, tokenizer=tiny_tokenizer, texts=tiny_texts, backend=name,
            precision=precision, progress=False, cache_dir=folder / "cache", show_texts=False,
        )  # fmt: skip
    return optimized.save(folder / "artifact")


@pytest.fixture(scope="module")
def eager(artifact: Path) -> Runtime:
    """Torch with the same segments in f32."""
    manifest = read_manifest(artifact)
    segments = [dataclasses.replace(segment, precision="f32") for segment in rebuild_segments(artifact, manifest)]
    engines = [EagerEngine(segment) for segment in segments]
    return Runtime(segments, engines, manifest.signature.num_labels, [np.inf] * len(segments))


def test_every_point_is_answered_as_torch_answers_it(
    artifact: Path, eager: Runtime, job: tuple[str, str], tiny_texts: list[str]
) -> None:
    optimized = mpcompile.load(artifact)
    assert optimized.tokenizer is not None
    inputs = optimized.tokenizer.pad(optimized.tokenizer.encode(tiny_texts[:9]))
    layers = set()
    for row in optimized.operating_points:
        found, expected = optimized.runtime.run(inputs, row.point), eager.run(inputs, row.point)
        layers |= set(found.exit_layer.tolist())
        if job[1] == "f32":  # half the digits may leave at another exit
            np.testing.assert_array_equal(found.exit_layer, expected.exit_layer)
            np.testing.assert_array_equal(found.tokens_kept, expected.tokens_kept)
        same = found.exit_layer == expected.exit_layer
        assert same.mean() > 0.8
        np.testing.assert_allclose(found.logits[same], expected.logits[same], atol=ATOL[job[1]])
    assert min(layers) < 2, "nobody left early: the exits were not tried"


def test_answers_are_those_of_the_fingerprint_that_is_here(artifact: Path, job: tuple[str, str]) -> None:
    manifest = read_manifest(artifact)
    assert (manifest.backend, manifest.segments[0].precision) == job
    assert manifest.fingerprint == find_backend(job[0]).fingerprint()


def test_stale_engines_are_rebuilt_and_answer_alike(artifact: Path, tiny_texts: list[str], tmp_path: Path) -> None:
    expected = mpcompile.load(artifact).classify(tiny_texts)[0]
    stale = tmp_path / "stale"
    mpcompile.load(artifact).save(stale)
    manifest = read_manifest(stale)
    for name in ("manifest.json", "manifest.sha256"):
        (stale / name).unlink()
    changed = {key: f"{value} of before" for key, value in manifest.fingerprint.items()}
    write_manifest(stale, dataclasses.replace(manifest, fingerprint=changed))
    rebuilt = mpcompile.load(stale, cache_dir=tmp_path)
    assert any(note.startswith("engines were rebuilt: ") for note in rebuilt.report.notes)
    np.testing.assert_allclose(rebuilt.classify(tiny_texts)[0], expected, atol=1e-5)


def test_artifact_is_tuned(
    artifact: Path, tiny_texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    from tests.mpcompile.tuning.fakes import SHORT_S, InProcess

    monkeypatch.setattr("mpcompile.tuning.tuner.ProcessChannel", InProcess)
    monkeypatch.setattr("mpcompile.tuning.batches.BLOCK_S", SHORT_S)
    result = tune(
        artifact, tmp_path / "tuned", texts=tiny_texts, budget_s=0.0, max_trials=1, progress=False,
        cache_dir=artifact.parent / "cache",
    )  # fmt: skip
    assert result.tuned_s <= result.start_s
    np.testing.assert_array_equal(
        mpcompile.load(tmp_path / "tuned").classify(tiny_texts)[0].argmax(1),
        mpcompile.load(artifact).classify(tiny_texts)[0].argmax(1),
    )


def test_machine_is_calibrated_for_it(job: tuple[str, str], tmp_path: Path) -> None:
    name, precision = job
    profile = find_profile(Target(find_backend(name), precision), Store(tmp_path), thorough=True, fresh=True)
    assert profile.num_samples > 4
    assert profile.rates.engine_s > 0
