"""Measures what the chosen point loses on texts that nothing was chosen on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from mpcompile.compile.certify import bound_drop
from mpcompile.compile.certify.similarity import measure_similarity
from mpcompile.compile.job import Job
from mpcompile.compile.texts.parts import TextPart, Texts
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.errors import BackendError
from mpcompile.runtime.runtime import Runner


@dataclass(frozen=True)
class Checked:
    """Accuracy of a point beside the original's; None where texts or labels are missing.

    Attributes:
        accuracy, original_accuracy: shares of right answers.
        agreement: share of texts answered as the original does.
        certified_drop: upper bound on the loss, see `certify.bound_drop`.
        measured_on: what the shares were measured on.
        similarity: see `similarity.measure_similarity`.
    """

    accuracy: float | None = None
    original_accuracy: float | None = None
    agreement: float | None = None
    certified_drop: float | None = None
    measured_on: str = "nothing"
    similarity: dict[str, dict[str, float]] = field(default_factory=dict)


def check_point(
    job: Job, runtime: Runner, point: OperatingPoint, parts: Texts | None, test: TextPart | None
) -> Checked:
    """Answers the texts put aside, for the bound, and the test texts where there are any, for the rest.

    Args:
        runtime: the engines.
        point: to check.
        parts: the user's texts.
        test: texts to report on instead of those put aside.

    Raises:
        BackendError: when the engines answer NaN where the original does not.
    """
    checked = Checked()
    if parts is not None:
        checked = _compare(job, runtime, point, parts.certifying, "held-out texts")
    if test is not None:
        on_test = _compare(job, runtime, point, test, "test texts")
        checked = dataclasses.replace(on_test, certified_drop=checked.certified_drop)
    return checked


def _compare(job: Job, runtime: Runner, point: OperatingPoint, part: TextPart, name: str) -> Checked:
    with job.progress.stage(f"answers of the result ({name})") as stage:
        result = part.answer(runtime, point, stage)
    _refuse_nan(result.logits, part, point, name)
    task, answers = part.task, part.task.answers(result.logits)
    lost, original_lost = task.differs(answers, part.truth), task.differs(part.original_answer, part.truth)
    return Checked(
        accuracy=float(1.0 - lost.mean()) if part.has_accuracy else None,
        original_accuracy=float(1.0 - original_lost.mean()) if part.has_accuracy else None,
        agreement=float(1.0 - task.differs(answers, part.original_answer).mean()),
        certified_drop=bound_drop(lost, original_lost if part.has_accuracy else None, job.settings.confidence),
        measured_on=f"{len(part.encoded)} {name}",
        similarity=measure_similarity(task, answers, part.original_answer, part.labels),
    )


def _refuse_nan(logits: np.ndarray, part: TextPart, point: OperatingPoint, name: str) -> None:
    assert part.original is not None
    overflows = int((np.isnan(logits).any(1) & ~np.isnan(part.original).any(1)).sum())
    if overflows:
        raise BackendError(
            f"precision {point.precision!r}: the engines answer {overflows} of {len(logits)} {name} with NaN and the "
            "original does not: they overflow; choose another precision, such as 'f32'"
        )
