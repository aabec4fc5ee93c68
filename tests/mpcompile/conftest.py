"""Fixtures of the compiler's tests: one optimized tiny model, and one artifact made by hand."""

import contextlib
import copy
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import mpcompile
from mpcompile.backends import find_backend
from mpcompile.contract.backend import BuildConfig
from mpcompile.contract.front import MeasuredPoint
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.profile import default_profile
from mpcompile.cost.forecast import Forecast
from mpcompile.graph.capture import CapturedModel, capture
from mpcompile.graph.segments import partition
from mpcompile.report.report import Report
from mpcompile.runtime.artifact import EXITS, MODEL, REPORT, Manifest, write_manifest
from mpcompile.runtime.requests import ModelSignature
from mpcompile.runtime.tokens import Tokenizer
from tests.models import build_head, captured_model
from tests.mpcompile.cost.made_up import keep_declared_profiles, make_forecast
from tests.mpcompile.remembered import Remembered

PRUNES = (0, 2)
POINTS = (
    OperatingPoint((3,), (), PRUNES, (1.0, 1.0)),
    OperatingPoint((1, 3), (0.6,), PRUNES, (1.0, 0.5)),
    OperatingPoint((1,), (), PRUNES, (0.5, 1.0)),
)
"""What the handmade artifact offers, slowest first."""


def describe_point(point: OperatingPoint, speedup: float, drop: float | None) -> MeasuredPoint:
    """A measured point whose original takes 8 ms."""
    return MeasuredPoint(
        point=point,
        predicted_s=0.009 / speedup,
        measured_s=0.008 / speedup,
        speedup=speedup,
        accuracy=None,
        agreement=None if drop is None else 1.0 - drop,
        drop=drop,
        flops_ratio=speedup,
        mean_exit_layer=3.0 / speedup,
    )


def build_report(points: Sequence[MeasuredPoint], chosen: int, backend: str) -> Report:
    """A report of a front that was made up."""
    row = points[chosen]
    return Report(
        target_speedup=2.0,
        measured_speedup=row.speedup,
        speedup_over_unpruned=row.speedup / 1.25,
        flops_ratio=row.flops_ratio,
        original_s=0.008,
        unpruned_s=0.0064,
        measured_s=row.measured_s,
        gains={"engine": 1.25, "exits": row.speedup / 1.25, "pruning": 1.0},
        accuracy=None,
        original_accuracy=None,
        agreement=row.agreement,
        certified_drop=0.05,
        confidence=0.95,
        measured_on="8 held-out texts",
        chosen=chosen,
        operating_points=tuple(points),
        workload={"batch_size": 1, "num_batches": 3, "mean_length": 12.5, "max_length": 22},
        machine={"backend": backend, "precision": "f32"},
    )


def write_artifact(
    folder: Path, backend_name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, captured: CapturedModel
) -> Path:
    """An artifact of two segments (an exit after layer 1, prunes in layers 0 and 2) with three operating points."""
    backend, config = find_backend(backend_name), BuildConfig()
    heads = {1: build_head(1)}
    segments = partition(captured, heads, PRUNES)
    (folder / "engines").mkdir(parents=True)
    for segment in segments:
        plan = backend.build(segment, default_profile(captured.max_length), config)
        (folder / "engines" / f"{segment.index}.plan").write_bytes(plan)
    copy.deepcopy(model).save_pretrained(folder / MODEL)
    weights = {f"1.{name}": value.contiguous() for name, value in heads[1].state_dict().items()}
    save_file(weights, folder / EXITS)
    Tokenizer.from_transformers(tokenizer, captured.max_length).save(folder)
    rows = [describe_point(*row) for row in zip(POINTS, (1.0, 2.0, 4.0), (0.0, 0.01, 0.05), strict=True)]
    (folder / REPORT).write_text(json.dumps(build_report(rows, 1, backend_name).to_json()))
    signature = ModelSignature(
        captured.input_names,
        captured.num_labels,
        captured.max_length,
        captured.vocab_size,
        captured.id2label,
        captured.task,
    )
    versions = {"mpcompile": mpcompile.__version__}
    write_manifest(
        folder, Manifest(backend_name, backend.fingerprint(), versions, signature, segments, (8.0, 8.0), True)
    )
    return folder


