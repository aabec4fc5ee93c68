"""Tests of the stage that certifies the front."""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from mpcompile.compile.certify.drop import Counts
from mpcompile.compile.certify.front import certify_front, check_amount, confirm_front, count_needed, sequence_of
from mpcompile.compile.certify.point_answers import PointAnswers
from mpcompile.compile.choose.candidates import Candidate
from mpcompile.compile.settings import Settings
from mpcompile.compile.texts.parts import TextPart
from mpcompile.contract.front import Choice, MeasuredPoint
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.task import Task
from mpcompile.errors import DataError, TargetUnreachable
from mpcompile.progress import StageProgress
from mpcompile.runtime.runtime import Runner, RunResult
from mpcompile.runtime.tokens import Tokenizer

Make = Callable[[OperatingPoint, float, float | None], MeasuredPoint]
TEXTS = 400
ROWS = [(1.0, 0.0), (2.0, 0.003), (5.0, 0.004), (9.0, 0.04)]


class Answers:
    """A runtime whose points answer class 1 on some of the texts, on which class 0 is right."""

    def __init__(self, wrong: dict[float, int]) -> None:
        self.wrong, self.ran, self.texts = wrong, list[float](), 0

    def run(self, inputs: dict[str, np.ndarray], point: OperatingPoint) -> RunResult:
        size, ratio = len(inputs["input_ids"]), point.keep_ratios[0]
        if not self.ran or self.ran[-1] != ratio:
            self.ran.append(ratio)
            self.texts = 0
        answer = (self.texts + np.arange(size) < self.wrong[ratio]).astype(int)
        self.texts += size
        return RunResult(np.eye(3)[answer], np.full(size, 3), np.full(size, 5))


@pytest.fixture
def front(measured_point: Make) -> tuple[MeasuredPoint, ...]:
    """Points that are told apart by their keep ratio, 1 / speedup."""
    return tuple(
        measured_point(OperatingPoint((3,), (), (0,), (1 / speedup,)), speedup, drop) for speedup, drop in ROWS
    )


@pytest.fixture
def ask(
    front: tuple[MeasuredPoint, ...], tiny_tokenizer: PreTrainedTokenizerFast
) -> Callable[..., tuple[PointAnswers, Answers]]:
    """Held-out texts of which each point gets some wrong."""

    def ask(wrong: list[int], labels: np.ndarray | None = None) -> tuple[PointAnswers, Answers]:
        tokenizer = Tokenizer.from_transformers(tiny_tokenizer, 32)
        encoded, original = tuple(tokenizer.encode(["ban del"] * TEXTS)), np.eye(3)[np.zeros(TEXTS, int)]
        part = TextPart(encoded, labels, Task("single_label", 3), tokenizer, original=original)
        runtime = Answers({1 / speedup: number for (speedup, _), number in zip(ROWS, wrong, strict=True)})
        job: Any = SimpleNamespace(progress=StageProgress(False))
        return PointAnswers(job, cast(Runner, runtime), [row.point for row in front], part), runtime

    return ask


@pytest.fixture
def certify(front: tuple[MeasuredPoint, ...], ask: Any) -> Callable[..., tuple[Any, Choice, list[float]]]:
    def run(
        wrong: list[int], target: float = 4, labels: np.ndarray | None = None
    ) -> tuple[tuple[MeasuredPoint, ...], Choice, list[float]]:
        answers, runtime = ask(wrong, labels)
        certified, choice = certify_front(Settings(target, 0.02), front, answers)
        return certified, choice, [round(1 / ratio) for ratio in runtime.ran]

    return run


def test_points_up_to_the_wanted_one_are_tested_from_the_least_lossy_on(front: Any) -> None:
    assert sequence_of(front, 2, 0.0) == (0, 1, 2, 3)
    assert sequence_of(front[::-1], 1, 0.0) == (3, 2, 1, 0)


def test_points_that_are_far_slower_are_left_out_but_for_the_first(front: Any) -> None:
    assert sequence_of(front, 3, 0.0) == (0, 2, 3)


def test_slowest_of_those_that_lose_hardly_more_than_the_least_lossy_comes_first(front: Any) -> None:
    """What loses least on the texts for choosing may do so by luck, and where the first fails, nothing is certified."""
    alike = tuple(
        dataclasses.replace(row, drop=drop) for row, drop in zip(front, (0.003, 0.001, 0.0, 0.02), strict=True)
    )
    assert sequence_of(alike, 2, 0.02) == (0, 1, 2, 3) == sequence_of(alike, 2, 0.015)
    assert sequence_of(alike, 2, 0.01) == (1, 2, 3)
    assert sequence_of(alike, 2, 0.004) == (2, 3)


def test_points_that_pass_are_certified_and_the_least_lossy_at_the_target_is_taken(certify: Any) -> None:
    certified, choice, ran = certify([0, 1, 2, 40])
    assert [point.certified for point in certified] == [True, True, True, False]
    assert (choice.index, choice.warning) == (2, None)
    assert ran == [1, 2, 5, 9]


