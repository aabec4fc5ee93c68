"""Tests of what a plan keeps of a model: the second plan opens nothing, and nothing stale is taken for true."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mpcompile
from mpcompile.cost.forecast import Forecast
from mpcompile.cost.regions import GraphWork
from tests.paths import ROOT

Plan = Callable[..., Forecast]


@pytest.fixture(scope="module")
def known(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that knows the tiny BERT for an L4, and the lengths of two texts."""
    cache_dir = tmp_path_factory.mktemp("known")
    for workload in ({}, {"texts": ["good bad", "good"]}):
        mpcompile.plan(str(tiny_model_dir), "l4", 1.0, cache_dir=cache_dir, progress=False, **workload)  # type: ignore[arg-type]
    return cache_dir


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the model's folder, to change."""
    return shutil.copytree(tiny_model_dir, tmp_path / "model")


@pytest.fixture
def anew(folder: Path, tmp_path: Path) -> Forecast:
    """The folder's plan, by a store that knows nothing."""
    return mpcompile.plan(folder, "l4", 1.0, cache_dir=tmp_path / "empty", progress=False)


@pytest.fixture
def plan_unopened(folder: Path, known: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """`plan` of the folder for an L4, where opening the model fails."""

    def refuse(*_: object) -> NoReturn:
        raise LookupError("opened")

    monkeypatch.setattr("mpcompile.compile.original.open_original", refuse)
    return lambda **options: mpcompile.plan(folder, "l4", 1.0, cache_dir=known, progress=False, **options)


def test_second_plan_is_the_first_one(anew: Forecast, plan_unopened: Plan) -> None:
    assert plan_unopened() == anew


def test_lengths_of_the_same_texts_are_known(plan_unopened: Plan) -> None:
    assert plan_unopened(texts=["good bad", "good"]).mean_length == 3.5


def test_other_texts_are_counted(plan_unopened: Plan) -> None:
    with pytest.raises(LookupError):
        plan_unopened(texts=["good bad", "good good"])


def test_other_device_of_another_fusion_is_counted(plan_unopened: Plan, folder: Path, known: Path) -> None:
    with pytest.raises(LookupError):
        mpcompile.plan(folder, "cpu", 1.0, cache_dir=known, progress=False)


def test_same_shapes_with_other_weights_are_known(plan_unopened: Plan, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    plan_unopened()


def rewrite_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_act": "relu"}))


def widen(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "more": np.zeros(3, np.float32)}, folder / "model.safetensors")


CHANGES: dict[str, Callable[[Path], Any]] = {
    "another config": rewrite_config,
    "other weights": widen,
    "a file of its own code": lambda folder: (folder / "modeling.py").write_text("x = 1\n"),
    "modules": lambda folder: (folder / "modules.json").write_text("[]"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_folder_is_opened_again(change: str, plan_unopened: Plan, folder: Path) -> None:
    CHANGES[change](folder)
    with pytest.raises(LookupError):
        plan_unopened()


def test_edited_source_counts_again(plan_unopened: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpcompile.planning.facts.digest_source", lambda: "edited")
    with pytest.raises(LookupError):
        plan_unopened()


def test_second_plan_of_the_command_imports_nothing_slow(tiny_model_dir: Path, known: Path) -> None:
    program = (
        "import sys\n"
        "from mpcompile.commands.cli import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print({'torch', 'transformers', 'sympy', 'scipy', 'openvino'} & set(sys.modules), file=sys.stderr)\n"
    )
    command = ["plan", str(tiny_model_dir), "--device", "l4", "--target-speedup", "1", "--cache-dir", str(known)]
    done = subprocess.run(
        [sys.executable, "-c", program, *command, "--no-progress"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "l4" in done.stdout
    assert done.stderr == "set()\n"


@pytest.mark.parametrize("fusion", ["TensorRT", "OpenVINO"])
def test_work_is_read_back(works: dict[str, GraphWork], fusion: str) -> None:
    work = works[fusion]
    assert GraphWork.from_json(json.loads(json.dumps(work.to_json()))) == work
