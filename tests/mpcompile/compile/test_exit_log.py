"""Tests of the log of exits: a point that is read from it is answered as by a run of its own.

Shapes: N texts.
"""

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcompile.backends.torch.eager import EagerEngine
from mpcompile.compile.certify.point_answers import PointAnswers
from mpcompile.compile.exit_log import ExitLog, LoggingRuntime
from mpcompile.compile.texts.parts import TextPart
from mpcompile.contract.operating_point import BEFORE, OperatingPoint
from mpcompile.contract.task import Task
from mpcompile.graph.segments import partition
from mpcompile.progress import StageProgress
from mpcompile.runtime.ngrams import FirstExit
from mpcompile.runtime.runtime import Runtime
from mpcompile.runtime.tokens import Tokenizer
from tests.models import NUM_LABELS, build_head, captured_model
from tests.mpcompile.runtime.test_ngrams import make_classifier
from tests.mpcompile.runtime.test_runtime import UNSURE

EXITS, PRUNES, NUM_LAYERS = (0, 1, 2), (0, 2), 3
WHOLE = OperatingPoint((3,), (), PRUNES, (1.0, 0.6))


@functools.cache
def build_runtime() -> Runtime:
    segments = partition(captured_model("bert"), {layer: build_head(layer) for layer in EXITS}, PRUNES)
    return Runtime(segments, [EagerEngine(segment) for segment in segments], NUM_LABELS, (4.0,) * len(segments))


@pytest.fixture(scope="module")
def part(tiny_tokenizer: object, tiny_texts: list[str]) -> TextPart:
    tokenizer = Tokenizer.from_transformers(tiny_tokenizer, 16)  # type: ignore[arg-type]
    return TextPart(tuple(tokenizer.encode(tiny_texts)), None, Task("single_label", NUM_LABELS), tokenizer)


@pytest.fixture(scope="module")
def log(part: TextPart) -> ExitLog:
    return LoggingRuntime(build_runtime()).log_texts(part.tokenizer, part.encoded, WHOLE)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(quantiles=st.lists(st.floats(0, 1), min_size=3, max_size=3), last=st.integers(1, 3))
def test_faster_points_are_answered_as_by_a_run_of_their_own(
    part: TextPart, log: ExitLog, quantiles: list[float], last: int
) -> None:
    thresholds = [float(np.quantile(log.entropy[k], q)) for k, q in enumerate(quantiles[:last])]
    # Halfway between two entropies, not on one of them.
    thresholds = [min(threshold + 2 * UNSURE, 1.0) for threshold in thresholds]
    point = OperatingPoint((*EXITS[:last], 3), tuple(thresholds), PRUNES, (1.0, 0.6))
    logits, known = log.answer(point)
    assert known.all()
    sure = np.all([abs(log.entropy[k] - threshold) > UNSURE for k, threshold in enumerate(thresholds)], axis=0)
    expected = part.answer(build_runtime(), point).logits
    np.testing.assert_allclose(logits[sure], expected[sure], atol=1e-5)


def test_texts_that_left_before_are_not_known(part: TextPart, log: ExitLog) -> None:
    threshold = float(np.median(log.entropy[1]))
    fast = OperatingPoint((1, 3), (threshold,), PRUNES, (1.0, 0.6))
    logits, known = LoggingRuntime(build_runtime()).log_texts(part.tokenizer, part.encoded, fast).answer(WHOLE)
    np.testing.assert_array_equal(known, ~(log.entropy[1] < threshold))
    np.testing.assert_allclose(logits[known], log.answer(WHOLE)[0][known], atol=1e-5)


def test_exit_before_the_model_is_read_from_the_log_too(part: TextPart) -> None:
    chain = build_runtime()
    first_exit = FirstExit(make_classifier(NUM_LABELS), part.task)
    runtime = Runtime(chain.segments, chain.engines, NUM_LABELS, chain.split_tokens, first_exit)
    log = LoggingRuntime(runtime).log_texts(part.tokenizer, part.encoded, WHOLE)
    threshold = float(np.median(log.entropy[0])) + 2 * UNSURE
    point = OperatingPoint((BEFORE, 1, 3), (threshold, 0.9), PRUNES, (1.0, 0.6))
    expected = part.answer(runtime, point)
    assert 0 < (expected.exit_layer == BEFORE).sum() < len(part.encoded)
    np.testing.assert_allclose(log.answer(point)[0], expected.logits, atol=1e-5)


def test_entropy_that_is_nan_stays(log: ExitLog) -> None:
    spoiled = ExitLog(log.exit_layers, log.logits, np.full_like(log.entropy, np.nan), log.reached)
    logits, known = spoiled.answer(OperatingPoint((0, 1, 3), (1.0, 1.0), PRUNES, (1.0, 0.6)))
    assert known.all()
    np.testing.assert_array_equal(logits, log.logits[-1])


def test_points_that_prune_alike_share_a_run(part: TextPart, log: ExitLog, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[OperatingPoint] = []
    log_texts = LoggingRuntime.log_texts

    def note(runtime: LoggingRuntime, *asked: Any) -> ExitLog:
        ran.append(asked[2])
        return log_texts(runtime, *asked)

    monkeypatch.setattr(LoggingRuntime, "log_texts", note)
    part = dataclasses.replace(part, original=log.answer(WHOLE)[0])
    fast, other = OperatingPoint((0, 3), (0.9,), PRUNES, (1.0, 0.6)), OperatingPoint((3,), (), PRUNES, (1.0, 0.5))
    job: Any = SimpleNamespace(progress=StageProgress(False))
    answers = PointAnswers(job, build_runtime(), [WHOLE, fast, other], part)
    for index in (0, 1, 2, 1):
        answers.logits(index)
    assert ran == [WHOLE, other] and answers.num_asked == 3
