"""The decision: compares the best few with the start once more; a winner has to beat it by more than noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mpcompile.tuning.measurer import MeasureFailed, Measurer
from mpcompile.tuning.study import TuningStudy
from mpcompile.tuning.variant import Variant

FINALISTS = 3
FINAL_ROUNDS = 21
MIN_GAIN = 0.01
"""Share of the start's time that a winner has to save: less is not worth another artifact."""
ERROR_RATE = 0.01
"""Chance that a variant which saves less than `MIN_GAIN` is returned all the same."""

Rounds = list[list[float]]
"""Seconds of the start and of each finalist, for each round."""


@dataclass(frozen=True)
class Decision:
    """Outcome of the last comparison.

    Attributes:
        winner: the variant to return; the start where nothing beat it.
        start_s: median seconds per batch of the start.
        winner_s: median seconds per batch of the winner, in the same rounds.
        wins: rounds that the winner won, 0 for the start.
        rounds: rounds measured; 0 when there was no candidate to compare.
    """

    winner: Variant
    start_s: float
    winner_s: float
    wins: int
    rounds: int


def decide(study: TuningStudy, measurer: Measurer, start: Variant, on_round: Callable[[float], None]) -> Decision:
    """Compares the best candidates with the start, afresh.

    Args:
        study: knows the best, and keeps the rounds.
        measurer: measures them in one process.
        start: what the artifact is.
        on_round: called with the share of rounds done.
    """
    finalists = study.best_variants(FINALISTS)
    try:
        return _compare(study, measurer, start, finalists, on_round)
    except MeasureFailed:
        # One of them took the process down: each is compared alone, so that it does not take others with it.
        decisions = [_compare_alone(study, measurer, start, finalist, on_round) for finalist in finalists]
    found = [decision for decision in decisions if decision is not None]
    winners = [decision for decision in found if decision.winner != start]
    if winners:
        return min(winners, key=lambda decision: decision.winner_s / decision.start_s)
    return found[0] if found else _compare(study, measurer, start, [], on_round)


def count_wins_needed(rounds: int, finalists: int) -> int:
    """Rounds that a finalist has to win so that luck is ruled out: a sign test, corrected for several finalists.

    If a variant is not faster, it wins a round with a chance of at most one half, whatever the noise is distributed
    like and however large single rounds come out. More than all rounds is returned when there are too few of them.
    """
    tail, allowed = 0.0, ERROR_RATE / max(finalists, 1)
    for wins in range(rounds, -1, -1):
        tail += math.comb(rounds, wins) / 2.0**rounds
        if tail > allowed:
            return wins + 1
    return 0


def choose_winner(rounds: Rounds) -> int | None:
    """Position of the finalist to return, from 0; None when the start stays."""
    seconds = np.array(rounds)
    ratios = seconds[:, 1:] / seconds[:, :1]
    wins = (ratios < 1.0 - MIN_GAIN).sum(0)
    order = np.argsort(np.median(ratios, 0), kind="stable")
    needed = count_wins_needed(*ratios.shape)
    return next((int(i) for i in order if wins[i] >= needed), None)


def _compare_alone(
    study: TuningStudy, measurer: Measurer, start: Variant, finalist: Variant, on_round: Callable[[float], None]
) -> Decision | None:
    try:
        return _compare(study, measurer, start, [finalist], on_round)
    except MeasureFailed:
        return None


def _compare(
    study: TuningStudy,
    measurer: Measurer,
    start: Variant,
    finalists: Sequence[Variant],
    on_round: Callable[[float], None],
) -> Decision:
    rounds = study.load_final_rounds(finalists)
    if len(rounds) < FINAL_ROUNDS:
        measurer.build(finalists)
        measurer.warm_up()
    while len(rounds) < FINAL_ROUNDS:
        rounds.append(measurer.measure_round())
        study.save_final_rounds(finalists, rounds)
        on_round(len(rounds) / FINAL_ROUNDS)
    seconds = np.median(np.array(rounds), axis=0)
    index = choose_winner(rounds) if finalists else None
    if index is None:
        return Decision(start, float(seconds[0]), float(seconds[0]), 0, len(rounds))
    table = np.array(rounds)
    wins = int((table[:, index + 1] < table[:, 0]).sum())
    return Decision(finalists[index], float(seconds[0]), float(seconds[index + 1]), wins, len(rounds))
