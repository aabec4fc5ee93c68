"""Tests of the commands `plan` and `calibrate`: exit status, standard output, standard error, files."""

import csv
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mpcompile
from mpcompile.backends.openvino.backend import OpenVinoBackend
from mpcompile.backends.torch.eager import EagerBackend
from mpcompile.commands.cli import main
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.precision import fastest_float
from mpcompile.cost.forecast import Forecast, Memory, SegmentTime
from mpcompile.cost.rates import Profile
from mpcompile.errors import BackendError

Captured = pytest.CaptureFixture[str]
MADE_UP = Forecast(
    model="tiny",
    device="l4",
    precision="f16",
    batch_size=1,
    mean_length=20.0,
    target_speedup=2.0,
    unpruned_s=0.008,
    floor_s=0.001,
    reachable_speedup=4.0,
    speedup=2.0,
    point=OperatingPoint((3,), (), (1, 2), (0.5, 0.5)),
    exit_share=0.0,
    segments=(SegmentTime(0, 3, 1.0, 20.0, 5.0, 0.004),),
    memory=Memory(1e8, 1e6, 5e8, 24e9),
    fixed_share=0.1,
)


def run(capsys: Captured, *arguments: object) -> tuple[int, str, str]:
    """Status, standard output and standard error of a command."""
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def plan_arguments(model: object, cache_dir: Path, *more: object) -> list[object]:
    options = ["--device", "l4", "--target-speedup", 1, "--no-progress", "--cache-dir", cache_dir]
    return ["plan", model, *options, *more]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refuse(*_: object, **__: object) -> Any:
    raise AssertionError("slow work started")


@pytest.fixture
def quick_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers with a plan that was made up."""
    monkeypatch.setattr(mpcompile, "plan", lambda *_, **__: MADE_UP)


@pytest.fixture
def no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where planning starts."""
    monkeypatch.setattr(mpcompile, "plan", refuse)


# ---------------------------------------------------------------------------------- plan


def test_plan_prints_one_json_object_and_writes_the_same(
    tiny_model_dir: Path, tmp_path: Path, cache_dir: Path, capsys: Captured
) -> None:
    out_file = tmp_path / "plan.json"
    arguments = plan_arguments(tiny_model_dir, cache_dir, "--json", "--out", out_file)
    status, out, err = run(capsys, *arguments)
    values = json.loads(out)
    assert (status, err) == (0, "")
    assert values == json.loads(out_file.read_text())
    assert Forecast.load(out_file).to_json() == values
    assert (values["device"], values["model"]) == ("l4", str(tiny_model_dir))
    assert names_in(tmp_path) == ["plan.json"]


def test_plan_is_printed_for_people(
    tiny_model_dir: Path, tmp_path: Path, cache_dir: Path, capsys: Captured, tiny_texts: list[str]
) -> None:
    path = tmp_path / "texts.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in tiny_texts)])
    status, out, _ = run(capsys, *plan_arguments(tiny_model_dir, cache_dir, "--texts", path, "--batch-size", 4))
    assert status == 0
    for part in ("l4, batch of 4, 12 tokens on average, f16", "floor", "reachable", "asked: 1x", "engines", "note:"):
        assert part in out
    assert names_in(tmp_path) == ["texts.csv"]


