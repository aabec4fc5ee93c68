"""Finds the best exits and thresholds of a schedule at a price of errors, from cached answers alone.

A price, the seconds that one error is worth, makes one number of time and errors. Minimising it runs no model and is
cheap. The solutions at all prices are the lower convex hull of the front.

Shapes: N texts.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mpcompile.compile.choose.candidates import Candidate
from mpcompile.compile.choose.exit_thresholds import ExitTable, search_thresholds
from mpcompile.compile.choose.held_out import HeldOut
from mpcompile.contract.operating_point import BEFORE, OperatingPoint, count_left
from mpcompile.contract.task import Task
from mpcompile.cost.expected import predict_whole
from mpcompile.cost.model import CostModel

MAX_EXITS = 4
"""Off-ramps besides the last: each costs a call of an engine and a look by the host."""
PRICES = tuple(float(price) for price in np.geomspace(0.3, 300.0, 44))
"""Errors are priced at these many times the seconds of the unpruned model."""


@dataclass(frozen=True)
class Pricer:
    """Solves for exits and thresholds on some texts.

    Attributes:
        truth: labels, or the original's answers where there are none, (N, ...).
        lengths: tokens of each text, (N,).
        cost: predicts time.
        batch_size: examples that run together; a text's time is its share of such a batch.
        precision: of the points.
        task: says which answers are wrong.
        predict_before_s: gives the seconds that the exit before the model takes for so many texts, None without it.
    """

    truth: np.ndarray
    lengths: np.ndarray
    cost: CostModel
    batch_size: int
    precision: str
    task: Task
    predict_before_s: Callable[[float], float] | None = None

    @property
    def full_s(self) -> float:
        """Mean predicted seconds of a text in the unpruned model, batches padded to their longest."""
        return predict_whole(self.cost, self.lengths, self.batch_size) / self.batch_size

    def take(self, index: np.ndarray) -> Pricer:
        """The pricer of the texts at some positions."""
        return dataclasses.replace(self, truth=self.truth[index], lengths=self.lengths[index])

    def table(self, held_out: HeldOut, exits: tuple[int, ...], prunes: tuple[int, ...]) -> ExitTable:
        """What happens to each text in a chain of engines that ends at some exits and can prune at some layers.

        Texts of one length run together, as the runtime splits a batch.
        """
        ratios = dict(zip(held_out.schedule.prune_layers, held_out.schedule.keep_ratios, strict=True))
        point = OperatingPoint(exits[-1:], (), prunes, tuple(ratios.get(layer, 1.0) for layer in prunes))
        length, elapsed, seconds, calls = self.lengths, np.zeros(len(self.lengths)), [], []
        if exits[0] == BEFORE:
            assert self.predict_before_s is not None
            call_s = self.predict_before_s(0.0)
            elapsed = elapsed + (self.predict_before_s(self.batch_size) - call_s) / self.batch_size
            seconds.append(elapsed)
            calls.append(call_s)
        of_model = [layer for layer in exits if layer != BEFORE]
        for index, (first, exit_layer) in enumerate(itertools.pairwise((0, *of_model))):
            segment = (index == 0, first, exit_layer)
            taken = self.cost.predict_segment(*segment, float(self.batch_size), length, point)
            call_s, _ = self.cost.predict_call(*segment, int(np.median(length)), point)
            elapsed = elapsed + (taken - call_s) / self.batch_size
            length = count_left(point, first, exit_layer, length)
            seconds.append(elapsed)
            calls.append(call_s + self.cost.predict_reshape(*segment, point))
        return ExitTable(
            np.stack([held_out.entropy[layer] for layer in exits]),
            np.stack(seconds),
            np.stack([self.task.differs(held_out.answer[layer], self.truth) for layer in exits]).astype(np.float64),
            np.array(calls),
            self.batch_size,
        )

    def solve(self, held_out: HeldOut, price_s: float) -> Candidate:
        """The point of a schedule that costs least, time and errors together.

        Exits are added one at a time, each time the one that saves most, as long as one does and up to
        `MAX_EXITS`; thresholds are solved anew for every set that is tried. An exit whose
        threshold makes all texts leave is the last: layers after it are not built.
        """
        prunes = held_out.schedule.pruned_layers()
        *early, last = sorted(held_out.entropy)
        exits: tuple[int, ...] = (last,)
        best = self._solve(held_out, (last,), prunes, price_s)
        for _ in range(MAX_EXITS):
            wider = [tuple(sorted((*exits, layer))) for layer in early if layer not in exits]
            solved = [(self._solve(held_out, tried, prunes, price_s), tried) for tried in wider]
            if not solved or min(solved, key=lambda row: row[0][0])[0][0] >= best[0]:
                break
            best, exits = min(solved, key=lambda row: row[0][0])
        used = [i for i in range(int(np.argmax(best[1] > 1.0)) + 1) if best[1][i] > 0.0]
        exits = tuple(exits[i] for i in used)
        return self.candidate(held_out, self.table(held_out, exits, prunes), exits, best[1][used])

    def spread(self, candidate: Candidate, held_out: HeldOut, price_s: float) -> np.ndarray:
        """What each text costs at a point that `solve` found, time and error together, in seconds, (N,)."""
        exits = candidate.point.exit_layers
        table = self.table(held_out, exits, held_out.schedule.pruned_layers())
        leaves, everyone = np.searchsorted(exits, candidate.exit_layer), np.arange(len(self.truth))
        cost: np.ndarray = table.seconds_of(leaves) + price_s * table.loss[leaves, everyone]
        return cost

    def _solve(
        self, held_out: HeldOut, exits: tuple[int, ...], prunes: tuple[int, ...], price_s: float
    ) -> tuple[float, np.ndarray]:
        """Cost, in seconds, of a set of exits, and its thresholds."""
        table = self.table(held_out, exits, prunes)
        thresholds = search_thresholds(table, price_s)
        seconds, loss = table.evaluate(thresholds)
        return seconds + price_s * loss, thresholds

    def candidate(
        self, held_out: HeldOut, table: ExitTable, exits: tuple[int, ...], thresholds: np.ndarray
    ) -> Candidate:
        """The operating point of some thresholds, without exits at which no text leaves."""
        seconds, loss = table.evaluate(thresholds)
        end = int(np.argmax(thresholds > 1.0))
        used = [i for i in range(end + 1) if thresholds[i] > 0.0]
        point = OperatingPoint(
            exit_layers=tuple(exits[i] for i in used),
            exit_thresholds=tuple(float(thresholds[i]) for i in used[:-1]),
            prune_layers=held_out.schedule.prune_layers,
            keep_ratios=held_out.schedule.keep_ratios,
            precision=self.precision,
            token_thresholds=held_out.schedule.token_thresholds,
        )
        leaves = table.leave_at(thresholds)
        answers = np.stack([held_out.answer[layer] for layer in exits])[leaves, np.arange(leaves.size)]
        return Candidate(point, seconds, loss, np.array(exits)[leaves], answers)
