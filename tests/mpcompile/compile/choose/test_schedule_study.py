"""Tests of the study over keep ratios, on a made-up model: nothing is lost, nothing depends on chance."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from mpcompile.compile.choose.pricing import Pricer
from mpcompile.compile.choose.schedule_study import EARLY_SHARE
from mpcompile.compile.choose.schedules import KeepSchedule
from mpcompile.compile.choose.trial_book import LEAST_KEPT, STEP, name_study
from mpcompile.errors import SettingError, StudyError
from tests.mpcompile.compile.choose.fakes import (
    COST,
    FIXED,
    IDENTITY,
    LENGTHS,
    NUM_TEXTS,
    TASK,
    TRUTH,
    FakeModel,
    front_loss,
    run_study,
)
from tests.paths import ROOT


def trials_in(path: Path, *precisions: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name_study(precisions or ("f32",)), storage=f"sqlite:///{path}").trials


def schedule_of(trial: optuna.trial.FrozenTrial) -> KeepSchedule:
    return KeepSchedule((1, 2), (round(trial.params["keep_1"], 2), round(trial.params["keep_2"], 2)))


def tried_in(path: Path, *precisions: str) -> list[optuna.trial.FrozenTrial]:
    done = (TrialState.COMPLETE, TrialState.PRUNED)
    return [trial for trial in trials_in(path, *precisions) if "fixed" not in trial.user_attrs and trial.state in done]


def test_study_finds_what_the_fixed_schedules_miss() -> None:
    """Pruning in layer 2 alone is nearly free, and no fixed schedule does it."""
    full_s = Pricer(TRUTH, LENGTHS, COST, 1, "f32", TASK).full_s
    found, fixed = run_study(FakeModel(), trials=20), run_study(FakeModel(), trials=0)
    losses = [(front_loss(found, full_s / gain), front_loss(fixed, full_s / gain)) for gain in (1.5, 2.0, 2.5, 3.0)]
    assert all(ours <= theirs for ours, theirs in losses)
    assert any(ours < theirs for ours, theirs in losses)


def test_same_seed_gives_the_same_result() -> None:
    one, other = FakeModel(), FakeModel()
    first, second = run_study(one), run_study(other)
    assert one.asked == other.asked
    assert [row.schedule for _, row in first.held_out] == [row.schedule for _, row in second.held_out]


def test_another_seed_tries_other_schedules() -> None:
    one, other = FakeModel(), FakeModel()
    run_study(one), run_study(other, seed=1)
    assert one.asked != other.asked


def test_as_many_schedules_are_tried_as_asked() -> None:
    result = run_study(FakeModel(), trials=9)
    assert result.tried + result.pruned == 9


def test_clearly_worse_schedules_are_given_up_on_a_part_of_the_texts(tmp_path: Path) -> None:
    model = FakeModel()
    result = run_study(model, tmp_path / "s.db", trials=20)
    assert result.pruned > 0
    early = {schedule for schedule, _, count in model.asked if count == NUM_TEXTS // EARLY_SHARE}
    late = {schedule for schedule, _, count in model.asked if count != NUM_TEXTS // EARLY_SHARE}
    given_up = {schedule_of(trial) for trial in tried_in(tmp_path / "s.db") if trial.state == TrialState.PRUNED}
    assert given_up and given_up <= early and not given_up & late


def test_schedules_given_up_are_worse_at_their_price_on_all_texts(tmp_path: Path) -> None:
    run_study(FakeModel(), tmp_path / "s.db", trials=20)
    pricer, everything = Pricer(TRUTH, LENGTHS, COST, 1, "f32", TASK), np.arange(NUM_TEXTS)

    def cost(schedule: KeepSchedule, price: float) -> float:
        point = pricer.solve(FakeModel()(schedule, "f32", everything), price * pricer.full_s)
        return point.seconds / pricer.full_s + price * point.loss

    given_up = [trial for trial in tried_in(tmp_path / "s.db") if trial.state == TrialState.PRUNED]
    others = [schedule_of(t) for t in trials_in(tmp_path / "s.db") if t.state == TrialState.COMPLETE]
    for trial in given_up:
        price = trial.params["price"]
        assert cost(schedule_of(trial), price) >= 0.99 * min(cost(schedule, price) for schedule in others)


def test_values_of_a_trial_follow_from_its_parameters(tmp_path: Path) -> None:
    run_study(FakeModel(), tmp_path / "s.db")
    pricer, everything = Pricer(TRUTH, LENGTHS, COST, 1, "f32", TASK), np.arange(NUM_TEXTS)
    for trial in trials_in(tmp_path / "s.db"):
        if trial.state == TrialState.COMPLETE:
            held_out = FakeModel()(schedule_of(trial), "f32", everything)
            point = pricer.solve(held_out, trial.params["price"] * pricer.full_s)
            assert trial.values == pytest.approx([point.seconds / pricer.full_s, point.loss])


def test_ratios_come_in_steps(tmp_path: Path) -> None:
    run_study(FakeModel(), tmp_path / "s.db")
    for trial in tried_in(tmp_path / "s.db"):
        steps = [(ratio - LEAST_KEPT) / STEP for ratio in schedule_of(trial).keep_ratios]
        assert steps == pytest.approx(np.round(steps))


def test_sampler_starts_from_the_fixed_schedules(tmp_path: Path) -> None:
    run_study(FakeModel(), tmp_path / "s.db")
    fixed = [trial for trial in trials_in(tmp_path / "s.db") if "fixed" in trial.user_attrs]
    assert tuple(schedule_of(trial) for trial in fixed) == FIXED
    assert {trial.state for trial in fixed} == {TrialState.COMPLETE}


def test_precisions_are_searched_together(tmp_path: Path) -> None:
    model = FakeModel()
    run_study(model, tmp_path / "s.db", trials=16, precisions=("f32", "int8"))
    assert {trial.params["precision"] for trial in tried_in(tmp_path / "s.db", "f32", "int8")} == {"f32", "int8"}
    assert {precision for _, precision, _ in model.asked} == {"f32", "int8"}


def test_interrupted_study_gives_what_it_has() -> None:
    result = run_study(FakeModel(stop_after=7), trials=50)
    assert 0 < result.tried + result.pruned < 8


def test_interrupted_study_goes_on_with_the_schedule_it_was_at(tmp_path: Path) -> None:
    stopped = FakeModel(stop_after=4)
    run_study(stopped, tmp_path / "s.db")
    assert len(tried_in(tmp_path / "s.db")) < 4
    schedule = stopped.asked[4][0]
    model = FakeModel()
    run_study(model, tmp_path / "s.db")
    assert schedule in [asked for asked, _, _ in model.asked]
    assert len(tried_in(tmp_path / "s.db")) == 12


def test_killed_study_resumes(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.mpcompile.compile.choose.fakes import FakeModel, run_study\n"
        "class Killed(FakeModel):\n"
        "    def __call__(self, *args):\n"
        "        if len(self.asked) == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().__call__(*args)\n"
        "run_study(Killed(), Path(sys.argv[1]))\n"
    )
    path = tmp_path / "s.db"
    done = subprocess.run([sys.executable, "-c", program, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    (running,) = [trial for trial in trials_in(path) if trial.state == TrialState.RUNNING]
    before = [trial.number for trial in tried_in(path)]
    result = run_study(FakeModel(), path)
    assert result.tried + result.pruned == 12
    assert before == [trial.number for trial in tried_in(path)][: len(before)]
    assert schedule_of(running) in [schedule_of(trial) for trial in tried_in(path)]
    assert trials_in(path)[running.number].state == TrialState.FAIL


def test_finished_study_runs_no_model_but_for_its_front(tmp_path: Path) -> None:
    first = run_study(FakeModel(), tmp_path / "s.db")
    model = FakeModel()
    again = run_study(model, tmp_path / "s.db")
    assert [row.schedule for _, row in again.held_out] == [row.schedule for _, row in first.held_out]
    assert {schedule for schedule, _, _ in model.asked} == {row.schedule for _, row in first.held_out}


def test_two_processes_share_a_study(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.mpcompile.compile.choose.fakes import FakeModel, run_study\n"
        "model = FakeModel(pause_s=0.1)\n"
        "result = run_study(model, Path(sys.argv[1]), seed=int(sys.argv[2]), trials=10)\n"
        "print(len(model.asked), flush=True)\n"
    )
    path = tmp_path / "s.db"
    command = [sys.executable, "-c", program, str(path)]
    running = [
        subprocess.Popen([*command, seed], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for seed in "01"
    ]
    outputs = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    trials = tried_in(path)
    assert 10 <= len(trials) <= 11  # the last one may be taken by both
    assert len({trial.user_attrs["signed"]["owner"] for trial in trials}) == 2


@pytest.mark.parametrize("key", list(IDENTITY))
def test_study_of_something_else_is_refused(tmp_path: Path, key: str) -> None:
    run_study(FakeModel(), tmp_path / "s.db", trials=2)
    before = len(trials_in(tmp_path / "s.db"))
    with pytest.raises(StudyError, match=rf"its {key} is {IDENTITY[key]}, this one is other; choose another --storage"):
        run_study(FakeModel(), tmp_path / "s.db", identity={**IDENTITY, key: "other"})
    assert len(trials_in(tmp_path / "s.db")) == before


def test_storage_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="--storage"):
        run_study(FakeModel(), tmp_path / "missing" / "s.db")
