"""Tests of the command line: exit status, standard output, standard error, files."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mpcompile
from mpcompile.commands.cli import main
from tests.paths import ROOT

pytestmark = pytest.mark.usefixtures("capture_once", "few_batches")
CSV_HEADER = ["text", "label"]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def texts_csv(tmp_path: Path, tiny_texts: list[str]) -> Path:
    path = tmp_path / "texts.csv"
    with path.open("w", newline="") as file:
        labels = ("neutral", "positive")
        csv.writer(file).writerows([CSV_HEADER, *((text, labels[i % 2]) for i, text in enumerate(tiny_texts))])
    return path


def optimize_arguments(model: object, out: Path, cache_dir: Path, *more: object) -> list[str]:
    options = ["--target-speedup", 1, "--backend", "eager", "--no-progress", "--cache-dir", cache_dir]
    return [str(argument) for argument in ("optimize", model, "--out", out, *options, *more)]


def run(capsys: Captured, *arguments: object) -> tuple[int, str, str]:
    """Status, standard output and standard error of a command."""
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def no_model(*_: object, **__: object) -> Any:
    raise AssertionError("slow work started")


# ---------------------------------------------------------------------------------- optimize


def test_optimize_writes_an_artifact_and_prints_the_report(
    tiny_model_dir: Path, texts_csv: Path, tmp_path: Path, cache_dir: Path, capsys: Captured
) -> None:
    out_dir = tmp_path / "out"
    status, out, _ = run(capsys, *optimize_arguments(tiny_model_dir, out_dir, cache_dir, "--texts", texts_csv))
    assert status == 0
    assert "measured speedup" in out and f"written to {out_dir}" in out
    assert len(mpcompile.load(out_dir).predict(["ban", "del fip"])) == 2


def test_optimize_prints_one_json_object(
    tiny_model_dir: Path, texts_csv: Path, tmp_path: Path, cache_dir: Path, capsys: Captured
) -> None:
    arguments = optimize_arguments(tiny_model_dir, tmp_path / "out", cache_dir, "--texts", texts_csv, "--json")
    status, out, _ = run(capsys, *arguments)
    values = json.loads(out)
    assert status == 0
    assert isinstance(values, dict) and values["accuracy"] is not None
    assert len(out.splitlines()) == 1


def test_optimize_refuses_a_folder_of_something_else_before_slow_work(
    tmp_path: Path, cache_dir: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mpcompile, "optimize", no_model)
    (tmp_path / "thesis.tex").write_text("years of work")
    status, out, err = run(capsys, *optimize_arguments("model", tmp_path, cache_dir))
    assert (status, out) == (1, "")
    assert "exists and is not an artifact of mpcompile; choose another folder or remove it" in err
    assert names_in(tmp_path) == ["thesis.tex"]


def test_optimize_refuses_a_folder_that_cannot_be_written_before_slow_work(
    tmp_path: Path, cache_dir: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mpcompile, "optimize", no_model)
    (tmp_path / "file").write_text("content")
    status, out, err = run(capsys, *optimize_arguments("model", tmp_path / "file" / "out", cache_dir))
    assert (status, out) == (1, "")
    assert "error:" in err and str(tmp_path / "file" / "out") in err


@pytest.mark.parametrize("target", ["0", "-1", "inf", "nan", "1000"])
def test_optimize_refuses_a_bad_target(tmp_path: Path, cache_dir: Path, capsys: Captured, target: str) -> None:
    arguments = ["optimize", "model", f"--target-speedup={target}", "--out", tmp_path / "out"]
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("error: target_speedup: ") and "a number from 1 to 100 is expected" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("review,label\ngood,positive\n", "no column 'text'; columns found: 'review', 'label'"),
        ('text,label\n"good,positive\n', "a quote is opened in this row and never closed"),
        ("text,label\ngood,movie,positive\n", "3 fields where the header has 2"),
    ],
    ids=["empty", "no text column", "open quote", "too many fields"],
)
def test_optimize_explains_a_bad_csv(
    tiny_model_dir: Path, tmp_path: Path, cache_dir: Path, capsys: Captured, content: str, message: str
) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(content)
    status, out, err = run(
        capsys, *optimize_arguments(tiny_model_dir, tmp_path / "out", cache_dir, "--texts", path, "--json")
    )
    assert (status, out) == (1, "")
    assert err.startswith(f"error: {path}") and message in err
    assert not (tmp_path / "out").exists()


def test_optimize_says_that_a_model_is_not_there(tmp_path: Path, cache_dir: Path, capsys: Captured) -> None:
    status, out, err = run(capsys, *optimize_arguments(tmp_path / "nowhere", tmp_path / "out", cache_dir))
    assert (status, out) == (1, "")
    assert "nowhere: no such folder" in err


def test_optimize_shows_the_front_when_a_required_target_is_out_of_reach(
    tiny_model_dir: Path, texts_csv: Path, tmp_path: Path, cache_dir: Path, capsys: Captured
) -> None:
    more = ["--texts", texts_csv, "--max-drop", 0.5, "--target-speedup", 100, "--require-target"]
    status, out, err = run(capsys, *optimize_arguments(tiny_model_dir, tmp_path / "out", cache_dir, *more))
    assert (status, out) == (1, "")
    assert "target_speedup=100 is not reached with max_drop=0.5" in err and "x measured" in err
    assert not (tmp_path / "out").exists()


def test_ctrl_c_leaves_nothing(
    tmp_path: Path, cache_dir: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mpcompile, "optimize", interrupt)
    status, out, err = run(capsys, *optimize_arguments("model", tmp_path / "out", cache_dir))
    assert (status, out) == (130, "")
    assert "interrupted" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["optimise"], ["optimize", "model"], ["predict"]], ids=str)
def test_bad_usage_has_status_2(arguments: list[str], capsys: Captured) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "usage: mpcompile" in capsys.readouterr().err


# ---------------------------------------------------------------------------------- predict


def test_predict_writes_a_row_per_text_in_order(
    artifact: Path, texts_csv: Path, tiny_texts: list[str], tmp_path: Path, capsys: Captured
) -> None:
    status, out, _ = run(capsys, "predict", artifact, texts_csv, "--out", tmp_path / "answers.csv")
    assert status == 0 and out == f"40 answers written to {tmp_path / 'answers.csv'}\n"
    rows = read_csv(tmp_path / "answers.csv")
    expected = mpcompile.load(artifact).predict(tiny_texts)
    assert [row["label"] for row in rows] == [prediction.label for prediction in expected]
    assert [int(row["exit_layer"]) for row in rows] == [prediction.exit_layer for prediction in expected]
    assert [float(row["score"]) for row in rows] == pytest.approx([p.score for p in expected], abs=1e-5)


def test_predict_needs_no_labels(artifact: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "texts.csv").write_text("text,text_pair\nban,del\nfip,\n")
    status, _, _ = run(capsys, "predict", artifact, tmp_path / "texts.csv", "--out", tmp_path / "answers.csv")
    assert status == 0 and len(read_csv(tmp_path / "answers.csv")) == 2


def test_predict_runs_at_another_point(artifact: Path, texts_csv: Path, tmp_path: Path, capsys: Captured) -> None:
    status, _, _ = run(capsys, "predict", artifact, texts_csv, "--out", tmp_path / "answers.csv", "--speedup", 4)
    assert status == 0
    assert {row["exit_layer"] for row in read_csv(tmp_path / "answers.csv")} == {"1"}


def test_predict_leaves_nothing_beside_its_answers(
    artifact: Path, texts_csv: Path, tmp_path: Path, capsys: Captured
) -> None:
    run(capsys, "predict", artifact, texts_csv, "--out", tmp_path / "answers.csv")
    assert names_in(tmp_path) == ["answers.csv", "texts.csv"]


@pytest.mark.parametrize("out", ["nowhere/answers.csv", "texts.csv/answers.csv", "."])
def test_predict_says_that_its_answers_cannot_be_written(
    artifact: Path, texts_csv: Path, tmp_path: Path, capsys: Captured, out: str
) -> None:
    status, shown, err = run(capsys, "predict", artifact, texts_csv, "--out", tmp_path / out)
    assert (status, shown) == (1, "")
    assert err.startswith("error: --out") and "cannot be written" in err
    assert names_in(tmp_path) == ["texts.csv"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--batch-size", 0, "batch_size: 0"), ("--speedup", "nan", "target_speedup: nan")],
)
def test_predict_refuses_a_bad_option(
    artifact: Path, texts_csv: Path, tmp_path: Path, capsys: Captured, option: str, value: object, message: str
) -> None:
    out_file = tmp_path / "answers.csv"
    status, out, err = run(capsys, "predict", artifact, texts_csv, "--out", out_file, option, value)
    assert (status, out) == (1, "")
    assert message in err
    assert not out_file.exists()


def test_predict_says_that_a_file_is_not_there(artifact: Path, tmp_path: Path, capsys: Captured) -> None:
    status, _, err = run(capsys, "predict", artifact, tmp_path / "no.csv", "--out", tmp_path / "answers.csv")
    assert status == 1
    assert "no.csv: no such file" in err


def test_predict_refuses_what_is_no_artifact(
    tiny_model_dir: Path, texts_csv: Path, tmp_path: Path, capsys: Captured
) -> None:
    status, _, err = run(capsys, "predict", tiny_model_dir, texts_csv, "--out", tmp_path / "answers.csv")
    assert status == 1
    assert "no manifest.json in it" in err


# ---------------------------------------------------------------------------------- inspect, doctor


def test_inspect_shows_segments_and_report(artifact: Path, capsys: Captured) -> None:
    status, out, _ = run(capsys, "inspect", artifact)
    assert status == 0
    for part in ("3 classes (negative, neutral, positive)", "segments (openvino)", "measured speedup", "2.00x"):
        assert part in out


def test_inspect_prints_one_json_object(artifact: Path, capsys: Captured) -> None:
    status, out, _ = run(capsys, "inspect", artifact, "--json")
    values = json.loads(out)
    assert status == 0
    assert values["backend"] == "openvino" and len(values["segments"]) == 2 and values["report"]["chosen"] == 1


def test_inspect_refuses_what_is_no_artifact(tmp_path: Path, capsys: Captured) -> None:
    status, out, err = run(capsys, "inspect", tmp_path, "--json")
    assert (status, out) == (1, "")
    assert "no manifest.json in it; expected a folder that mpcompile wrote" in err


def test_doctor_shows_versions_and_backends(capsys: Captured) -> None:
    status, out, _ = run(capsys, "doctor")
    assert status == 0
    for part in ("machine", "cores", "python", "openvino", "backend eager"):
        assert part in out


def test_doctor_prints_one_json_object(capsys: Captured) -> None:
    status, out, _ = run(capsys, "doctor", "--json")
    values = json.loads(out)
    assert status == 0
    assert set(values["backends"]) == {"openvino", "eager", "inductor", "tensorrt"}
    assert values["cores"] >= 1


# ---------------------------------------------------------------------------------- report


def test_report_writes_the_page(artifact: Path, tmp_path: Path, capsys: Captured) -> None:
    status, out, _ = run(capsys, "report", artifact, "--out", tmp_path / "report.html")
    assert (status, out) == (0, f"written to {tmp_path / 'report.html'}\n")
    assert (tmp_path / "report.html").read_text("utf-8").startswith("<!DOCTYPE html>")


def test_report_replaces_the_page_that_was_there(artifact: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "report.html").write_text("before")
    assert run(capsys, "report", artifact, "--out", tmp_path / "report.html")[0] == 0
    assert "Where the speed comes from" in (tmp_path / "report.html").read_text("utf-8")
    assert names_in(tmp_path) == ["report.html"]


def test_report_refuses_a_folder(artifact: Path, tmp_path: Path, capsys: Captured) -> None:
    status, out, err = run(capsys, "report", artifact, "--out", tmp_path)
    assert (status, out) == (1, "")
    assert f"--out {tmp_path}: a folder; give the name of a file" in err
    assert names_in(tmp_path) == []


def test_report_does_not_write_into_the_artifact(artifact: Path, capsys: Captured) -> None:
    before = names_in(artifact)
    status, _, err = run(capsys, "report", artifact, "--out", artifact / "again.html")
    assert status == 1 and "lies in the artifact" in err
    assert names_in(artifact) == before


def test_report_says_that_the_page_cannot_be_written(artifact: Path, tmp_path: Path, capsys: Captured) -> None:
    status, _, err = run(capsys, "report", artifact, "--out", tmp_path / "nowhere" / "report.html")
    assert status == 1 and "cannot be written" in err
    assert names_in(tmp_path) == []


def test_report_refuses_what_is_no_artifact(tiny_model_dir: Path, tmp_path: Path, capsys: Captured) -> None:
    status, _, err = run(capsys, "report", tiny_model_dir, "--out", tmp_path / "report.html")
    assert status == 1 and "no manifest.json in it" in err


def test_report_explains_that_plotly_is_missing(
    artifact: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    status, _, err = run(capsys, "report", artifact, "--out", tmp_path / "report.html")
    assert status == 1 and "pip install mpcompile[build]" in err
    assert names_in(tmp_path) == []


# ---------------------------------------------------------------------------------- bench


def bench_arguments(artifact: Path, test: Path, *more: object) -> list[object]:
    return ["bench", artifact, "--test", test, "--batch-size", 1, 4, "--runs", 1, "--max-texts", 12, *more]


def test_bench_shows_every_system(eager_artifact: Path, texts_csv: Path, capsys: Captured) -> None:
    status, out, _ = run(capsys, *bench_arguments(eager_artifact, texts_csv))
    assert status == 0
    for part in ("original", "unpruned", "point 0", "point 2", "1.00x"):
        assert part in out


def test_bench_prints_one_json_object(eager_artifact: Path, texts_csv: Path, capsys: Captured) -> None:
    status, out, _ = run(capsys, *bench_arguments(eager_artifact, texts_csv, "--json"))
    assert status == 0
    rows = json.loads(out)["rows"]
    assert [row["batch_size"] for row in rows if row["system"] == "unpruned, grouped by length"] == [4]
    assert {row["system"] for row in rows} >= {"original", "unpruned", "point 0", "point 2"}


@pytest.mark.parametrize("option", [["--runs", 0], ["--batch-size", 0], ["--max-texts", 0]], ids=str)
def test_bench_refuses_a_bad_option(
    eager_artifact: Path, texts_csv: Path, capsys: Captured, option: list[object]
) -> None:
    status, out, err = run(capsys, *bench_arguments(eager_artifact, texts_csv, *option))
    assert (status, out) == (1, "")
    assert err.startswith("error: ")


# ---------------------------------------------------------------------------------- consoles


@pytest.mark.skipif(sys.platform != "linux", reason="sets the locale of Linux")
def test_names_beyond_ascii_end_no_command(tiny_model_dir: Path, tmp_path: Path, cache_dir: Path) -> None:
    """Neither file names nor a strict console are anything but ASCII."""
    console = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    model, out = Path(shutil.copytree(tiny_model_dir, tmp_path / "m\u00f6dell")), tmp_path / "\u597d"
    texts = tmp_path / "t\u00e4xte.csv"
    texts.write_text("text\nban del\nfip\n", "utf-8")
    answers = tmp_path / "\u00e4.csv"
    for arguments in (optimize_arguments(model, out, cache_dir), ["predict", out, texts, "--out", answers]):
        done = subprocess.run(
            [sys.executable, "-m", "mpcompile.commands.cli", *map(str, arguments)], cwd=ROOT,
            env={**os.environ, **console}, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    assert "m\u00f6dell" in (out / "report.html").read_text("utf-8")
    assert len(read_csv(answers)) == 2
