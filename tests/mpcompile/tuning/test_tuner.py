"""Tests of `tune` from end to end, on tiny artifacts and with real processes."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import optuna
import pytest
from optuna.trial import TrialState

import mpcompile
from mpcompile.commands.cli import main
from mpcompile.errors import ArtifactError, DataError, SettingError, StudyError, TuningError
from mpcompile.runtime.artifact import read_manifest
from mpcompile.tuning import tune
from mpcompile.tuning.final import FINAL_ROUNDS, Decision
from mpcompile.tuning.measurer import MeasureFailed
from mpcompile.tuning.result import TuneResult
from mpcompile.tuning.variant import Variant
from tests.mpcompile.cost.made_up import keep_declared_profiles
from tests.mpcompile.tuning.fakes import SHORT_S, InProcess
from tests.paths import ROOT

FASTER = Variant(0, "f32", num_threads=1, num_streams=1, cuts="point", split_scale=0.5)
PROGRAM = f"""
import sys
import mpcompile.tuning.batches
from mpcompile.commands.cli import main
mpcompile.tuning.batches.BLOCK_S = {SHORT_S}
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""
"""`mpcompile` on the command line, with short rounds."""


def run(directory: Path, out: Path, cache_dir: Path, **options: Any) -> TuneResult:
    storage = f"sqlite:///{cache_dir}/{out.parent.name}.db"  # no other test has a study of the same artifact there
    options = {"storage": storage, "budget_s": 600.0, "max_trials": 1, "progress": False, "batch_size": 4, **options}
    return tune(directory, out, cache_dir=cache_dir, **options)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def won(monkeypatch: pytest.MonkeyPatch, in_process: None) -> None:
    """Lets a variant win that a tiny model on a busy machine would not single out."""
    decision = Decision(FASTER, 0.010, 0.008, 20, FINAL_ROUNDS)
    monkeypatch.setattr("mpcompile.tuning.tuner.decide", lambda *_: decision)


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch, in_process: None) -> None:
    """Lets nothing beat the start."""
    monkeypatch.setattr(
        "mpcompile.tuning.tuner.decide", lambda study, measurer, start, on_round: Decision(start, 0.01, 0.01, 0, 21)
    )


def test_tuning_measures_and_never_loses(
    artifact: Path, tmp_path: Path, cache_dir: Path, tiny_texts: list[str]
) -> None:
    result = run(artifact, tmp_path / "out", cache_dir, texts=tiny_texts, max_trials=2)
    assert result.counts.total == 2 and result.counts.failed == 0
    assert result.tuned_s <= result.start_s and result.speedup >= 1.0
    assert result.speedup_over_original > 0.0
    loaded = mpcompile.load(tmp_path / "out")
    assert len(loaded.predict(tiny_texts)) == len(tiny_texts)


def test_result_is_json(artifact: Path, tmp_path: Path, cache_dir: Path, lost: None) -> None:
    result = run(artifact, tmp_path / "out", cache_dir, max_trials=0)
    values = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert {"start_s", "tuned_s", "speedup", "speedup_over_original", "variant", "trials", "is_faster"} <= set(values)
    assert values["trials"]["total"] == 0


def test_start_that_nothing_beats_is_returned_as_it_is(
    artifact: Path, tmp_path: Path, cache_dir: Path, lost: None
) -> None:
    result = run(artifact, tmp_path / "out", cache_dir, max_trials=0)
    assert not result.is_faster and "unchanged" in result.describe()
    assert contents(tmp_path / "out") == contents(artifact)


@pytest.fixture
def tuned(artifact: Path, tmp_path: Path, cache_dir: Path, won: None) -> Path:
    run(artifact, tmp_path / "tuned", cache_dir, max_trials=0)
    return tmp_path / "tuned"


def test_tuned_artifact_keeps_its_settings(tuned: Path) -> None:
    manifest = read_manifest(tuned)
    assert manifest.config.num_threads == 1
    assert [segment.exit_layer for segment in manifest.segments] == [3]
    assert manifest.split_tokens == (4.0,)
    assert mpcompile.load(tuned).runtime.split_tokens == (4.0,)


def test_tuned_artifact_answers_as_the_one_before(tuned: Path, artifact: Path, tiny_texts: list[str]) -> None:
    before = mpcompile.load(artifact)
    before._current = FASTER.point
    expected = [(p.label, round(p.score, 4), p.exit_layer) for p in before.predict(tiny_texts)]
    assert [(p.label, round(p.score, 4), p.exit_layer) for p in mpcompile.load(tuned).predict(tiny_texts)] == expected


