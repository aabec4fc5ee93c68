"""How much accuracy may have been lost: a bound that holds whatever the distribution."""

from __future__ import annotations

import numpy as np
from scipy.stats import beta


def bound_drop(loss: np.ndarray, original_loss: np.ndarray, confidence: float) -> float:
    """Upper confidence bound on the mean of `loss - original_loss`.

    The drop is P(only we err) - P(only the original errs). Each probability is bounded with the
    exact binomial interval of Clopper and Pearson (1934), the first from above, the second
    from below, sharing the allowed failure between them; where the original never errs (it is its
    own measure), the first gets all of it. It holds for one point chosen without these texts.

    Args:
        loss: 1 where the point errs, (N,), on texts not used for choosing it.
        original_loss: 1 where the original errs, (N,).
        confidence: probability that the bound holds, (0, 1).
    """
    count = len(loss)
    only_we, only_original = int(np.sum(loss > original_loss)), int(np.sum(loss < original_loss))
    failure = 1.0 - confidence
    if not original_loss.any():
        return _upper(only_we, count, failure)
    return _upper(only_we, count, failure / 2) - _lower(only_original, count, failure / 2)


def _upper(hits: int, count: int, failure: float) -> float:
    return 1.0 if hits == count else float(beta.ppf(1.0 - failure, hits + 1, count - hits))


def _lower(hits: int, count: int, failure: float) -> float:
    return 0.0 if hits == 0 else float(beta.ppf(failure, hits, count - hits + 1))
