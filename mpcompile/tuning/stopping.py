"""Decides when a candidate has been measured enough."""

from __future__ import annotations

from collections.abc import Sequence

MAX_ROUNDS = 8
"""Rounds of a candidate that is not stopped."""
START_SLACK = (1.5, 1.2, 1.05, 1.0)
"""How much slower than the start the fastest of 1, 2, 3, 4 or more rounds may be.

Both sides of a ratio are measured within the same second, so that a busy machine slows both. A candidate that is as
fast as the start falls behind it in one round out of two, so in each of four rounds once in 16; one that is faster
more rarely. Before that only what noise does not explain is stopped.
"""
BEST_SLACK = (float("inf"), float("inf"), 1.25, 1.2, 1.1)
"""How much slower than the best candidate the fastest of 1, 2, 3, 4, 5 or more rounds may be.

The best candidate was measured in other rounds. Ratios drift with the load of the machine, by a factor of two where
that was seen first: two lanes of one thread lose less to other processes than one lane of two threads, which wait for
each other. So a candidate gets the rounds that a median needs before it is compared with another hour.
"""


def is_hopeless(ratios: Sequence[float], best: float) -> bool:
    """Whether every round so far was clearly slower than the start, or than the best candidate.

    Args:
        ratios: time of the candidate over that of the start, one per round, at least one.
        best: the lowest ratio of a finished candidate, 1 for the start itself.
    """
    fastest, last = min(ratios), len(ratios) - 1
    return (
        fastest > START_SLACK[min(last, len(START_SLACK) - 1)]
        or fastest > best * BEST_SLACK[min(last, len(BEST_SLACK) - 1)]
    )