@pytest.fixture
def made_up() -> Forecast:
    """A forecast with every field filled: 8 ms unpruned, 2 ms in two engines."""
    return make_forecast()


@pytest.fixture(scope="session")
def measured_point() -> Callable[[OperatingPoint, float, float | None], MeasuredPoint]:
    """Makes a measured point of a point, a speedup and a drop."""
    return describe_point


@pytest.fixture(scope="session")
def make_report() -> Callable[[Sequence[MeasuredPoint], int, str], Report]:
    """Makes a report of a front, the index of the chosen point and the name of a backend."""
    return build_report


@pytest.fixture(scope="session")
def captured() -> CapturedModel:
    """The tiny BERT as a graph; shared, so leave it as it is."""
    return captured_model("bert")


@pytest.fixture(scope="session")
def artifact(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_bert: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    captured: CapturedModel,
) -> Path:
    """An artifact of two OpenVINO engines and three operating points; do not write to it."""
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("handmade") / "artifact"
    return write_artifact(folder, "openvino", tiny_bert, tiny_tokenizer, captured)


@pytest.fixture(scope="session")
def eager_artifact(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_bert: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    captured: CapturedModel,
) -> Path:
    """The same for the eager backend, which builds nothing; do not write to it."""
    folder = tmp_path_factory.mktemp("handmade") / "artifact"
    return write_artifact(folder, "eager", tiny_bert, tiny_tokenizer, captured)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of `optimize` in the tests keep slow results, shared by the processes that run tests.

    It has declared numbers as the measured profiles of this machine: measuring has tests of its own.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared_cache"
    keep_declared_profiles(folder)
    return folder


@pytest.fixture(autouse=True)
def no_user_cache(monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> None:
    """Keeps what has no cache_dir argument out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_dir))


@pytest.fixture(scope="session")
def remembered() -> Remembered:
    """What `capture_once` remembers."""
    return Remembered()


@pytest.fixture(scope="module")
def capture_once(remembered: Remembered) -> Iterator[None]:
    """Captures each model once for all jobs and rebuilds of a module: it takes more than half of their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpcompile.compile.job.capture", remembered.capture)
        patch.setattr("mpcompile.compile.rebuild.capture", remembered.capture)
        yield


@pytest.fixture
def capture_anew(capture_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes `capture_once` for a test of what `capture` does to the model."""
    monkeypatch.setattr("mpcompile.compile.job.capture", capture)


@contextlib.contextmanager
def timing_few_batches() -> Iterator[None]:
    """Jobs time three batches twice, however fast the model is: what they measure is not looked at.

    The original is not tried on both cores, which another worker of the tests is on, too: its threads wait spinning.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpcompile.compile.original.count_cores", lambda: 1)
        patch.setattr("mpcompile.compile.measure.workload.MAX_BATCHES", 3)
        patch.setattr("mpcompile.compile.measure.front.FRONT_RUNS", 2)
        patch.setattr("mpcompile.compile.measure.front.MOST_RUNS", 2)
        patch.setattr("mpcompile.compile.measure.front.STEADY", float("inf"))
        yield


@pytest.fixture(scope="module")
def few_batches() -> Iterator[None]:
    """Times the jobs of a module on few batches, which takes more than half of what capture leaves."""
    with timing_few_batches():
        yield


@pytest.fixture(scope="session")
def optimized(
    tiny_bert: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tiny_texts: list[str], cache_dir: Path
) -> mpcompile.OptimizedModel:
    """The tiny BERT, optimized for torch; shared, so leave its operating point as it is."""
    options = {"tokenizer": tiny_tokenizer, "backend": "eager", "progress": False, "cache_dir": cache_dir}
    with timing_few_batches():
        return mpcompile.optimize(copy.deepcopy(tiny_bert), 1.0, texts=tiny_texts, **options)
