"""Tests of the search, on a fake clock."""

import threading
from pathlib import Path

import pytest

from mpcompile.errors import TuningError
from mpcompile.tuning.bench import Answers
from mpcompile.tuning.measurer import MeasureFailed
from mpcompile.tuning.stopping import MAX_ROUNDS
from mpcompile.tuning.trials import Budget, Rules, search
from mpcompile.tuning.variant import Variant
from tests.mpcompile.tuning.fakes import CANDIDATES, RULES, START, FakeMeasurer, by_table, open_study

SLOW, FAST = CANDIDATES[0], CANDIDATES[1]


class FakeClock:
    """Advances by a second whenever it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def unlimited() -> Budget:
    return Budget(1e6, None, FakeClock())


def test_fastest_candidate_is_found(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    search(study, [FakeMeasurer(by_table({SLOW: 2.0, FAST: 0.5}))], RULES, unlimited())
    assert study.best_variants(1) == [FAST]
    assert study.best_ratio() == 0.5


def test_slow_candidate_is_stopped_after_a_round(tmp_path: Path) -> None:
    measurer = FakeMeasurer(by_table({SLOW: 2.0}))
    study = open_study(tmp_path)
    search(study, [measurer], RULES, unlimited())
    assert measurer.measured.count(SLOW) == 1
    assert measurer.measured.count(FAST) == MAX_ROUNDS
    assert study.count().stopped == 1


def test_search_ends_when_its_time_is_over(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    search(study, [FakeMeasurer(by_table({}))], RULES, Budget(3.0, None, FakeClock()))
    assert 0 < study.count().total < len(CANDIDATES)


def test_search_ends_after_so_many_candidates_of_the_study(tmp_path: Path) -> None:
    search(open_study(tmp_path), [FakeMeasurer(by_table({}))], RULES, Budget(1e6, 2, FakeClock()))
    again = open_study(tmp_path)
    search(again, [FakeMeasurer(by_table({}))], RULES, Budget(1e6, 3, FakeClock()))
    assert again.count().total == 3


@pytest.mark.parametrize("method", ["build", "warm_up", "measure_round"])
def test_candidate_that_cannot_be_measured_fails_alone(tmp_path: Path, method: str) -> None:
    study = open_study(tmp_path)
    search(study, [FakeMeasurer(by_table({FAST: 0.5}), broken={SLOW: method})], RULES, unlimited())
    assert study.failures() == [(SLOW, f"{method} hung")]
    assert study.best_variants(1) == [FAST]


def test_candidate_that_answers_differently_is_refused(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    other = CANDIDATES[-1]
    search(study, [FakeMeasurer(by_table({other: 0.1}), differing={other: 6})], RULES, unlimited())
    assert study.failures() == [(other, "answers 99.40% of 1000 examples as the start does; 99.5% are needed")]
    assert study.best_variants(1) == []


def test_what_answers_differently_is_not_tried_in_other_ways(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    search(study, [FakeMeasurer(by_table({}), differing=dict.fromkeys(CANDIDATES, 6))], RULES, unlimited())
    assert [variant.point for variant, _ in study.failures()] == [0, 1]


@pytest.mark.parametrize(
    ("precision", "differing", "is_refused"),
    [("f32", 1, False), ("f32", 2, True), ("bf16", 1, True), ("bf16", 0, False)],
)
def test_rounding_may_turn_one_answer_where_the_precision_stays(
    precision: str, differing: int, is_refused: bool
) -> None:
    reason = Rules(START, "start", 0.995).refusal_maybe(Variant(0, precision), Answers(100, differing))
    assert (reason is not None) is is_refused


def test_engines_that_come_out_alike_are_measured_once(tmp_path: Path) -> None:
    measurer = FakeMeasurer(by_table({}), keys={CANDIDATES[2]: "x", CANDIDATES[3]: "x", CANDIDATES[4]: "start"})
    study = open_study(tmp_path)
    search(study, [measurer], RULES, unlimited())
    assert CANDIDATES[2] in measurer.measured
    assert CANDIDATES[3] not in measurer.measured and CANDIDATES[4] not in measurer.measured
    assert study.count().same == 2


def test_resumed_candidate_is_measured_for_the_rounds_that_it_lacks(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    trial = study.ask()
    assert trial is not None
    for _ in range(3):
        study.report(trial, 1.0)
    study.close()
    measurer, again = FakeMeasurer(by_table({})), open_study(tmp_path)
    search(again, [measurer], RULES, unlimited())
    assert measurer.measured.count(trial.variant) == MAX_ROUNDS - 3
    assert again.count().resumed == 1


def test_devices_share_the_candidates(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    barrier = threading.Barrier(2, timeout=30.0)

    class Meeting(FakeMeasurer):
        def warm_up(self) -> list[Answers]:
            if not self.measured:
                barrier.wait()  # each has a candidate before any goes on
            return super().warm_up()

    measurers = [Meeting(by_table({})) for _ in range(2)]
    search(study, measurers, RULES, unlimited())
    assert all(measurer.measured for measurer in measurers)
    assert set(measurers[0].measured).isdisjoint(measurers[1].measured)
    assert study.count().measured == len(CANDIDATES)


def test_candidate_of_a_search_that_was_cancelled_is_not_failed(tmp_path: Path) -> None:
    study, budget = open_study(tmp_path), unlimited()

    class Cancelled(FakeMeasurer):
        def measure_round(self) -> list[float]:
            budget.cancelled.set()
            raise MeasureFailed("its process died")

    search(study, [Cancelled(by_table({}))], RULES, budget)
    assert study.failures() == []


def test_error_of_one_device_ends_the_search_on_all(tmp_path: Path) -> None:
    closed = []

    class Broken(FakeMeasurer):
        def build(self, _: object) -> list[str]:
            raise TuningError("disk is full")

        def close(self) -> None:
            closed.append(self)

    measurers = [Broken(by_table({})), Broken(by_table({}))]
    with pytest.raises(TuningError, match="disk is full"):
        search(open_study(tmp_path), measurers, RULES, unlimited())
    assert closed == measurers