def test_front_is_limited_to_what_the_cuts_allow(tuned: Path) -> None:
    report = mpcompile.load(tuned).report
    assert len(report.operating_points) == 1 and report.chosen == 0
    assert any("2 operating points need exits or prunes that were merged away" in note for note in report.notes)


def test_report_is_of_the_tuned_artifact(tuned: Path, artifact: Path) -> None:
    before, report = mpcompile.load(artifact).report, mpcompile.load(tuned).report
    row = report.operating_points[report.chosen]
    assert row.measured_s == report.measured_s != before.operating_points[FASTER.point].measured_s
    assert report.measured_speedup == pytest.approx(report.original_s / report.measured_s)
    gain = 1.0
    for factor in report.gains.values():
        gain *= factor
    assert gain == pytest.approx(report.measured_speedup)
    assert report.workload["batch_size"] == 4
    assert any("tuned on this machine" in note and "1.25x over the start" in note for note in report.notes)


def test_report_of_another_point_certifies_nothing(tuned: Path) -> None:
    report = mpcompile.load(tuned).report
    assert report.certified_drop is None and report.agreement == 1.0
    assert any("loss is not certified" in note for note in report.notes)


def test_tuned_artifact_can_be_rebuilt_from_its_weights(tuned: Path, tiny_texts: list[str]) -> None:
    from mpcompile.compile.rebuild import rebuild_segments

    manifest = read_manifest(tuned)
    assert [segment.exit_layer for segment in rebuild_segments(tuned, manifest)] == [3]


def test_tuned_artifact_can_be_tuned_again(tuned: Path, tmp_path: Path, cache_dir: Path, lost: None) -> None:
    result = run(tuned, tmp_path / "again", cache_dir, max_trials=0)
    assert result.start == Variant(0, "f32", num_threads=1)


def test_artifact_can_be_tuned_in_place(artifact: Path, tmp_path: Path, cache_dir: Path, won: None) -> None:
    place = tmp_path / "artifact"
    shutil.copytree(artifact, place)
    run(place, place, cache_dir, max_trials=0)
    assert read_manifest(place).config.num_threads == 1
    assert names_in(tmp_path) == ["artifact"]


def test_without_texts_only_what_changes_no_answer_is_tried(
    artifact: Path, tmp_path: Path, cache_dir: Path, lost: None
) -> None:
    run(artifact, tmp_path / "out", cache_dir, max_trials=4, storage=f"sqlite:///{tmp_path}/s.db", study="s")
    trials = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/s.db").trials
    assert len(trials) == 4
    assert {(trial.params["point"], trial.params["precision"]) for trial in trials} == {(1, "f32")}


