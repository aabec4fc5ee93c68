"""Searches keep ratios: schedules, which are slow to try, are sampled; exits and thresholds are solved for each.

A forward pass over the texts under one schedule of keep ratios is slow. Which exits to use, where the model ends and
which thresholds: all that is free once the pass is done, so a trial does not sample it. It samples a schedule, a
precision, and a price of errors, which says where on the front to look; `Pricer.solve` finds exits and thresholds
there. The answers then also serve at every other price.

Shapes: N texts.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpcompile.compile.choose.held_out import HeldOut, join_held_out
from mpcompile.compile.choose.pricing import Pricer
from mpcompile.compile.choose.schedules import KeepSchedule
from mpcompile.compile.choose.trial_book import Curve, TrialBook, Tried, Trying
from mpcompile.cost.rates import Rates

logger = logging.getLogger(__name__)

EARLY_SHARE = 4
"""One part in so many of the texts tells whether the others are worth the pass."""
ERRORS, TIE = 2.0, 1e-9
"""A schedule goes on when it may be better: within so many standard errors, and by more than rounding."""
NUM_PRICES = 7
RANGE = 8.0
"""Prices are sampled up to so many times above and below that of the target's point."""
Answer = Callable[[KeepSchedule, str, np.ndarray], HeldOut]
"""Answers of the texts at some positions, under a schedule, in a precision."""


@dataclass(frozen=True)
class StudySettings:
    """Settings of a study.

    Attributes:
        trials: schedules to try beside the fixed ones, those of earlier runs and other processes included.
        storage: URL of an Optuna storage or a path of a SQLite file; None keeps the study in memory.
        price: of an error at the target's point of the fixed schedules, times the seconds of the unpruned model.
        seed: of the sampler.
    """

    trials: int
    storage: str | None
    price: float
    seed: int


@dataclass(frozen=True)
class StudyResult:
    """The result of a study.

    Attributes:
        held_out: precision and answers of the schedules that hold a part of the front, without the fixed ones.
        tried: schedules tried to the end.
        pruned: schedules given up early.
    """

    held_out: tuple[tuple[str, HeldOut], ...]
    tried: int
    pruned: int


def search_study(
    answer: Answer,
    fixed: Mapping[str, Sequence[HeldOut]],
    pricers: Mapping[str, Pricer],
    identity: Mapping[str, str],
    settings: StudySettings,
    on_step: Callable[[float], None] = lambda _: None,
) -> StudyResult:
    """Tries schedules of keep ratios; the same seed in one process gives the same result.

    A killed run goes on where it was when it has a storage, and so do many processes at once. Ctrl-C ends the study
    with what it has.

    Args:
        answer: runs the model.
        fixed: by precision, answers of the schedules to beat, the first without pruning.
        pricers: by precision, the texts and the cost model.
        identity: what the study belongs to.
        settings: of the study.
        on_step: told the share done.

    Raises:
        SettingError: when the storage cannot be opened.
        StudyError: when the study there belongs to something else, or the storage fails.
    """
    prices = [float(p) for p in np.geomspace(settings.price / RANGE, settings.price * RANGE, NUM_PRICES)]
    costs = {
        name: {"scale": pricer.cost.scale, "rates": dataclasses.asdict(pricer.cost.rates)}
        for name, pricer in pricers.items()
    }
    layers = next(iter(fixed.values()))[0].schedule.prune_layers
    setup = {"prices": prices, "costs": costs}
    url = settings.storage
    if url is not None and "://" not in url:
        url = f"sqlite:///{url}"
    book = TrialBook(url, identity, setup, layers, tuple(pricers), settings.seed)
    study = _Study(answer, pricers, book)
    study.enter_fixed(fixed)
    try:
        while (taken := book.count_taken()) < settings.trials:
            on_step(taken / settings.trials)
            study.try_next()
    except KeyboardInterrupt:
        logger.warning("search interrupted: going on with the %d schedules that were tried", len(book.tried()))
    return study.finish()


