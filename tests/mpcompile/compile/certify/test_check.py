"""Tests of what is measured on texts that nothing was chosen on."""

import dataclasses
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from scipy.stats import binomtest

from mpcompile.compile.certify.check import bound_loss_from_below, check_point
from mpcompile.compile.certify.drop import Counts
from mpcompile.compile.certify.point_answers import PointAnswers
from mpcompile.compile.job import Job
from mpcompile.compile.settings import Settings
from mpcompile.compile.texts.parts import TextPart
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.task import Task
from mpcompile.errors import BackendError
from mpcompile.progress import StageProgress
from mpcompile.runtime.runtime import Runner, RunResult
from mpcompile.runtime.tokens import TokenIds, Tokenizer

POINT = OperatingPoint((2,), precision="f16")
SURE = np.array([[3.0, -1.0], [-1.0, 3.0], [3.0, -1.0]], np.float32)


def part_of(original: np.ndarray) -> TextPart:
    """Three texts with the original's logits."""
    encoded = tuple(TokenIds(np.array([2, i, 3]), np.zeros(3, np.int64)) for i in (7, 8, 9))
    tokenizer = cast(
        Tokenizer, SimpleNamespace(pad=lambda batch: {"attention_mask": np.ones((len(batch), 3), np.int64)})
    )
    return TextPart(encoded, None, Task("single_label", 2), tokenizer, None, original)


def answering(logits: np.ndarray) -> Runner:
    """Engines that answer alike, whatever they are asked."""

    def run(inputs: Any, _: OperatingPoint) -> RunResult:
        rows = len(inputs["attention_mask"])
        return RunResult(logits[:rows], np.full(rows, 2), np.full(rows, 3))

    return cast(Runner, SimpleNamespace(run=run))


def answering_in_turn(logits: np.ndarray) -> Runner:
    """Engines that answer batch after batch."""
    done = 0

    def run(inputs: Any, _: OperatingPoint) -> RunResult:
        nonlocal done
        rows = len(inputs["attention_mask"])
        done += rows
        return RunResult(logits[done - rows : done], np.full(rows, 2), np.full(rows, 3))

    return cast(Runner, SimpleNamespace(run=run))


@pytest.fixture
def job() -> Job:
    return cast(Job, SimpleNamespace(settings=Settings(1.0), progress=StageProgress(False)))


@pytest.fixture
def ask(job: Job) -> Callable[..., PointAnswers]:
    """Answers of engines to texts."""

    def ask(logits: np.ndarray, part: TextPart, name: str = "test texts") -> PointAnswers:
        return PointAnswers(job, answering(logits), [POINT], part, name)

    return ask


def test_agreement_is_with_the_original(ask: Any) -> None:
    checked = check_point(0, 0.95, None, ask(SURE, part_of(SURE[[0, 1, 1]])))
    assert checked.agreement == pytest.approx(2 / 3)
    assert checked.measured_on == "3 test texts"


def test_engines_that_overflow_are_refused(ask: Any) -> None:
    logits = SURE.copy()
    logits[1] = np.nan
    with pytest.raises(BackendError, match=r"precision 'f16': the engines answer 1 of 3 test texts with NaN"):
        check_point(0, 0.95, None, ask(logits, part_of(SURE)))


def test_original_that_answers_nan_is_not_held_against_the_engines(ask: Any) -> None:
    logits = SURE.copy()
    logits[1] = np.nan
    assert check_point(0, 0.95, None, ask(logits, part_of(logits))).measured_on == "3 test texts"


def test_bound_shares_its_failure_among_the_points_that_the_texts_were_asked_about(ask: Any) -> None:
    asked = ask(SURE, part_of(SURE), "held-out texts")
    alone = check_point(0, 0.95, asked).certified_drop
    asked._points, asked._logits = (POINT, POINT), {0: SURE, 1: SURE}
    assert alone == pytest.approx(1.0 - 0.05 ** (1 / 3))
    assert check_point(0, 0.95, asked).certified_drop == pytest.approx(1.0 - 0.025 ** (1 / 3))


def many(rights: list[int], labels: bool = True) -> tuple[np.ndarray, TextPart]:
    """Logits that are right on the first texts of many, of which the original is right on others: [ours, its, all]."""
    ours, its, texts = rights
    part = part_of(np.eye(2, dtype=np.float32)[(np.arange(texts) >= its).astype(int)])
    part = dataclasses.replace(
        part, encoded=part.encoded[:1] * texts, labels=np.zeros(texts, np.int64) if labels else None
    )
    return np.eye(2, dtype=np.float32)[(np.arange(texts) >= ours).astype(int)], part


@pytest.mark.parametrize(
    ("rights", "labels", "said"),
    [
        ([380, 400, 400], True, r"5\.0 points of accuracy are lost on 400 test texts, and at least 2\.\d beyond doubt"),
        ([380, 400, 400], False, r"5\.0 of 100 answers differ from the original's on 400 test texts"),
        ([396, 400, 400], True, None),
        ([400, 400, 400], False, None),
        ([400, 380, 400], True, None),
    ],
)
def test_loss_beyond_doubt_is_warned_of(job: Job, rights: list[int], labels: bool, said: str | None) -> None:
    logits, part = many(rights, labels)
    asked = PointAnswers(job, answering_in_turn(logits), [POINT], part, "test texts")
    warnings = check_point(0, 0.95, None, asked).warnings
    assert len(warnings) == (said is not None)
    assert said is None or re.match(said, warnings[0])


@pytest.mark.parametrize(
    ("texts", "test", "warned"), [([400, 380], [1000, 830], True), ([400, 380], [1000, 945], False)]
)
def test_texts_that_the_model_knows_better_than_test_texts_are_warned_of(
    job: Job, texts: list[int], test: list[int], warned: bool
) -> None:
    asked = []
    for name, (size, right) in (("held-out texts", texts), ("test texts", test)):
        logits, part = many([right, right, size])
        asked.append(PointAnswers(job, answering_in_turn(logits), [POINT], part, name))
    warnings = check_point(0, 0.95, *asked).warnings
    assert any("probably fine-tuned on the texts" in said for said in warnings) == warned


@pytest.mark.parametrize(("texts", "lost"), [(50, 0), (400, 12), (400, 400)])
def test_loss_is_bounded_from_below_as_scipy_does(texts: int, lost: int) -> None:
    expected = binomtest(lost, texts, alternative="greater").proportion_ci(0.99).low
    assert bound_loss_from_below(Counts(texts, lost, None)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("right", "warned"), [(30, True), (60, True), (61, False), (100, False)])
def test_original_that_knows_no_more_than_the_commonest_label_is_warned_of(job: Job, right: int, warned: bool) -> None:
    labels = (np.arange(100) >= 60).astype(np.int64)  # class 0 is right for 60 of 100
    answers = np.where(np.arange(100) < right, labels, 1 - labels)
    part = dataclasses.replace(part_of(np.eye(2, dtype=np.float32)[answers]), labels=labels)
    part = dataclasses.replace(part, encoded=part.encoded[:1] * 100)
    asked = PointAnswers(job, answering_in_turn(np.eye(2, dtype=np.float32)[answers]), [POINT], part)
    warnings = check_point(0, 0.95, asked).warnings
    assert len(warnings) == warned
    assert all("do model, tokenizer and the order of labels (id2label) belong together?" in said for said in warnings)
