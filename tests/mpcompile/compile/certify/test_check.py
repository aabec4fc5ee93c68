"""Tests of what is measured on texts that nothing was chosen on."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from mpcompile.compile.certify.check import check_point
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


@pytest.fixture
def job() -> Job:
    return cast(Job, SimpleNamespace(settings=Settings(1.0), progress=StageProgress(False)))


def test_agreement_is_with_the_original(job: Job) -> None:
    other = SURE[[0, 1, 1]]
    checked = check_point(job, answering(SURE), POINT, None, part_of(other))
    assert checked.agreement == pytest.approx(2 / 3)
    assert checked.measured_on == "3 test texts"


def test_engines_that_overflow_are_refused(job: Job) -> None:
    logits = SURE.copy()
    logits[1] = np.nan
    with pytest.raises(BackendError, match=r"precision 'f16': the engines answer 1 of 3 test texts with NaN"):
        check_point(job, answering(logits), POINT, None, part_of(SURE))


def test_original_that_answers_nan_is_not_held_against_the_engines(job: Job) -> None:
    logits = SURE.copy()
    logits[1] = np.nan
    assert check_point(job, answering(logits), POINT, None, part_of(logits)).measured_on == "3 test texts"
