"""Times every point of the front, interleaved with the original on the same batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mpcompile.compile.choose.candidates import Candidate
from mpcompile.compile.choose.points import Chosen
from mpcompile.compile.job import Job, Model
from mpcompile.compile.measure.workload import MIN_BATCHES, Traffic, Workload, count_batches
from mpcompile.compile.original import Original, place_original
from mpcompile.compile.texts.parts import TextPart
from mpcompile.contract.backend import Target
from mpcompile.contract.front import MeasuredPoint
from mpcompile.contract.operating_point import OperatingPoint, mean_layers
from mpcompile.cost.chain import Chain, predict_workload
from mpcompile.cost.timing import Timing, measure_interleaved, measure_noise
from mpcompile.progress import StageProgress
from mpcompile.runtime.runtime import Runner, RunResult, Runtime

GAIN_RUNS, FRONT_RUNS, MOST_RUNS = 3, 5, 11
"""Times that precisions are timed, and the points of a front: more often on a busy machine, and as often as precisions
where few batches take long already."""
GAIN_BATCHES = 8
PROBE_TEXTS = 16
STEADY = 1.2
"""Times as long as at the start that the original may take for the same texts, on a machine that is not busy."""
Calls = Sequence[Callable[[], object]]


@dataclass(frozen=True)
class Baseline:
    """The systems that points are compared with, on one workload.

    Attributes:
        original: the model as passed in, see `Pace`.
        num_threads: CPU threads that the original runs fastest on.
        unpruned: the whole model as one engine.
        unpruned_point: of that engine.
        grouped: the same engine with batches split by length, None where that is nothing else.
        workload: batches.
        input_names: what the original reads of a batch.
    """

    original: Original
    num_threads: int
    unpruned: Runtime
    unpruned_point: OperatingPoint
    workload: Workload
    input_names: tuple[str, ...]
    grouped: Runner | None = None

    def original_calls(self) -> Calls:
        """The original as passed in, a call per batch."""
        prepared = [self.original.prepare(batch, self.input_names) for batch in self.workload.batches]
        return [partial(self.original.run, batch, self.num_threads) for batch in prepared]

    def unpruned_calls(self) -> Calls:
        """The unpruned engine, a call per batch."""
        return self.point_calls(self.unpruned, self.unpruned_point)

    def grouped_calls(self) -> dict[str, Calls]:
        """The unpruned engine with batches split by length, where that is something else."""
        return {} if self.grouped is None else {"grouped": self.point_calls(self.grouped, self.unpruned_point)}

    def point_calls(self, runtime: Runner, point: OperatingPoint) -> Calls:
        """An operating point of a chain of engines, a call per batch."""
        return [partial(runtime.run, batch, point) for batch in self.workload.batches]


@dataclass(frozen=True)
class TimedChain:
    """A chain of engines, and the candidates that it was built for."""

    runtime: Runner
    chosen: Chosen


@dataclass(frozen=True)
class Pace:
    """The speed of the original, as passed in.

    Attributes:
        original: as it is timed, see `place_original`.
        num_threads: that the original runs fastest on.
        batch_s: seconds for a batch.
        probe: calls of the original that this was measured by.
    """

    original: Original
    num_threads: int
    batch_s: float
    probe: Calls = ()

    @property
    def num_batches(self) -> int:
        """Batches of a run."""
        return count_batches(self.batch_s)

    def describe_slowdown(self) -> tuple[str, ...]:
        """A note where the same calls take much longer now than at the start.

        A load that stays while points are timed shows in no spread of their rounds, and slows small engines and large
        ones unlike.
        """
        now_s = _time_probe(self.probe)
        if now_s <= STEADY * self.batch_s:
            return ()
        return (
            f"the machine was busy: the original took {1e3 * now_s:.1f} ms for a batch once points were timed, and "
            f"{1e3 * self.batch_s:.1f} ms for the same texts at the start; run it again where nothing else runs",
        )


def _time_probe(probe: Calls) -> float:
    return measure_interleaved({"original": probe}, runs=1)["original"].median_s


def measure_pace(job: Job, model: Model, target: Target, traffic: Traffic) -> Pace:
    """Times the original on `PROBE_TEXTS` texts, or on one batch of them where it is larger."""
    probe, names = traffic.draw(max(PROBE_TEXTS // traffic.batch_size, 1)), model.captured.input_names
    with job.progress.stage("time the original"):
        original = place_original(job.original, target.backend.device_kind, probe.batches, names)
        prepared = [original.prepare(batch, names) for batch in probe.batches]
        num_threads = original.find_threads(prepared)
        calls = [partial(original.run, batch, num_threads) for batch in prepared]
        return Pace(original, num_threads, _time_probe(calls), calls)


def measure_engine_gains(progress: StageProgress, baselines: Mapping[str, Baseline]) -> list[float]:
    """Time of the original over that of each unpruned engine, interleaved on the same batches.

    Args:
        progress: draws the stage.
        baselines: the original and the unpruned engine of each precision, on one workload.
    """
    calls = {name: baseline.unpruned_calls() for name, baseline in baselines.items()}
    calls["original"] = next(iter(baselines.values())).original_calls()
    with progress.stage("time unpruned engines") as stage:
        timings = measure_interleaved(calls, GAIN_RUNS, on_run=stage)
    return [timings["original"].median_s / timings[name].median_s for name in baselines]


@dataclass(frozen=True)
class MeasuredFronts:
    """Times of one interleaved run.

    Attributes:
        fronts: of each chain of engines, a row for each candidate.
        original, unpruned: timings of the baseline.
        grouped: of the unpruned engine with batches split by length, None where that is nothing else.
    """

    fronts: tuple[tuple[MeasuredPoint, ...], ...]
    original: Timing
    unpruned: Timing
    grouped: Timing | None


def count_front_runs(num_batches: int) -> int:
    """Times that the points of a front are timed on so many batches, at least."""
    return min(FRONT_RUNS, GAIN_RUNS) if num_batches <= MIN_BATCHES else FRONT_RUNS


def measure_fronts(
    progress: StageProgress, baseline: Baseline, chains: Sequence[TimedChain], part: TextPart | None
) -> MeasuredFronts:
    """Times the baseline and every candidate of every chain of engines, interleaved.

    Args:
        progress: draws the stage.
        baseline: the original, the unpruned engine and the workload.
        chains: what is timed.
        part: the texts that candidates were chosen on, with the original's answers; None without texts.
    """
    calls: dict[str, Calls] = {"original": baseline.original_calls(), "unpruned": baseline.unpruned_calls()}
    calls |= baseline.grouped_calls()
    for number, chain in enumerate(chains):
        candidates = chain.chosen.candidates
        calls |= {f"{number} {i}": baseline.point_calls(chain.runtime, c.point) for i, c in enumerate(candidates)}
    with progress.stage("measure operating points") as stage:
        warm: dict[str, list[Any]] = {name: [call() for call in every] for name, every in calls.items()}
        runs = count_front_runs(len(baseline.workload.batches))
        timings = measure_interleaved(calls, runs, warm_up=0, on_run=stage, most_runs=MOST_RUNS)
    original = timings["original"]
    fronts = tuple(
        tuple(
            _describe(baseline, chain, candidate, (original, timings[f"{number} {i}"], warm[f"{number} {i}"]), part)
            for i, candidate in enumerate(chain.chosen.candidates)
        )
        for number, chain in enumerate(chains)
    )
    return MeasuredFronts(fronts, original, timings["unpruned"], timings.get("grouped"))


def measure_pruning(progress: StageProgress, baseline: Baseline, runtime: Runner, point: OperatingPoint) -> float:
    """Time that a point would take if it kept every token, over its time; 1 where it does."""
    exits_only = dataclasses.replace(
        point,
        keep_ratios=(1.0,) * len(point.keep_ratios),
        token_thresholds=(0.0,) * len(point.token_thresholds),
    )
    if not point.prunes:
        return 1.0
    calls = {"exits": baseline.point_calls(runtime, exits_only), "chosen": baseline.point_calls(runtime, point)}
    with progress.stage("measure what pruning brings") as stage:
        timings = measure_interleaved(calls, GAIN_RUNS, on_run=stage)
    return timings["exits"].median_s / timings["chosen"].median_s


def _describe(
    baseline: Baseline,
    chain: TimedChain,
    candidate: Candidate,
    timed: tuple[Timing, Timing, Sequence[RunResult]],
    part: TextPart | None,
) -> MeasuredPoint:
    """A row of the front, from timings of the original and of the candidate, and its answers to the workload."""
    cost, workload, (original, measured, answers) = chain.chosen.cost, baseline.workload, timed
    if part is None:
        lengths = np.array([batch["attention_mask"].sum(1) for batch in workload.batches])
        all_lengths, all_exits = lengths.ravel(), np.full(lengths.size, candidate.exit_layer[0])
    else:
        all_lengths, all_exits = part.lengths, candidate.exit_layer
    batches = [batch["attention_mask"].sum(1) for batch in workload.batches]
    exits = [answer.exit_layer for answer in answers]
    full = OperatingPoint((cost.work.num_layers,))
    flops = cost.count_flops(all_lengths, candidate.point, all_exits).sum()
    full_flops = cost.count_flops(all_lengths, full, np.full_like(all_exits, cost.work.num_layers)).sum()
    ngrams = chain.chosen.ngrams
    cuts = Chain(
        tuple(s.exit_layer for s in chain.runtime.segments),
        chain.runtime.split_tokens,
        None if ngrams is None else ngrams.predict_s,
    )
    accuracy, agreement, drop = _losses(candidate, part)
    return MeasuredPoint(
        point=candidate.point,
        predicted_s=predict_workload(cost, cuts, candidate.point, batches, exits),
        measured_s=measured.median_s,
        speedup=original.median_s / measured.median_s,
        accuracy=accuracy,
        agreement=agreement,
        drop=drop,
        flops_ratio=float(full_flops / flops),
        mean_exit_layer=mean_layers(all_exits),
        noise=measure_noise(original, measured),
    )


def _losses(candidate: Candidate, part: TextPart | None) -> tuple[float | None, float | None, float | None]:
    """Accuracy, agreement and drop on the texts for choosing."""
    if part is None:
        return None, None, None
    differs = part.task.differs
    agreement = float(1.0 - differs(candidate.answer, part.original_answer).mean())
    if not part.has_accuracy:
        return None, agreement, 1.0 - agreement
    accuracy = float(1.0 - differs(candidate.answer, part.truth).mean())
    return accuracy, agreement, float(1.0 - part.original_loss.mean()) - accuracy
