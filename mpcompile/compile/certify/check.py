"""Measures what the chosen point loses on texts that nothing was chosen on."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import numpy as np
from scipy.special import ndtr

from mpcompile.compile.certify.drop import Counts
from mpcompile.compile.certify.point_answers import PointAnswers
from mpcompile.compile.certify.similarity import measure_similarity
from mpcompile.compile.texts.parts import TextPart

NOTABLE_LOSS = 0.005
"""Loss that is warned of where texts show beyond doubt that it is larger: half a point."""
DOUBT = 0.01
"""Probability of what counts as beyond doubt, by chance."""
LEAST_TEXTS = 20
"""Texts from which on chance is told from knowledge."""


@dataclass(frozen=True)
class Checked:
    """Accuracy of a point beside the original's; None where texts or labels are missing.

    Attributes:
        accuracy, original_accuracy: shares of right answers.
        agreement: share of texts answered as the original does.
        certified_drop: upper bound on the loss, see `certify.bound_drop`.
        measured_on: what the shares were measured on.
        similarity: see `similarity.measure_similarity`.
        warnings: losses that texts show beyond doubt.
    """

    accuracy: float | None = None
    original_accuracy: float | None = None
    agreement: float | None = None
    certified_drop: float | None = None
    measured_on: str = "nothing"
    similarity: dict[str, dict[str, float]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def check_point(
    index: int, confidence: float, held_out: PointAnswers | None, on_test: PointAnswers | None = None
) -> Checked:
    """Compares a point with the original on the texts put aside, for the bound, and on test texts, for the rest.

    The bound holds whichever of the points that the texts put aside were asked about is returned: the failure that
    `confidence` allows is shared among them (Bonferroni).

    Args:
        index: the point, on the front.
        confidence: of the bound.
        held_out: answers to the texts put aside, None without any.
        on_test: answers to texts to report on instead.

    Raises:
        BackendError: when the engines answer NaN where the original does not.
    """
    checked = Checked()
    if held_out is not None:
        checked = _compare(index, held_out)
        checked = dataclasses.replace(checked, warnings=(*_warn_of_chance(held_out.part), *checked.warnings))
        shared = 1.0 - (1.0 - confidence) / held_out.num_asked
        checked = dataclasses.replace(checked, certified_drop=held_out.count(index).bound_drop(shared))
    if on_test is not None:
        tested = _compare(index, on_test)
        warnings = (*tested.warnings, *checked.warnings)
        if held_out is not None:
            warnings = (*warnings, *_warn_of_known_texts(held_out.part, on_test.part))
        checked = dataclasses.replace(tested, certified_drop=checked.certified_drop, warnings=warnings)
    return checked


def _compare(index: int, asked: PointAnswers) -> Checked:
    part = asked.part
    answers, counts = part.task.answers(asked.logits(index)), asked.count(index)
    return Checked(
        accuracy=float(1.0 - asked.loss(index).mean()) if part.has_accuracy else None,
        original_accuracy=_accuracy_of_original(part) if part.has_accuracy else None,
        agreement=float(1.0 - part.task.differs(answers, part.original_answer).mean()),
        measured_on=f"{len(part.encoded)} {asked.name}",
        similarity=measure_similarity(part.task, answers, part.original_answer, part.labels),
        warnings=_warn_of_loss(counts, asked.name),
    )


def _warn_of_loss(counts: Counts, name: str) -> tuple[str, ...]:
    least = bound_loss_from_below(counts)
    if least <= NOTABLE_LOSS:
        return ()
    what = "answers differ from the original's" if counts.won is None else "of accuracy are lost"
    unit = "of 100" if counts.won is None else "points"
    return (
        f"{100 * counts.drop:.1f} {unit} {what} on {counts.texts:,} {name}, and at least {100 * least:.1f} "
        f"beyond doubt; a smaller target_speedup or a max_drop keeps more",
    )


def bound_loss_from_below(counts: Counts) -> float:
    """Loss that is exceeded beyond doubt: what the original would gain is bounded from above, and turned around."""
    if counts.won is not None:
        return -Counts(counts.texts, counts.won, counts.lost).bound_drop(1.0 - DOUBT)
    # Those that agree are a binomial number, too.
    return 1.0 - Counts(counts.texts, counts.texts - counts.lost, None).bound_drop(1.0 - DOUBT)


def _accuracy_of_original(part: TextPart) -> float:
    return float(1.0 - part.original_loss.mean())


def _warn_of_chance(part: TextPart) -> tuple[str, ...]:
    """Warns of an original that is right no more often than one that always gives the commonest label."""
    if not part.has_accuracy or part.task.kind != "single_label" or len(part.encoded) < LEAST_TEXTS:
        return ()
    right, commonest = _accuracy_of_original(part), float(np.bincount(part.truth).max() / len(part.encoded))
    if right > commonest:
        return ()
    return (
        f"the original answers {100 * right:.1f}% of the held-out texts right, and always giving the commonest label "
        f"would be right on {100 * commonest:.1f}%: do model, tokenizer and the order of labels (id2label) belong "
        "together?",
    )


def _warn_of_known_texts(held_out: TextPart, test: TextPart) -> tuple[str, ...]:
    """Warns where the original is right more often on the texts that were given than on test texts, beyond chance."""
    if not (held_out.has_accuracy and test.has_accuracy):
        return ()
    shares, sizes = (
        [_accuracy_of_original(part) for part in (held_out, test)],
        (len(held_out.encoded), len(test.encoded)),
    )
    pooled = float(np.average(shares, weights=sizes))
    spread = math.sqrt(max(pooled * (1.0 - pooled), 1e-12) * (1.0 / sizes[0] + 1.0 / sizes[1]))
    if 1.0 - ndtr((shares[0] - shares[1]) / spread) > DOUBT / 10:
        return ()
    return (
        f"the original answers {100 * shares[0]:.1f}% of the texts right and {100 * shares[1]:.1f}% of the test texts: "
        "it was probably fine-tuned on the texts, is surer there, and thresholds and certificate promise too much; "
        "give texts that it was not trained on",
    )
