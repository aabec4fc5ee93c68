"""A made-up model for tests of the study: what pruning does to its answers is known, and nothing runs."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from mpcompile.compile.choose.held_out import HeldOut
from mpcompile.compile.choose.pricing import Pricer
from mpcompile.compile.choose.schedule_study import StudyResult, StudySettings, search_study
from mpcompile.compile.choose.schedules import KeepSchedule
from mpcompile.contract.task import Task
from mpcompile.cost.model import CostModel
from mpcompile.cost.work import count_region
from tests.mpcompile.cost.counted import RATES, B, S, build_work, pointwise

NUM_LAYERS, NUM_TEXTS, LAYERS = 4, 400, (1, 2)
KERNEL = count_region([pointwise(B * S)])
COST = CostModel(
    build_work(NUM_LAYERS, attention=KERNEL, feed_forward=KERNEL, classifier=KERNEL),
    dataclasses.replace(RATES, engine_s=0.001),
)
TRUTH = np.arange(NUM_TEXTS) % 3
TASK = Task("single_label", 3)
LENGTHS = np.random.default_rng(1).integers(5, 40, NUM_TEXTS)
FIXED = tuple(KeepSchedule(LAYERS, (ratio, ratio)) for ratio in (1.0, 0.7, 0.5))
IDENTITY = {"model": "m", "texts": "t"}


class FakeModel:
    """Answers surely and rightly, the more so the later the exit; pruning in layer 1 hurts, in layer 2 hardly.

    Args:
        pause_s: seconds that a pass takes.
        stop_after: passes after which Ctrl-C is pressed, once.
    """

    def __init__(self, pause_s: float = 0.0, stop_after: int | None = None) -> None:
        self.asked: list[tuple[KeepSchedule, str, int]] = []
        self._pause_s, self._stop_after = pause_s, stop_after

    def __call__(self, schedule: KeepSchedule, precision: str, index: np.ndarray) -> HeldOut:
        self.asked.append((schedule, precision, len(index)))
        if self._stop_after is not None and len(self.asked) == self._stop_after + 1:
            raise KeyboardInterrupt
        time.sleep(self._pause_s)
        first, second = schedule.keep_ratios
        noise = np.random.default_rng(0).standard_normal((NUM_LAYERS + 1, NUM_TEXTS, 3))
        logits = {}
        for layer in range(NUM_LAYERS + 1):
            kept = (first**2 if layer > 1 else 1.0) * (0.9 + 0.1 * second if layer > 2 else 1.0)
            kept *= 0.97 if precision == "int8" else 1.0
            logits[layer] = 1.5 * noise[layer] + (1.0 + 1.5 * layer) * kept * np.eye(3)[TRUTH]
        return HeldOut.from_logits(schedule, {layer: values[index] for layer, values in logits.items()}, TASK)


def run_study(model: FakeModel, storage: Path | None = None, **changes: Any) -> StudyResult:
    """A study of the made-up model."""
    options = {"trials": 12, "price": 5.0, "seed": 0, "precisions": ("f32",), "identity": IDENTITY, **changes}
    everything = np.arange(NUM_TEXTS)
    fixed = {p: [FakeModel()(schedule, p, everything) for schedule in FIXED] for p in options["precisions"]}
    pricers = {p: Pricer(TRUTH, LENGTHS, COST, 1, p, TASK) for p in options["precisions"]}
    url = None if storage is None else str(storage)
    settings = StudySettings(options["trials"], url, options["price"], options["seed"])
    return search_study(model, fixed, pricers, options["identity"], settings)


def front_loss(result: StudyResult, seconds: float) -> float:
    """Least loss of any point within some seconds, over the fixed schedules and those that were found."""
    everything = np.arange(NUM_TEXTS)
    rows = [("f32", FakeModel()(schedule, "f32", everything)) for schedule in FIXED]
    pricer = Pricer(TRUTH, LENGTHS, COST, 1, "f32", TASK)
    points = [
        pricer.solve(held_out, price * pricer.full_s)
        for _, held_out in (*rows, *result.held_out)
        for price in np.geomspace(1.0, 30.0, 8)
    ]
    return min((point.loss for point in points if point.seconds <= seconds), default=np.inf)
