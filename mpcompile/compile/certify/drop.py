"""Exact tests of how much accuracy was lost, whatever the distribution of the texts.

Each text is lost (only we err, with probability `lost_rate`), won (only the original errs, `won_rate`) or neither;
the drop in accuracy is lost_rate - won_rate. The counts say all that is known, so the order of the texts does not
matter.

Without labels the original is its own measure and never errs: the number of lost texts is binomial. With labels the
won texts are a nuisance, and the test is an exact unconditional one: outcomes are ordered by an approximate upper
limit of the drop that does not depend on the drop in question, and the probability of an outcome at least as good
is maximised over the nuisance (Buehler 1957; Lloyd and Kabaila 2003). Of the nuisance only what the lost texts leave
possible is tried, for which `SPENT` of the allowed failure is paid (Berger and Boos 1994).

NOTE: `bench/bench_certificate.py` simulates it beside others. At a level of 5%, max_drop 0.005, 2,000 texts, 0.5% lost
and 0.5% won, this test passes 67% of such points, bets on the mean (Waudby-Smith and Ramdas 2023, predictable plug-in,
which depends on the order of the texts) 51%, a mixture of constant bets 26%, two Clopper-Pearson intervals that share
the failure 24% and Hoeffding-Bentkus (Bates et al. 2021) on the rescaled difference none.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr, bdtri, betaincinv, gammaln, ndtri, xlog1py, xlogy

SPENT = 0.02
"""Share of the allowed failure that pays for trying only the nuisance that the lost texts leave possible."""
BOUND_TOLERANCE = 1e-6
STEPS_PER_DEVIATION = 3
"""Values of the nuisance tried per standard deviation of the won texts: what is maximised is smooth on that scale."""
WINDOW = 6.5
"""Standard deviations of the won texts that are summed over: the rest has a probability of 1e-10."""


@dataclass(frozen=True)
class Counts:
    """Counts of texts on which a point and the original differ.

    Attributes:
        texts: number of texts.
        lost: of them, those on which only the point errs.
        won: those on which only the original errs; None where it cannot, because it is its own measure.
    """

    texts: int
    lost: int
    won: int | None

    @classmethod
    def of(cls, loss: np.ndarray, original_loss: np.ndarray | None) -> Counts:
        """Counts the losses of `p_value`."""
        ours = np.asarray(loss, bool)
        if original_loss is None:
            return cls(len(ours), int(ours.sum()), None)
        theirs = np.asarray(original_loss, bool)
        assert ours.shape == theirs.shape
        return cls(len(ours), int((ours & ~theirs).sum()), int((~ours & theirs).sum()))

    @property
    def drop(self) -> float:
        """Drop on these texts, no bound."""
        return (self.lost - (self.won or 0)) / self.texts if self.texts else 0.0

    @property
    def standard_error(self) -> float:
        """Of `drop`."""
        if not self.texts:
            return 0.0
        differing = (self.lost + (self.won or 0)) / self.texts
        return math.sqrt(max(differing - self.drop**2, 0.0) / self.texts)

    def p_value(self, max_drop: float, confidence: float = 0.95) -> float:
        """See `p_value`."""
        assert -1.0 < max_drop <= 1.0, max_drop
        assert 0.0 < confidence < 1.0, confidence
        if self.texts == 0:
            return 1.0
        if max_drop == 1.0:
            p = float(self.lost == self.texts)
        elif self.won is None:
            p = float(bdtr(self.lost, self.texts, max(max_drop, 0.0)))
        else:
            p = _exact(self.texts, self.lost, self.won, max_drop, confidence)
        return min(max(p, float(np.finfo(float).tiny)), 1.0)

    def bound_drop(self, confidence: float) -> float:
        """See `bound_drop`."""
        if self.won is None:
            return 1.0 if self.lost == self.texts else float(bdtri(self.lost, self.texts, 1.0 - confidence))
        low, high = -1.0, 1.0
        while high - low > BOUND_TOLERANCE:
            middle = (low + high) / 2
            if self.p_value(middle, confidence) <= 1.0 - confidence:
                high = middle
            else:
                low = middle
        return high


def p_value(loss: np.ndarray, original_loss: np.ndarray | None, max_drop: float, confidence: float = 0.95) -> float:
    """Probability of texts at least as good as these if accuracy really fell by `max_drop` or more.

    Under that hypothesis it is at most x with probability at most x, for every x, number of texts and distribution.
    It falls as `max_drop` grows, and does not fall when one more text goes wrong.

    Args:
        loss: 1 where the point errs, (N,), on texts not used for choosing it.
        original_loss: 1 where the original errs, (N,); None where it is its own measure, so that it cannot err.
        max_drop: drop that is tested, (-1, 1].
        confidence: that the test will be held to, fixed before the texts are seen. With labels it decides how
            outcomes are ordered: the p-value is sharp near 1 - confidence, larger than need be far from it, and never
            below `SPENT` of it. It is valid with any.
    """
    return Counts.of(loss, original_loss).p_value(max_drop, confidence)


def bound_drop(loss: np.ndarray, original_loss: np.ndarray | None, confidence: float) -> float:
    """Upper confidence bound on the drop: the smallest `max_drop` that `p_value` rejects.

    It holds for one point chosen without these texts; without labels it is the bound of Clopper and Pearson (1934).

    Args:
        loss: 1 where the point errs, (N,), on texts not used for choosing it.
        original_loss: 1 where the original errs, (N,); None where it is its own measure.
        confidence: probability that the bound holds, (0, 1).
    """
    return Counts.of(loss, original_loss).bound_drop(confidence)


def rank_outcome(lost: np.ndarray, won: np.ndarray, confidence: float) -> np.ndarray:
    """Order of outcomes, best first: about texts * (upper limit of the drop at `confidence`), less a constant.

    It is Wald's limit with the continuity and skewness corrections that make it follow the exact limits of a Poisson
    mean where nothing was won. It rises with `lost` and falls with `won` because the pseudo-count under the root is
    above deviations**2 / 4: the test needs that.
    """
    deviations = max(float(ndtri(confidence)), 0.0)
    pseudo_count, skew = deviations**2 / 4 + 0.1, (deviations**2 + 0.5) / 3
    total = lost + won
    return np.asarray(lost - won + deviations * np.sqrt(total + pseudo_count) - skew * won / (total + 1.0))


@functools.lru_cache(maxsize=100_000)
def _exact(texts: int, lost: int, won: int, max_drop: float, confidence: float) -> float:
    """The test with labels: the largest probability over the nuisance.

    At a given lost_rate, an outcome at least as good is likeliest with the drop at its boundary; in what follows the
    nuisance is the won_rate there. Its largest value depends on `lost` alone, and not on `max_drop` but by the shift
    from lost_rate to won_rate, which keeps the p-value monotone in both.
    """
    spent = SPENT * (1.0 - confidence)
    highest_lost_rate = _upper(lost, texts, spent)
    if highest_lost_rate <= max_drop:  # a rate equal to the limit of Clopper and Pearson is rejected, too
        return spent
    lowest, highest = max(0.0, -max_drop), min(highest_lost_rate - max_drop, (1.0 - max_drop) / 2)
    if highest <= lowest:
        return 1.0
    step = 0.5 / STEPS_PER_DEVIATION / np.sqrt(texts)
    rates = np.append(np.arange(np.sqrt(lowest), np.sqrt(highest), step) ** 2, highest)
    most_won = min(texts, int(texts * highest + WINDOW * np.sqrt(texts * highest) + 30))
    at_least_as_good = _largest_lost(texts, lost, won, most_won, confidence)
    chance = [_chance(texts, at_least_as_good, max_drop, rate) for rate in rates]
    best = int(np.argmax(chance))
    finer = np.linspace(rates[max(best - 1, 0)], rates[min(best + 1, len(rates) - 1)], 4 * STEPS_PER_DEVIATION)
    return spent + max(chance[best], *(_chance(texts, at_least_as_good, max_drop, rate) for rate in finer))


def _largest_lost(texts: int, lost: int, won: int, most_won: int, confidence: float) -> np.ndarray:
    """The most texts that may be lost in an outcome at least as good, by texts won; -1 for none, (most_won + 1,)."""
    limit = rank_outcome(np.array(lost), np.array(won), confidence)
    by_won = np.arange(most_won + 1)
    low, high = np.full(most_won + 1, -1), texts - by_won
    while (low < high).any():
        middle = (low + high + 1) // 2
        good = rank_outcome(np.maximum(middle, 0), by_won, confidence) <= limit + 1e-9
        low, high = np.where(good, middle, low), np.where(good, high, middle - 1)
    return low


def _chance(texts: int, largest_lost: np.ndarray, drop: float, won_rate: float) -> float:
    """Probability of an outcome within `largest_lost` when lost_rate = won_rate + drop."""
    mean = texts * won_rate
    spread = WINDOW * np.sqrt(mean)
    won = np.arange(max(0, int(mean - spread - 10)), min(len(largest_lost) - 1, int(mean + spread + 30)) + 1)
    ways = gammaln(texts + 1.0) - gammaln(won + 1.0) - gammaln(texts - won + 1.0)
    of_won = np.exp(ways + xlogy(won, won_rate) + xlog1py(texts - won, -won_rate))
    lost_among_rest = min(max((won_rate + drop) / (1.0 - won_rate), 0.0), 1.0)
    largest = largest_lost[won]
    of_lost = np.where(largest < 0, 0.0, bdtr(np.maximum(largest, 0), texts - won, lost_among_rest))
    return float(of_won @ of_lost)


def _upper(hits: int, count: int, failure: float) -> float:
    """Upper bound on a share, Clopper and Pearson (1934)."""
    return 1.0 if hits == count else float(betaincinv(hits + 1, count - hits, 1.0 - failure))
