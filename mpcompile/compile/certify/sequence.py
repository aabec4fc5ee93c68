"""Finds the points that lose at most `max_drop`, all at once: Learn-then-Test."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mpcompile.compile.certify.drop import Counts
from mpcompile.compile.certify.sizes import describe_number, texts_needed


@dataclass(frozen=True)
class Certificate:
    """Points tested in a fixed sequence, up to the first that fails.

    Attributes:
        max_drop: drop that was tested.
        confidence: probability that every point that passed drops by at most `max_drop`.
        texts: number of held-out texts.
        tested: how each point that was run compares with the original, in the order of the sequence.
        p_values: of each tested point.
    """

    max_drop: float
    confidence: float
    texts: int
    tested: tuple[Counts, ...]
    p_values: tuple[float, ...]

    @property
    def num_certified(self) -> int:
        """Points at the head of the sequence that passed."""
        return sum(p <= 1.0 - self.confidence for p in self.p_values)

    def describe_failure(self) -> str:
        """Why the first point failed, and how many more texts would let it pass."""
        counts = self.tested[self.num_certified]
        bound = counts.bound_drop(self.confidence)
        said = (
            f"{100 * counts.drop:.2f} points are lost on {counts.texts:,} held-out texts, which shows at most "
            f"{100 * bound:.2f} with {100 * self.confidence:g}% confidence; {100 * self.max_drop:g} are allowed"
        )
        won_rate = None if counts.won is None else counts.won / counts.texts
        needed = texts_needed(counts.lost / counts.texts, won_rate, self.max_drop, self.confidence)
        if needed is None:
            return f"{said}. More texts would not help, a larger drop would"
        more = describe_number(max(needed - counts.texts, 1))
        return f"{said}. About {more} more held-out texts would pass it as often as not, if it loses as here"


def find_certified(
    losses_by_point: Iterable[np.ndarray], original_loss: np.ndarray | None, max_drop: float, confidence: float
) -> Certificate:
    """Tests points one after the other until one fails; those before it are certified together.

    Learn-then-Test (Angelopoulos et al. 2021, arXiv 2110.01052) with fixed sequence testing, as in Pareto Testing
    (Laufer-Goldshtein et al. 2022, arXiv 2210.07913): the order is fixed by other texts than these, so each point is
    tested at the whole level 1 - confidence, and the probability that any certified point drops by more than
    `max_drop` is at most that: the first such point in the sequence would have to pass.

    Args:
        losses_by_point: 1 where the point errs, (N,), in an order that does not depend on these texts, likeliest to
            pass first. Taken one by one, so that points after the first failure are never run.
        original_loss: 1 where the original errs, (N,); None where it is its own measure.
        max_drop: drop that is allowed.
        confidence: of the certificate.
    """
    tested: list[Counts] = []
    p_values: list[float] = []
    for loss in losses_by_point:
        tested.append(Counts.of(loss, original_loss))
        p_values.append(tested[-1].p_value(max_drop, confidence))
        if p_values[-1] > 1.0 - confidence:
            break
    texts = tested[0].texts if tested else 0
    return Certificate(max_drop, confidence, texts, tuple(tested), tuple(p_values))
