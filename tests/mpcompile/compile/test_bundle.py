"""Tests of bundles: written here, built ahead of time by TensorRT-RTX, refused where they cannot run."""

import dataclasses
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

import mpcompile
from mpcompile.backends.tensorrt.build_log import EngineFacts
from mpcompile.backends.tensorrt.builder import BuilderOptions, BuiltEngine
from mpcompile.commands.cli import main
from mpcompile.compile import bundle as bundles
from mpcompile.compile.bundle import build_bundle, describe_engines, export_bundle, read_recipe
from mpcompile.contract.backend import Backend
from mpcompile.contract.profile import Range
from mpcompile.errors import ArtifactError, BackendError, SettingError
from mpcompile.graph.onnx_check import OnnxEngine
from mpcompile.runtime.artifact import read_manifest
from mpcompile.runtime.load import find_stale_maybe
from mpcompile.runtime.runtime import Runtime
from mpcompile.store.results import Store
from tests.models import NUM_LABELS
from tests.paths import ROOT

HERE = (sys.platform, platform.machine())
needs_rtx = pytest.mark.skipif(HERE != ("linux", "x86_64"), reason="the registry has TensorRT-RTX for x86 Linux")
AHEAD = BuilderOptions(("SM86", "SM89"))
FACTS = EngineFacts(("_gemm_mha_v2_myl1_3", "copy"), 2**20, 5, 7, 0.25)


