"""Numbers of texts that a certificate takes."""

from __future__ import annotations

import math

from scipy.special import ndtri

from mpcompile.compile.certify.drop import SPENT, Counts
from mpcompile.errors import DataError, SettingError

MOST_TESTED = 20_000
"""Texts up to which `texts_needed` asks the test; above it the approximation is within a few percent."""


def least_texts(max_drop: float, confidence: float, *, labelled: bool) -> int:
    """Fewest held-out texts with which a point passes that errs on none where the original is right.

    Without labels this is ln(1 - confidence) / ln(1 - max_drop), since a point that disagrees on a share max_drop of
    all texts agrees on n of them with probability (1 - max_drop)**n. With labels it is a little more.

    Args:
        max_drop: drop to be certified, (0, 1).
        confidence: of the certificate.
        labelled: whether the original can err.

    Raises:
        SettingError: when `max_drop` is 0 or less.
    """
    if max_drop <= 0.0:
        raise SettingError(
            f"max_drop: {max_drop:g}; no number of texts shows that nothing at all is lost: allow some, such as 0.005"
        )
    if max_drop >= 1.0:
        return 1
    failure = 1.0 - confidence
    texts = max(math.ceil(math.log(failure * (1.0 - SPENT * labelled)) / math.log1p(-max_drop)), 1)
    while Counts(texts, 0, 0 if labelled else None).p_value(max_drop, confidence) > failure:
        texts += max(texts // 200, 1)
    return texts


def texts_needed(lost_rate: float, won_rate: float | None, max_drop: float, confidence: float) -> int | None:
    """About how many held-out texts let a point pass as often as not (power 1/2); None when no number does.

    The number at which the median outcome passes: found by the approximation that orders outcomes in the test, and
    raised until the test itself agrees where that is quick.

    Args:
        lost_rate: share of texts on which only the point errs.
        won_rate: share on which only the original errs, None where it cannot.
        max_drop: drop to be certified.
        confidence: of the certificate.
    """
    drop = lost_rate - (won_rate or 0.0)
    if drop >= max_drop:
        return None
    deviations = float(ndtri(confidence))
    total = lost_rate + (won_rate or 0.0)
    constant = (deviations**2 + 2.0) / 3.0
    if won_rate:
        constant -= (deviations**2 + 0.5) / 3.0 * won_rate / total
    slope, spread = max_drop - drop, deviations * math.sqrt(max(total - drop**2, 0.0))
    # slope * texts = constant + spread * sqrt(texts), solved for sqrt(texts).
    root = (spread + math.sqrt(spread**2 + 4.0 * slope * constant)) / (2.0 * slope)
    texts = max(math.ceil(root**2), least_texts(max_drop, confidence, labelled=won_rate is not None))
    while texts <= MOST_TESTED and not _passes_at_median(texts, lost_rate, won_rate, max_drop, confidence):
        texts += max(texts // 100, 1)
    return texts


def _passes_at_median(texts: int, lost_rate: float, won_rate: float | None, max_drop: float, confidence: float) -> bool:
    # A third above the mean, rounded down, is the median of a Poisson count.
    lost = min(int(texts * lost_rate + 1 / 3), texts)
    won = None if won_rate is None else min(int(texts * won_rate + 1 / 3), texts - lost)
    return Counts(texts, lost, won).p_value(max_drop, confidence) <= 1.0 - confidence


def check_texts(texts: int, held_out: int, max_drop: float, confidence: float, *, labelled: bool) -> None:
    """Refuses texts with which nothing could pass, before anything slow is done.

    Args:
        texts: all of them, after `max_texts`.
        held_out: those of them that are for the certificate.
        max_drop: drop to be certified.
        confidence: of the certificate.
        labelled: whether the texts have labels.

    Raises:
        DataError: when they are too few.
        SettingError: when no number is enough.
    """
    least = least_texts(max_drop, confidence, labelled=labelled)
    if held_out >= least:
        return
    in_all = math.ceil(least * texts / held_out) if held_out else 2 * least
    raise DataError(
        f"texts: {texts} are used, {held_out} of them to test what was chosen on the others; max_drop={max_drop:g} "
        f"with confidence={confidence:g} takes at least {least} for the test ({in_all} in all) even where nothing is "
        "lost, and more where something is: give more texts (and raise max_texts), or allow a larger max_drop or "
        "less confidence"
    )


def describe_number(number: int) -> str:
    """Two digits of a number that is known no better: `2,300`."""
    step = 10 ** max(len(str(number)) - 2, 0)
    return f"{math.ceil(number / step) * step:,}"