def test_disk_that_is_full_leaves_nothing_half_written(
    artifact: Path, tmp_path: Path, cache_dir: Path, won: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mpcompile.tuning.writing.write_manifest", full)
    with pytest.raises(ArtifactError, match=r"cannot be written.*No space left on device"):
        run(artifact, tmp_path / "out", cache_dir, max_trials=0)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, SettingError, "batch_size: 0; a whole number from 1 to 4096"),
        ({"budget_s": -1.0}, SettingError, "budget_s: -1.0; a number from 0"),
        ({"budget_s": float("nan")}, SettingError, "budget_s: nan"),
        ({"max_trials": 1.5}, SettingError, "max_trials: 1.5; a whole number"),
        ({"max_drop": 2.0}, SettingError, "max_drop: 2.0; a number from 0 to 1"),
        ({"trial_timeout_s": 0.0}, SettingError, "trial_timeout_s: 0.0"),
        ({"storage": "nonsense"}, SettingError, "--storage 'nonsense': cannot be opened"),
        ({"texts": []}, DataError, "texts"),
    ],
)
def test_option_that_is_not_allowed_is_refused(
    in_process: None,
    artifact: Path,
    tmp_path: Path,
    cache_dir: Path,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        run(artifact, tmp_path / "out", cache_dir, **options)
    assert names_in(tmp_path) == []


def test_study_of_another_model_is_refused(
    artifact: Path, tuned: Path, tmp_path: Path, cache_dir: Path, lost: None
) -> None:
    options = {"storage": f"sqlite:///{tmp_path}/s.db", "study": "mine", "max_trials": 0}
    run(artifact, tmp_path / "out", cache_dir, **options)
    with pytest.raises(StudyError, match=r"study 'mine' at sqlite:.* its model is .*, this one is .*--study"):
        run(tuned, tmp_path / "out2", cache_dir, **options)


def test_start_that_cannot_be_measured_is_an_error(
    artifact: Path, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hanging(InProcess):
        def call(self, *arguments: object) -> NoReturn:
            raise MeasureFailed(f"hung: no answer for {arguments[-1]} s")

    monkeypatch.setattr("mpcompile.tuning.tuner.ProcessChannel", Hanging)
    with pytest.raises(TuningError, match=r"the artifact to start from cannot be measured: hung: no answer for 20.0 s"):
        run(artifact, tmp_path / "out", cache_dir, trial_timeout_s=2.0)
    assert names_in(tmp_path) == []


def test_candidates_are_measured_without_a_prediction(
    artifact: Path, tmp_path: Path, cache_dir: Path, lost: None, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def fail(*_: object) -> NoReturn:
        raise KeyError("no fusions of this backend")

    monkeypatch.setattr("mpcompile.tuning.prior.find_profile", fail)
    assert run(artifact, tmp_path / "out", cache_dir).counts.total == 1
    assert "the cost model cannot tell: KeyError: 'no fusions of this backend'" in caplog.text


def ratios_in(folder: Path) -> list[float]:
    """Every round of every study in a folder, read as an onlooker."""
    found: list[float] = []
    for path in folder.glob("*.db"):
        with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(sqlite3.connect(path)) as connection:
            rows = connection.execute("SELECT intermediate_value FROM trial_intermediate_values")
            found.extend(value for (value,) in rows)
    return found


def test_killed_run_goes_on_and_measures_nothing_twice(eager_artifact: Path, tmp_path: Path, cache_dir: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "tune", eager_artifact, "--out", tmp_path / "out"]
    command += ["--cache-dir", tmp_path / "cache", "--max-trials", "3", "--no-progress", "--batch-size", "4", "--json"]
    keep_declared_profiles(tmp_path / "cache")
    arguments = [str(argument) for argument in command]
    killed = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    studies, end = tmp_path / "cache" / "tuning", time.monotonic() + 240.0
    while len(before := ratios_in(studies)) < 4 and time.monotonic() < end and killed.poll() is None:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert len(before) >= 4
    assert not (tmp_path / "out").exists()
    (path,) = studies.glob("*.db")
    (name,) = optuna.get_all_study_names(f"sqlite:///{path}")
    closed = [
        t for t in optuna.load_study(study_name=name, storage=f"sqlite:///{path}").trials if t.state.is_finished()
    ]

    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["trials"]["total"] == 3 and values["trials"]["resumed"] <= 1
    trials = optuna.load_study(study_name=name, storage=f"sqlite:///{path}").trials
    for trial in closed:
        assert trials[trial.number] == trial
    settled = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    variants = [Variant(**trial.params) for trial in settled]
    assert len(set(variants)) == len(variants) == 3
    kept = [ratio for trial in settled for ratio in trial.intermediate_values.values()]
    assert all(kept.count(ratio) == 1 for ratio in before), "a round was lost or measured again"
    mpcompile.load(tmp_path / "out")


def hear_interrupts() -> None:
    """Processes that a shell put in the background, as CI may be, ignore Ctrl-C, and so would their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_keeps_the_study_and_writes_nothing(eager_artifact: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "tune", eager_artifact, "--out", tmp_path / "out"]
    command += ["--cache-dir", tmp_path / "cache", "--no-progress", "--batch-size", "4"]
    keep_declared_profiles(tmp_path / "cache")
    process = subprocess.Popen(
        [str(argument) for argument in command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=hear_interrupts,
    )  # fmt: skip
    studies, end = tmp_path / "cache" / "tuning", time.monotonic() + 240.0
    while not ratios_in(studies) and time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in err) == (130, False), err
    assert not (tmp_path / "out").exists()
    assert ratios_in(studies)


def test_command_prints_one_json_object(
    artifact: Path, tmp_path: Path, cache_dir: Path, lost: None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["tune", artifact, "--out", tmp_path / "out", "--max-trials", 0, "--cache-dir", cache_dir, "--json"]
    assert main([*map(str, arguments), "--no-progress"]) == 0
    assert json.loads(capsys.readouterr().out)["directory"] == str(tmp_path / "out")


def test_command_tells_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 1
    assert "no such folder" in capsys.readouterr().err