def test_plan_neither_builds_nor_runs_an_engine(
    tiny_model_dir: Path, cache_dir: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    for backend in (OpenVinoBackend, EagerBackend):
        monkeypatch.setattr(backend, "build", refuse)
        monkeypatch.setattr(backend, "load", refuse)
    monkeypatch.setattr("mpcompile.cost.calibration.calibrate", refuse)
    arguments = ["plan", tiny_model_dir, "--device", "cpu", "--target-speedup", 1.1, "--no-progress"]
    status, out, _ = run(capsys, *arguments, "--cache-dir", cache_dir / "empty")
    assert status == 0
    assert "(asked: 1.1x)" in out


def test_plan_replaces_the_file_that_was_there(
    quick_plan: None, tmp_path: Path, cache_dir: Path, capsys: Captured
) -> None:
    (tmp_path / "plan.json").write_text("before")
    assert run(capsys, *plan_arguments("tiny", cache_dir, "--out", tmp_path / "plan.json"))[0] == 0
    assert Forecast.load(tmp_path / "plan.json") == MADE_UP
    assert names_in(tmp_path) == ["plan.json"]


@pytest.mark.parametrize("out", ["nowhere/plan.json", "file/plan.json", "a" * 300])
def test_plan_says_that_its_file_cannot_be_written(
    quick_plan: None, tmp_path: Path, cache_dir: Path, capsys: Captured, out: str
) -> None:
    (tmp_path / "file").write_text("content")
    status, shown, err = run(capsys, *plan_arguments("tiny", cache_dir, "--out", tmp_path / out))
    assert (status, shown) == (1, "")
    assert err.startswith(f"error: --out {tmp_path / out}: cannot be written: ")
    assert names_in(tmp_path) == ["file"]


@pytest.mark.parametrize("out", [".", "", "/", "pipe"])
def test_plan_refuses_what_is_no_file_before_slow_work(
    no_plan: None, tmp_path: Path, cache_dir: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    status, shown, err = run(capsys, *plan_arguments("tiny", cache_dir, "--out", out))
    assert (status, shown) == (1, "")
    assert err == f"error: --out {Path(out)}: cannot be written: it is no file; give the name of one\n"
    assert (tmp_path / "pipe").is_fifo() and names_in(tmp_path) == ["pipe"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target-speedup", "nan"], "target_speedup: nan; a number from 1 to 100 is expected"),
        (["--target-speedup", "0"], "target_speedup: 0.0; "),
        (["--target-speedup", "1e3"], "target_speedup: 1000.0; "),
        (["--batch-size", "0"], "batch_size: 0; a whole number from 1 to 4096 is expected"),
        (["--precision", "f64"], "precision: 'f64'; l4 has f32"),
        (["--device", "l44"], "device: 'l44' is not known; did you mean 'l4'? Known are a100, cpu"),
        (["--devices", "/nowhere.toml"], "/nowhere.toml: No such file"),
        ([], "nowhere: no such folder"),
    ],
    ids=str,
)
def test_plan_explains_a_bad_value(
    tmp_path: Path, cache_dir: Path, capsys: Captured, options: list[str], message: str
) -> None:
    arguments = plan_arguments(tmp_path / "nowhere", cache_dir, "--out", tmp_path / "plan.json", *options)
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("error: ") and message in err
    assert names_in(tmp_path) == []


def test_plan_writes_nothing_when_the_target_is_out_of_reach(
    tiny_model_dir: Path, tmp_path: Path, cache_dir: Path, capsys: Captured
) -> None:
    more = ["--target-speedup", 100, "--out", tmp_path / "plan.json", "--json"]
    status, out, err = run(capsys, *plan_arguments(tiny_model_dir, cache_dir, *more))
    assert (status, out) == (1, "")
    assert err.startswith("error: target_speedup=100: the best reachable on l4 f16 is ")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("place", ["mpcompile.plan", "mpcompile.commands.output.os.replace"])
def test_ctrl_c_leaves_no_plan(
    tmp_path: Path, cache_dir: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch, quick_plan: None, place: str
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupt)
    status, out, err = run(capsys, *plan_arguments("tiny", cache_dir, "--out", tmp_path / "plan.json"))
    assert (status, out) == (130, "")
    assert "interrupted" in err
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    "arguments",
    [["plan", "model"], ["plan", "model", "--device", "l4"], ["plan", "--device", "l4", "--target-speedup", "2"]],
    ids=str,
)
def test_plan_needs_model_device_and_target(arguments: list[str], capsys: Captured) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "usage: mpcompile plan" in capsys.readouterr().err


# ---------------------------------------------------------------------------------- calibrate


class Calibration:
    """Stands in for `calibrate`, which takes a minute: launches take a second longer each time."""

    def __init__(self) -> None:
        self.precisions: list[str] = []

    def __call__(self, *arguments: Any, on_step: Callable[[float], None]) -> Profile:
        target, declared, _ = arguments
        on_step(1.0)
        self.precisions.append(target.precision)
        return Profile(dataclasses.replace(declared, launch_s=float(len(self.precisions))), 0.031, 0.12, 45)


@pytest.fixture
def calibration(monkeypatch: pytest.MonkeyPatch) -> Calibration:
    calibration = Calibration()
    monkeypatch.setattr("mpcompile.cost.calibration.calibrate", calibration)
    return calibration


