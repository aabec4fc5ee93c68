"""Tests of the study: nothing measured is lost or measured twice, and foreign studies are refused."""

import contextlib
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from mpcompile.errors import SettingError, StudyError
from mpcompile.store.studies.storage import find_default_url, hide_password
from mpcompile.tuning.study import ENQUEUED, OpenTrial, TuningStudy
from mpcompile.tuning.variant import Variant
from tests.mpcompile.tuning.fakes import CANDIDATES, IDENTITY, SPACE, START, open_study
from tests.paths import ROOT


def take(study: TuningStudy) -> OpenTrial:
    trial = study.ask()
    assert trial is not None
    return trial


def optuna_study(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="study", storage=f"sqlite:///{folder}/study.db")


def abandon(folder: Path, ratios: list[float]) -> Variant:
    """Leaves a trial behind as a process that is killed after some rounds does."""
    program = (
        "import os, sys, signal\n"
        "from pathlib import Path\n"
        "from tests.mpcompile.tuning.fakes import open_study\n"
        "study = open_study(Path(sys.argv[1]))\n"
        "trial = study.ask()\n"
        "for ratio in sys.argv[2:]: study.report(trial, float(ratio))\n"
        "print(trial.trial.number, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", program, str(folder), *map(str, ratios)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    return Variant(**optuna_study(folder).trials[int(done.stdout)].params)


def test_candidates_are_handed_out_in_order(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    assert len(CANDIDATES) <= ENQUEUED
    assert [take(study).variant for _ in CANDIDATES] == list(CANDIDATES)


def test_nothing_is_handed_out_twice(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    for _ in CANDIDATES:
        study.stop(take(study))
    assert study.ask() is None


def test_sampler_chooses_among_what_was_not_enqueued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpcompile.tuning.study.ENQUEUED", 2)
    study = open_study(tmp_path)
    seen = []
    while (trial := study.ask()) is not None:
        seen.append(trial.variant)
        study.report(trial, 1.0)
        study.complete(trial)
    assert seen[:2] == list(CANDIDATES[:2]) and sorted(map(repr, seen)) == sorted(map(repr, CANDIDATES))
    assert study.count().failed == 0


def test_two_processes_share_a_study(tmp_path: Path) -> None:
    one, other = open_study(tmp_path), open_study(tmp_path)
    seen = [take(study).variant for study in (one, other, one, other, one, other)]
    assert sorted(map(repr, seen)) == sorted(map(repr, CANDIDATES))
    assert one.ask() is None and other.ask() is None


def test_value_of_a_candidate_is_its_median_ratio(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    trial = take(study)
    for ratio in (0.5, 3.0, 0.7):
        study.report(trial, ratio)
    study.complete(trial)
    assert study.best_ratio() == 0.7
    assert study.best_variants(3) == [trial.variant]


def test_candidates_that_are_slower_than_the_start_are_not_the_best(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    trial = take(study)
    for _ in range(3):
        study.report(trial, 1.2)
    study.complete(trial)
    assert study.best_variants(3) == []


def test_rounds_are_in_the_database_at_once(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    trial = take(study)
    study.report(trial, 0.5)
    assert list(optuna_study(tmp_path).trials[0].intermediate_values.values()) == [0.5]


def test_killed_process_leaves_its_rounds_to_the_next(tmp_path: Path) -> None:
    variant = abandon(tmp_path, [0.9, 0.8])
    study = open_study(tmp_path)
    trials = [take(study) for _ in CANDIDATES]
    assert {trial.variant: trial.ratios for trial in trials}[variant] == [0.9, 0.8]
    assert [trial.variant for trial in trials].count(variant) == 1
    assert study.ask() is None


def test_rounds_survive_several_kills(tmp_path: Path) -> None:
    abandon(tmp_path, [0.9])
    for _ in range(2):
        study = open_study(tmp_path)
        del study
    study = open_study(tmp_path)
    trials = [take(study) for _ in CANDIDATES]
    assert sorted(trial.ratios for trial in trials)[-1] == [0.9]
    assert sum(bool(trial.ratios) for trial in trials) == 1


def test_resumed_candidates_are_counted_when_they_are_done(tmp_path: Path) -> None:
    abandon(tmp_path, [0.9])
    study = open_study(tmp_path)
    while (trial := study.ask()) is not None:
        study.report(trial, 0.9)
        study.complete(trial)
    counts = study.count()
    assert (counts.measured, counts.resumed, counts.failed) == (len(CANDIDATES), 1, 0)


def test_trial_of_a_live_process_is_left_alone(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    trial = take(study)
    other = open_study(tmp_path)
    assert trial.variant not in [take(other).variant for _ in CANDIDATES[1:]]
    study.report(trial, 0.5)
    study.complete(trial)


def test_trial_of_another_host_is_taken_up_when_it_is_silent_for_long(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    trial = take(study)
    for at, remaining in ((1e12, 5), (0.0, 6)):
        trial.trial.set_user_attr("signed", {"owner": f"elsewhere/1/{uuid.uuid4().hex}", "at": at})
        other = open_study(tmp_path)
        assert len(other._remaining()) == remaining


def test_failed_candidates_keep_their_reason(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    trial = take(study)
    study.fail(trial, "hung")
    assert study.failures() == [(trial.variant, "hung")]
    assert study.count().failed == 1
    assert trial.variant not in [take(study).variant for _ in CANDIDATES[1:]]


def test_candidate_that_comes_out_as_another_is_not_measured_again(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    first = take(study)
    assert not study.settle_as_twin(first, "key", "start")
    for _ in range(3):
        study.report(first, 0.5)
    study.complete(first)
    second = take(study)
    assert study.settle_as_twin(second, "key", "start")
    assert study.count().same == 1
    assert study.best_variants(3) == [first.variant]


def test_candidate_that_comes_out_as_the_start_is_not_measured(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    assert study.settle_as_twin(take(study), "start", "start")
    assert study.best_variants(3) == []


def test_rounds_of_the_last_comparison_are_kept(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    study.save_final_rounds(CANDIDATES[:2], [[1.0, 0.5, 0.6]])
    again = open_study(tmp_path)
    assert again.load_final_rounds(CANDIDATES[:2]) == [[1.0, 0.5, 0.6]]
    assert again.load_final_rounds(CANDIDATES[:1]) == []


@pytest.mark.parametrize("key", ["model", "mpcompile", "workload", "machine"])
def test_study_of_something_else_is_refused(tmp_path: Path, key: str) -> None:
    open_study(tmp_path)
    with pytest.raises(StudyError, match=rf"its {key} is {IDENTITY[key]}, this one is other; choose another.*--study"):
        open_study(tmp_path, identity={**IDENTITY, key: "other"})


def test_refused_study_is_left_as_it_was(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    before = len(optuna_study(tmp_path).trials)
    with pytest.raises(StudyError):
        open_study(tmp_path, identity={**IDENTITY, "model": "other"})
    assert len(optuna_study(tmp_path).trials) == before
    assert take(study).variant == CANDIDATES[0]


def test_study_of_another_program_is_refused(tmp_path: Path) -> None:
    foreign = optuna.create_study(study_name="study", storage=f"sqlite:///{tmp_path}/study.db")
    foreign.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(StudyError, match="not made by mpcompile tune; choose another name with --study"):
        open_study(tmp_path)


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////no/such/folder/s.db", "nosuch://host/db", "redis://host"])
def test_storage_that_cannot_be_opened_is_an_error_of_the_user(url: str) -> None:
    with pytest.raises(SettingError, match=r"--storage .*expected an Optuna storage such as sqlite:///"):
        TuningStudy(url, "study", IDENTITY, SPACE, 0)


def test_password_of_a_storage_is_not_shown() -> None:
    assert "secret" not in hide_password("postgresql://me:secret@host/db")
    with pytest.raises(SettingError) as caught:
        TuningStudy("nosuch://me:secret@host/db", "study", IDENTITY, SPACE, 0)
    assert "secret" not in str(caught.value)


def test_file_that_is_no_database_is_an_error_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("this is a text file, not a database" * 100)
    with pytest.raises(SettingError, match="cannot be opened"):
        open_study(tmp_path)


def test_cache_that_cannot_be_made_is_an_error_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="pass --storage"):
        find_default_url("key", tmp_path / "file")


def test_full_disk_loses_nothing(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    trial = take(study)
    study.report(trial, 0.5)

    def limit(connection: object, _: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {size}")  # type: ignore[attr-defined]

    size = (tmp_path / "study.db").stat().st_size // 4096
    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "connect", limit)
    try:
        full = open_study(tmp_path)
        with pytest.raises(StudyError, match="disk is full; make room there and run the same command again"):
            full.save_final_rounds([START] * 500, [[1.0] * 501] * 21)
    finally:
        sqlalchemy.event.remove(sqlalchemy.engine.Engine, "connect", limit)
    stored = optuna_study(tmp_path).trials[0]
    assert stored.state == TrialState.RUNNING and list(stored.intermediate_values.values()) == [0.5]
    study.complete(trial)
    assert study.count().measured == 1


def test_closed_study_puts_open_candidates_back_with_their_rounds(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    trial = take(study)
    study.report(trial, 0.5)
    study.close()
    study.close()
    again = open_study(tmp_path)
    trials = [take(again) for _ in CANDIDATES]
    assert {other.variant: other.ratios for other in trials}[trial.variant] == [0.5]
    assert again.ask() is None


def test_candidate_that_the_best_stopped_may_still_be_among_the_best(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    for ratio in (0.5, 0.6):
        trial = take(study)
        for _ in range(3):
            study.report(trial, ratio)
        (study.complete if ratio == 0.5 else study.stop)(trial)
    assert study.best_variants(3) == list(CANDIDATES[:2]) and study.best_ratio() == 0.5


def test_candidate_of_few_rounds_is_not_among_the_best(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    trial = take(study)
    study.report(trial, 0.5)
    study.stop(trial)
    assert study.best_variants(3) == []


def test_candidate_that_two_see_waiting_is_taken_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    studies = [open_study(tmp_path) for _ in range(2)]
    optuna_study(tmp_path).enqueue_trial(CANDIDATES[0].to_json())
    both_have_read = threading.Barrier(2)
    check = BaseStorage.check_trial_is_updatable

    def check_together(self: BaseStorage, trial_id: int, state: TrialState) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            both_have_read.wait(0.5)
        check(self, trial_id, state)

    monkeypatch.setattr(BaseStorage, "check_trial_is_updatable", check_together)
    with ThreadPoolExecutor() as pool:
        taken = [trial.variant for trial in pool.map(take, studies)]
    assert len(set(taken)) == 2


def test_processes_that_come_to_a_new_storage_at_once_share_it(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from tests.mpcompile.tuning.fakes import open_study\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(open_study(Path(sys.argv[1])).ask().variant.describe())\n"
        "sys.stdin.readline()\n"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", program, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    lines = [process.stdout.readline() for process in processes if process.stdout is not None]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert len(set(lines)) == 3, (lines, errors)