class _Study:
    """A process's part of a study: the answers that it has, and the best of them at each price."""

    def __init__(self, answer: Answer, pricers: Mapping[str, Pricer], book: TrialBook) -> None:
        self._answer, self._book = answer, book
        self._prices: Sequence[float] = book.setup["prices"]
        self._pricers = {name: _share_cost(pricer, book) for name, pricer in pricers.items()}
        self._full_s = next(iter(self._pricers.values())).full_s
        self._num_texts = len(next(iter(pricers.values())).lengths)
        self._best: list[_Best | None] = [None] * len(self._prices)
        self._fixed_curves: list[Curve] = []

    def enter_fixed(self, fixed: Mapping[str, Sequence[HeldOut]]) -> None:
        """Enters the fixed schedules, each at a price of its own: the milder ones where errors cost more."""
        for precision, held_outs in fixed.items():
            for i, held_out in enumerate(held_outs):
                curve = self._trace(precision, held_out)
                self._fixed_curves.append(curve)
                price = len(self._prices) - 1 - i % len(self._prices)
                self._book.enter(Tried(held_out.schedule, precision, curve), self._prices[price], curve[price])
        for tried in self._on_front():  # of a run that was killed
            self._trace(tried.precision, self._answer_all(tried))

    def try_next(self) -> None:
        """Tries a schedule: on a part of the texts first, and on the others where that is promising."""
        trying = self._book.ask()
        try:
            early, late = self._split()
            held_out = self._answer(trying.schedule, trying.precision, early)
            if self._is_beaten(trying, held_out, early):
                self._book.prune(trying)
                return
            held_out = join_held_out([held_out, self._answer(trying.schedule, trying.precision, late)])
            curve = self._trace(trying.precision, held_out)
            self._book.complete(trying, self._value(trying, held_out), curve)
        except BaseException:
            self._book.put_back(trying)
            raise

    def finish(self) -> StudyResult:
        """Answers of the schedules that hold a part of the front, whichever process tried them."""
        kept = tuple((tried.precision, self._answer_all(tried)) for tried in self._on_front())
        return StudyResult(kept, len(self._book.tried()), self._book.count_pruned())

    def _on_front(self) -> list[Tried]:
        """Schedules that were tried, one of whose points no other schedule's point beats."""
        tried = list({(row.schedule, row.precision): row for row in self._book.tried()}.values())
        points = [point for curve in (*self._fixed_curves, *(row.curve for row in tried)) for point in curve]

        def is_best(time: float, loss: float) -> bool:
            return not any(t <= time and q <= loss and (t, q) != (time, loss) for t, q in points)

        return [row for row in tried if any(is_best(*point) for point in row.curve)]

    def _split(self) -> tuple[np.ndarray, np.ndarray]:
        cut = self._num_texts // EARLY_SHARE
        return np.arange(cut), np.arange(cut, self._num_texts)

    def _answer_all(self, tried: Tried) -> HeldOut:
        return join_held_out([self._answer(tried.schedule, tried.precision, part) for part in self._split()])

    def _value(self, trying: Trying, held_out: HeldOut) -> tuple[float, float]:
        point = self._pricers[trying.precision].solve(held_out, trying.price * self._full_s)
        return point.seconds / self._full_s, point.loss

    def _trace(self, precision: str, held_out: HeldOut) -> Curve:
        """The points of a schedule at all prices; the best at each price is kept to compare with."""
        curve, pricer = [], self._pricers[precision]
        for i, price in enumerate(self._prices):
            point = pricer.solve(held_out, price * self._full_s)
            curve.append((point.seconds / self._full_s, point.loss))
            cost, best = point.seconds + price * self._full_s * point.loss, self._best[i]
            if best is None or cost < best.cost:
                self._best[i] = _Best(cost, precision, held_out)
        return tuple(curve)

    def _is_beaten(self, trying: Trying, held_out: HeldOut, index: np.ndarray) -> bool:
        """Whether a schedule is no better at its price than the best so far, text by text, beyond doubt.

        Both get exits and thresholds that suit these few texts best, so that neither has an advantage.
        """
        nearest = int(np.abs(np.log(np.array(self._prices) / trying.price)).argmin())
        best = self._best[nearest]
        assert best is not None
        ours = self._spread(trying.precision, held_out, index, trying.price)
        worse = ours - self._spread(best.precision, best.held_out.take(index), index, trying.price)
        is_beaten: bool = worse.mean() - ERRORS * worse.std() / np.sqrt(len(worse)) >= -TIE * ours.mean()
        return is_beaten

    def _spread(self, precision: str, held_out: HeldOut, index: np.ndarray, price: float) -> np.ndarray:
        pricer = self._pricers[precision].take(index)
        return pricer.spread(pricer.solve(held_out, price * self._full_s), held_out, price * self._full_s)


@dataclass(frozen=True)
class _Best:
    """The best schedule so far at a price."""

    cost: float
    precision: str
    held_out: HeldOut


def _share_cost(pricer: Pricer, book: TrialBook) -> Pricer:
    """The pricer with the cost model that all processes of the study share."""
    shared = book.setup["costs"][pricer.precision]
    rates = dict(shared["rates"])
    rates["tiles"] = tuple((int(rows), int(columns), float(share)) for rows, columns, share in rates["tiles"])
    cost = dataclasses.replace(pricer.cost, rates=Rates(**rates), scale=float(shared["scale"]))
    return dataclasses.replace(pricer, cost=cost)
