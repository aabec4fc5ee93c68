"""Tests of the stage that certifies the front."""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from mpcompile.compile.certify.front import certify_front, check_amount, sequence_of
from mpcompile.compile.settings import Settings
from mpcompile.compile.texts.parts import TextPart
from mpcompile.contract.front import MeasuredPoint
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.task import Task
from mpcompile.errors import DataError, TargetUnreachable
from mpcompile.progress import StageProgress
from mpcompile.runtime.runtime import RunResult
from mpcompile.runtime.tokens import Tokenizer

Make = Callable[[OperatingPoint, float, float | None], MeasuredPoint]
TEXTS = 400
ROWS = [(1.0, 0.0), (2.0, 0.001), (5.0, 0.004), (9.0, 0.04)]


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
def certify(
    front: tuple[MeasuredPoint, ...], tiny_tokenizer: PreTrainedTokenizerFast
) -> Callable[..., tuple[MeasuredPoint, ...]]:
    def run(wrong: list[int], chosen: int, labels: np.ndarray | None = None) -> tuple[tuple[Any, ...], list[float]]:
        tokenizer = Tokenizer.from_transformers(tiny_tokenizer, 32)
        encoded, original = tuple(tokenizer.encode(["ban del"] * TEXTS)), np.eye(3)[np.zeros(TEXTS, int)]
        part = TextPart(encoded, labels, Task("single_label", 3), tokenizer, original=original)
        answers = Answers({1 / speedup: number for (speedup, _), number in zip(ROWS, wrong, strict=True)})
        with StageProgress(False) as progress:
            job: Any = SimpleNamespace(settings=Settings(4, 0.02), progress=progress)
            certified = certify_front(job, answers, front, chosen, part)
        return certified, [round(1 / ratio) for ratio in answers.ran]

    return run


def test_chosen_point_is_first_in_the_sequence_and_the_least_lossy_follow(front: Any) -> None:
    assert sequence_of(front, 2) == (2, 0, 1, 3)
    assert sequence_of(front[::-1], 1) == (1, 3, 2, 0)


def test_points_that_pass_are_certified(certify: Any) -> None:
    certified, ran = certify([0, 1, 2, 40], chosen=2)
    assert [point.certified for point in certified] == [True, True, True, False]
    assert ran == [5, 1, 2, 9]


def test_points_behind_a_failure_are_neither_run_nor_certified(certify: Any) -> None:
    certified, ran = certify([0, 30, 0, 0], chosen=2)
    assert [point.certified for point in certified] == [True, False, True, False]
    assert ran == [5, 1, 2]


def test_chosen_point_that_fails_is_refused_with_the_texts_that_are_missing(certify: Any) -> None:
    with pytest.raises(TargetUnreachable) as error:
        certify([0, 0, 5, 0], chosen=2)
    for part in (
        "target_speedup=4 with max_drop=0.02 and confidence=0.95",
        "(5.00x) is not certified",
        "1.25 points are lost on 400 held-out texts, which shows at most 2.61 with 95% confidence; 2 are allowed",
        "About 1,200 more texts, 50% of them held out, would pass it as often as not",
        "max_texts=4000 are used at most",
        "9.00x measured",
    ):
        assert part in str(error.value)
    assert [point.certified for point in error.value.front] == [False] * 4


def test_original_that_errs_counts_for_the_point(certify: Any) -> None:
    labels = np.zeros(TEXTS, int)
    labels[:6] = 1  # the original answers 0 there, and the point 1
    certified, _ = certify([6, 6, 12, 40], chosen=2, labels=labels)
    assert certified[2].certified is True


def test_texts_are_counted_after_max_texts() -> None:
    with pytest.raises(DataError, match=r"texts: 500 are used, 250 of them"):
        check_amount(Settings(4, 0.005, max_texts=500), 5000, labelled=False)
    check_amount(Settings(4, 0.005), 5000, labelled=True)


def test_any_number_will_do_without_max_drop() -> None:
    check_amount(dataclasses.replace(Settings(4), max_drop=None), 16, labelled=False)