@pytest.fixture(scope="module")
def exported(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    export_bundle(artifact, out, "jetson-agx-orin", "f32", max_batch_size=6)
    return out


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


@pytest.fixture
def fake_builder(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Builds in no time; the names of what was built."""
    built: list[str] = []

    def build(model: bytes, profiles: object, options: object, cache: bytes, name: str) -> BuiltEngine:
        built.append(name)
        return BuiltEngine(f"plan of {name}".encode(), FACTS, b"")

    monkeypatch.setattr(bundles, "build_engine", build)
    monkeypatch.setattr(bundles, "fingerprint", lambda options: {"tensorrt": "tensorrt 10.3", "gpu": "Orin 8.7"})
    return built


def test_bundle_holds_what_a_device_needs_and_no_more(exported: Path) -> None:
    files = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert files == {
        "README.md", "manifest.json", "manifest.sha256", "recipe.json", "report.json", "segments/0.onnx",
        "segments/1.onnx", "tokenization.json", "tokenizer.json",
    }  # fmt: skip


def test_bundle_answers_as_its_artifact(exported: Path, artifact: Path) -> None:
    texts = ["ban cel", "dip fos gur", "ban " * 20]
    expected = mpcompile.load(artifact)
    segments = read_manifest(exported).segments
    engines = [OnnxEngine(s, (exported / "segments" / f"{s.index}.onnx").read_bytes()) for s in segments]
    found = mpcompile.load(artifact)
    found.runtime = Runtime(segments, engines, NUM_LABELS, found.runtime.split_tokens)
    assert [p.label for p in found.predict(texts)] == [p.label for p in expected.predict(texts)]


def test_recipe_has_shorter_texts_behind_a_prune(exported: Path) -> None:
    recipe = read_recipe(exported)
    assert recipe.device == "jetson-agx-orin"
    assert [p.batch_size for p in recipe.profiles] == [Range(1, 6, 6)] * 2
    assert recipe.profiles[1].seq_len.min <= recipe.profiles[0].seq_len.min


def test_report_says_where_its_numbers_are_from(exported: Path) -> None:
    report = json.loads((exported / "report.json").read_text())
    assert any("not on jetson-agx-orin" in note for note in report["notes"])
    assert {row["point"]["precision"] for row in report["operating_points"]} == {"f32"}


@needs_rtx
def test_engines_are_built_ahead_of_time_without_torch(bundle: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from mpcompile.commands.cli import main\n"
        "assert main(['build', sys.argv[1], '--targets', 'SM86', 'SM89', '--cache-dir', sys.argv[2], '--json']) == 0\n"
        "assert not {'torch', 'transformers', 'onnx', 'passes'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", program, str(bundle), str(tmp_path / "cache")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout)
    assert len(facts) == 2 and all(engine["plan_bytes"] > 0 for engine in facts)
    manifest = read_manifest(bundle)
    assert manifest.fingerprint["targets"] == "SM86 SM89" and (bundle / "engines" / "1.plan").stat().st_size > 0


def test_killed_build_goes_on_behind_the_last_engine(bundle: Path, fake_builder: list[str], tmp_path: Path) -> None:
    def stop(share: float) -> None:
        raise KeyboardInterrupt

    store = Store(tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        build_bundle(bundle, store=store, on_progress=stop)
    assert not (bundle / "engines").exists()
    build_bundle(bundle, store=store)
    assert fake_builder == ["segment 0", "segment 1"]
    assert (bundle / "engines" / "0.plan").read_bytes() == b"plan of segment 0"


def test_engines_are_built_again_when_the_gpu_changes(
    bundle: Path, fake_builder: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_bundle(bundle, store=Store(tmp_path / "cache"))
    monkeypatch.setattr(bundles, "fingerprint", lambda options: {"tensorrt": "tensorrt 10.3", "gpu": "L4 8.9"})
    build_bundle(bundle, store=Store(tmp_path / "cache"))
    assert len(fake_builder) == 4


def test_failed_build_leaves_the_bundle_as_it_was(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, fake_builder: list[str], tmp_path: Path
) -> None:
    def fail(*arguments: object) -> BuiltEngine:
        raise BackendError("signal 11")

    monkeypatch.setattr(bundles, "build_engine", fail)
    with pytest.raises(BackendError, match="signal 11"):
        build_bundle(bundle, store=Store(tmp_path / "cache"))
    assert read_manifest(bundle).fingerprint == {}


def test_facts_are_shown() -> None:
    shown = describe_engines([FACTS])
    assert shown == "engine 0: 0.0 MiB, built in 0.2 s, 1 MiB of scratch memory, 1 fused attentions among 2 kernels"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "jetson-nano-2"], "jetson-nano-2"),
        (["--target", "jetson-agx-orin", "--precision", "int8"], "precision 'int8': expected f16, bf16, f32"),
        (["--target", "jetson-agx-orin", "--max-batch-size", "0"], "max batch size 0: a whole number from 1"),
    ],
)
def test_bad_settings_are_refused(
    options: list[str], message: str, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(artifact), "--out", str(tmp_path / "out"), *options]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_bundle_is_no_source_of_a_bundle(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is a bundle already"):
        export_bundle(exported, tmp_path / "out", "l4")


def test_artifact_is_no_bundle(artifact: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no recipe\.json in it; expected a bundle"):
        build_bundle(artifact, AHEAD)


def test_damaged_segment_is_refused(bundle: Path) -> None:
    (bundle / "segments" / "0.onnx").write_bytes(b"")
    with pytest.raises(ArtifactError, match="damaged"):
        build_bundle(bundle, AHEAD)


@pytest.mark.parametrize(
    ("before", "stale"),
    [
        ({"tensorrt": "10.3", "gpu": "Orin 8.7"}, None),
        ({"tensorrt": "10.3"}, None),
        ({"tensorrt": "10.2", "gpu": "Orin 8.7"}, r"its engines are stale \(tensorrt was 10\.2, is 10\.3\); build"),
        ({}, "a bundle without engines; build them here"),
    ],
    ids=["fresh", "a fact that its builder did not know", "stale", "never built"],
)
def test_bundle_is_taken_with_the_engines_of_this_machine_alone(
    bundle: Path, before: dict[str, str], stale: str | None
) -> None:
    manifest = dataclasses.replace(read_manifest(bundle), fingerprint=before)
    here = cast(Backend, SimpleNamespace(fingerprint=lambda: {"tensorrt": "10.3", "gpu": "Orin 8.7"}))
    if stale is None:
        assert find_stale_maybe(bundle, manifest, here) is None
    else:
        with pytest.raises(ArtifactError, match=stale):
            find_stale_maybe(bundle, manifest, here)


@pytest.mark.parametrize("device", ["this-cpu", "x86-cpu"])
def test_cpu_is_no_target(artifact: Path, tmp_path: Path, device: str) -> None:
    with pytest.raises(SettingError, match=device):
        export_bundle(artifact, tmp_path / "out", device)


@pytest.mark.skipif(HERE != ("linux", "x86_64"), reason="without TensorRT it is that which is missing")
def test_bundle_does_not_load_without_a_gpu(exported: Path) -> None:
    with pytest.raises(BackendError, match=r"cuda-python is not installed|cudaGetDeviceCount"):
        mpcompile.load(exported)