def test_points_behind_a_failure_are_neither_run_nor_certified(certify: Any) -> None:
    certified, _, ran = certify([0, 30, 0, 0])
    assert [point.certified for point in certified] == [True, False, False, False]
    assert ran == [1, 2]


def test_fastest_certified_point_is_taken_where_the_target_fails_and_what_is_missing_is_said(certify: Any) -> None:
    _, choice, _ = certify([0, 0, 5, 0])
    assert choice.index == 1
    for part in (
        "target_speedup=4 is not reached with max_drop=0.02 and confidence=0.95: the fastest certified point was taken",
        "2.00x measured",
        "The next one, 5.00x, is not certified",
        "1.25 points are lost on 400 held-out texts, which shows at most 2.61 with 95% confidence; 2 are allowed",
        "About 580 more held-out texts would pass it as often as not",
    ):
        assert part in choice.warning


def test_certified_front_that_is_too_slow_is_said(certify: Any) -> None:
    _, choice, _ = certify([0, 0, 0, 0], target=20)
    assert choice.index == 3
    assert "No point is faster" in choice.warning


def test_nothing_certified_is_refused_with_the_texts_that_are_missing(certify: Any) -> None:
    with pytest.raises(TargetUnreachable) as error:
        certify([5, 0, 0, 0])
    for part in (
        "max_drop=0.02 with confidence=0.95: no point is certified",
        "Of the one that loses least (1.00x) 1.25 points are lost",
        "9.00x measured",
    ):
        assert part in str(error.value)
    assert [point.certified for point in error.value.front] == [False] * 4


def test_original_that_errs_counts_for_the_point(certify: Any) -> None:
    labels = np.zeros(TEXTS, int)
    labels[:6] = 1  # the original answers 0 there, and the point 1
    certified, _, _ = certify([6, 6, 12, 40], labels=labels)
    assert certified[2].certified is True


@pytest.mark.parametrize(
    ("wrong", "index", "asked"),
    [
        ([0, 0, 4, 40], 2, 1),  # one point of loss on held-out texts
        ([0, 0, 11, 40], 2, 1),  # less than three, which is two and a standard error
        ([0, 0, 12, 40], 1, 2),  # more, and what the other texts hid is added to the faster point
        ([0, 13, 13, 40], 0, 3),
        ([13, 13, 13, 40], 0, 3),
    ],
)
def test_point_that_loses_more_on_held_out_texts_gives_way_to_a_slower_one(
    front: Any, ask: Any, wrong: list[int], index: int, asked: int
) -> None:
    answers, _ = ask(wrong)
    choice = confirm_front(Settings(4), front, 0.02, answers)
    assert (choice.index, answers.num_asked) == (index, asked)
    assert (choice.warning is None) == (index == 2)


def test_slower_point_that_lost_as_little_is_asked_for_itself(front: Any, ask: Any) -> None:
    alike = tuple(dataclasses.replace(row, drop=drop) for row, drop in zip(front, (0.0, 0.0, 0.0, 0.04), strict=True))
    answers, _ = ask([0, 0, 40, 40])
    choice = confirm_front(Settings(4), alike, 0.02, answers)
    assert choice.index == 1 and "target_speedup=4 is not reached" in choice.warning


@pytest.mark.parametrize(("lost", "won"), [(0, None), (3, None), (0, 0), (10, 4)])
def test_needed_texts_certify_a_point_nine_times_in_ten(lost: int, won: int | None) -> None:
    """Against simulated held-out texts of a point that loses as the texts for choosing say, and a text more."""
    texts, rng = 1000, np.random.default_rng(0)
    labels = None if won is None else np.zeros(texts, int)
    original, answer = np.zeros(texts, int), np.zeros(texts, int)
    answer[:lost] = 1
    if labels is not None:
        labels[lost : lost + won], answer[lost : lost + won] = 1, 1
    part = TextPart((), labels, Task("single_label", 2), cast(Any, None), original=np.eye(2)[original])
    candidate = Candidate(OperatingPoint((3,)), 1.0, 0.0, np.zeros(texts), answer)
    needed = count_needed(Settings(4, 0.02), candidate, part)
    rates = [(lost + 1) / texts, 0.0 if won is None else (won + 1) / texts]
    passed = 0
    for _ in range(100):
        lost_here, won_here, _ = rng.multinomial(needed, [*rates, 1.0 - sum(rates)])
        passed += Counts(needed, lost_here, None if won is None else won_here).p_value(0.02) <= 0.05
    assert 80 <= passed <= 100


def test_texts_are_counted_after_max_texts() -> None:
    with pytest.raises(DataError, match=r"texts: 500 are used, 250 of them"):
        check_amount(Settings(4, 0.005, max_texts=500), 5000, labelled=False)
    check_amount(Settings(4, 0.005), 5000, labelled=True)


def test_any_number_will_do_without_max_drop() -> None:
    check_amount(dataclasses.replace(Settings(4), max_drop=None), 16, labelled=False)
