"""What the chosen point costs, on texts that nothing was chosen on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpcompile.answer import answer_texts
from mpcompile.certify import bound_drop
from mpcompile.context import Context, TextPart, Texts
from mpcompile.operating_point import OperatingPoint
from mpcompile.runtime import Runner


@dataclass(frozen=True)
class Checked:
    """Accuracy of a point beside the original's; None where texts or labels are missing.

    Attributes:
        accuracy, original_accuracy: shares of right answers.
        agreement: share of texts answered as the original does.
        certified_drop: upper bound on the loss, see `certify.bound_drop`.
        measured_on: what the shares were measured on.
    """

    accuracy: float | None = None
    original_accuracy: float | None = None
    agreement: float | None = None
    certified_drop: float | None = None
    measured_on: str = "nothing"


def check_point(
    context: Context, runtime: Runner, point: OperatingPoint, parts: Texts | None, test: TextPart | None
) -> Checked:
    """Answers the texts put aside, for the bound, and the test texts where there are any, for the rest.

    Args:
        runtime: the engines.
        point: to check.
        parts: the user's texts.
        test: texts to report on instead of those put aside.
    """
    checked = Checked()
    if parts is not None:
        checked = _compare(context, runtime, point, parts.certifying, "held-out texts")
    if test is not None:
        on_test = _compare(context, runtime, point, test, "test texts")
        bound = checked.certified_drop
        checked = Checked(on_test.accuracy, on_test.original_accuracy, on_test.agreement, bound, on_test.measured_on)
    return checked


def _compare(context: Context, runtime: Runner, point: OperatingPoint, part: TextPart, name: str) -> Checked:
    assert context.encoder is not None
    with context.progress.stage(f"answers of the result ({name})") as stage:
        result = answer_texts(runtime, point, context.encoder, part.encoded, on_batch=stage)
    answers = result.logits.argmax(1)
    original, truth = part.original_answer, part.truth
    accuracy = None if part.labels is None else float(np.mean(answers == truth))
    original_loss = None if part.labels is None else original != truth
    return Checked(
        accuracy=accuracy,
        original_accuracy=None if part.labels is None else float(np.mean(original == truth)),
        agreement=float(np.mean(answers == original)),
        certified_drop=bound_drop(answers != truth, original_loss, context.settings.confidence),
        measured_on=f"{len(part.encoded)} {name}",
    )