def calibrate_arguments(folder: Path, *more: object) -> list[object]:
    return ["calibrate", "--backend", "eager", "--no-progress", "--cache-dir", folder, *more]


def test_calibrate_prints_one_json_object(calibration: Calibration, tmp_path: Path, capsys: Captured) -> None:
    status, out, err = run(capsys, *calibrate_arguments(tmp_path, "--json"))
    values = json.loads(out)
    assert (status, err, len(out.splitlines())) == (0, "", 1)
    assert (values["median_error"], values["p95_error"], values["num_samples"]) == (0.031, 0.12, 45)
    assert values["rates"]["launch_s"] == 1.0


def test_calibrate_describes_the_machine(calibration: Calibration, tmp_path: Path, capsys: Captured) -> None:
    status, out, _ = run(capsys, *calibrate_arguments(tmp_path))
    assert status == 0
    for part in ("this machine, eager, cpu f32", "Gflop/s", "GB/s", "median error 3.1%, 95th percentile 12.0%"):
        assert part in out


def test_calibrate_measures_once(calibration: Calibration, tmp_path: Path, capsys: Captured) -> None:
    first, second = (run(capsys, *calibrate_arguments(tmp_path, "--json"))[1] for _ in range(2))
    assert first == second
    assert len(calibration.precisions) == 1


def test_calibrate_measures_again_when_asked_to(calibration: Calibration, tmp_path: Path, capsys: Captured) -> None:
    launches = []
    for more in ([], ["--fresh"], []):
        _, out, _ = run(capsys, *calibrate_arguments(tmp_path, "--json", *more))
        launches.append(json.loads(out)["rates"]["launch_s"])
    assert launches == [1.0, 2.0, 2.0]


def test_calibrate_takes_the_fastest_native_precision(
    calibration: Calibration, tmp_path: Path, capsys: Captured
) -> None:
    status, _, _ = run(capsys, "calibrate", "--no-progress", "--cache-dir", tmp_path)
    assert status == 0
    assert calibration.precisions == [fastest_float(OpenVinoBackend().precisions())]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "bf16"], "--precision: 'bf16'; eager runs f32 here, or auto"),
        (["--precision", "int8"], "--precision: 'int8'; eager runs f32 here, or auto"),
        (["--precision", ""], "--precision: ''; eager runs f32 here, or auto"),
        (["--backend", "tensorflow"], "backend 'tensorflow': expected 'auto' or one of 'openvino', 'eager'"),
    ],
    ids=str,
)
def test_calibrate_explains_a_bad_value(
    calibration: Calibration, tmp_path: Path, capsys: Captured, options: list[str], message: str
) -> None:
    status, out, err = run(capsys, *calibrate_arguments(tmp_path, *options))
    assert (status, out) == (1, "")
    assert err.startswith("error: ") and message in err
    assert calibration.precisions == []
    assert names_in(tmp_path) == []


def test_calibrate_says_that_an_engine_cannot_be_built(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BackendError("segment 0: no")

    monkeypatch.setattr("mpcompile.cost.calibration.calibrate", fail)
    assert run(capsys, *calibrate_arguments(tmp_path)) == (1, "", "error: segment 0: no\n")
    assert names_in(tmp_path) == []


def test_ctrl_c_leaves_no_profile(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mpcompile.cost.calibration.calibrate", interrupt)
    status, out, err = run(capsys, *calibrate_arguments(tmp_path))
    assert (status, out) == (130, "")
    assert "interrupted" in err
    assert names_in(tmp_path) == []


def test_ctrl_c_keeps_the_profile_of_before(
    calibration: Calibration, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    _, before, _ = run(capsys, *calibrate_arguments(tmp_path, "--json"))
    monkeypatch.setattr("mpcompile.cost.calibration.calibrate", interrupt)
    assert run(capsys, *calibrate_arguments(tmp_path, "--fresh"))[0] == 130
    assert run(capsys, *calibrate_arguments(tmp_path, "--json"))[1] == before


def test_calibrate_shows_its_profile_although_it_cannot_be_kept(
    calibration: Calibration, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "file").write_text("content")
    status, out, _ = run(capsys, *calibrate_arguments(tmp_path / "file" / "cache", "--json"))
    assert status == 0
    assert json.loads(out)["num_samples"] == 45
