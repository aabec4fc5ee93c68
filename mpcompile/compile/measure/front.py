"""Times every point of the front, interleaved with the original on the same batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mpcompile.compile.choose.candidates import Candidate
from mpcompile.compile.choose.choosing import Chosen
from mpcompile.compile.context import Context, TextPart
from mpcompile.compile.measure.workload import Workload, build_workload, count_batches, random_batch
from mpcompile.compile.reference import unpruned_point
from mpcompile.contract.front import MeasuredPoint
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.cost.chain import Chain, predict_workload
from mpcompile.cost.timing import Timing, measure_interleaved
from mpcompile.runtime.runtime import Runner, Runtime

FRONT_RUNS, FINAL_RUNS = 3, 5
GAIN_BATCHES = 8
PROBE_TEXTS = 32
Calls = Sequence[Callable[[], object]]


@dataclass(frozen=True)
class Systems:
    """The systems that are timed, on one workload.

    Attributes:
        context: the model.
        workload: batches.
        unpruned: the whole model as one engine.
        runtime: the chain of engines.
        num_threads: that the original runs fastest on.
    """

    context: Context
    workload: Workload
    unpruned: Runtime
    runtime: Runner
    num_threads: int

    def original_calls(self) -> Calls:
        """The original as passed in, a call per batch."""
        original, names = self.context.original, self.context.captured.input_names
        prepared = [original.prepare(batch, names) for batch in self.workload.batches]
        return [partial(original.run, batch, self.num_threads) for batch in prepared]

    def unpruned_calls(self) -> Calls:
        """The baseline, a call per batch."""
        point = unpruned_point(self.context)
        return [partial(self.unpruned.run, batch, point) for batch in self.workload.batches]

    def point_calls(self, point: OperatingPoint) -> Calls:
        """An operating point, a call per batch."""
        return [partial(self.runtime.run, batch, point) for batch in self.workload.batches]


@dataclass(frozen=True)
class Pace:
    """The speed of the original, as passed in.

    Attributes:
        num_threads: that the original runs fastest on.
        batch_s: seconds for a batch.
    """

    num_threads: int
    batch_s: float

    @property
    def num_batches(self) -> int:
        """Batches of a run."""
        return count_batches(self.batch_s)


def measure_pace(context: Context, part: TextPart | None, length: int) -> Pace:
    """Times the original on `PROBE_TEXTS` texts, or on one batch of them where it is larger.

    Args:
        part: texts to draw from; None makes random ids of `length`.
        length: tokens, without texts.
    """
    probe = make_workload(context, part, None, length, max(PROBE_TEXTS // context.settings.batch_size, 1))
    original = context.original
    prepared = [original.prepare(batch, context.captured.input_names) for batch in probe.batches]
    with context.progress.stage("time the original"):
        num_threads = original.find_threads(prepared)
        calls = [partial(original.run, batch, num_threads) for batch in prepared]
        return Pace(num_threads, measure_interleaved({"original": calls}, runs=1)["original"].median_s)


def make_workload(
    context: Context, part: TextPart | None, rank: np.ndarray | None, length: int, num_batches: int
) -> Workload:
    """Batches of the texts.

    Args:
        part: texts to draw from; None makes four batches of random ids of `length`.
        rank: how hard each text is, (N,); None ranks them by length.
        length: tokens, without texts.
        num_batches: at most this many.
    """
    size, seed = context.settings.batch_size, context.settings.seed
    if part is None:
        batches = tuple(random_batch(context.captured.vocab_size, size, length, seed) for seed in range(4))
        return Workload(batches, tuple(np.arange(size) for _ in batches))
    assert context.tokenizer is not None
    return build_workload(
        context.tokenizer, part.encoded, size, num_batches, part.lengths if rank is None else rank, seed
    )


def measure_engine_gains(context: Context, unpruned: Mapping[str, Runtime], part: TextPart, pace: Pace) -> list[float]:
    """Time of the original over that of each unpruned engine, interleaved on some batches of the texts.

    Args:
        unpruned: the engine of each precision.
        part: texts.
        pace: of the original.
    """
    workload = make_workload(context, part, None, 0, min(pace.num_batches, GAIN_BATCHES))
    systems = {
        name: Systems(dataclasses.replace(context, precision=name), workload, engine, engine, pace.num_threads)
        for name, engine in unpruned.items()
    }
    calls = {name: its.unpruned_calls() for name, its in systems.items()}
    calls["original"] = next(iter(systems.values())).original_calls()
    with context.progress.stage("time unpruned engines") as stage:
        timings = measure_interleaved(calls, FRONT_RUNS, on_run=stage)
    return [timings["original"].median_s / timings[name].median_s for name in unpruned]


def measure_fronts(chains: Sequence[tuple[Systems, Chosen]], part: TextPart | None) -> list[tuple[MeasuredPoint, ...]]:
    """Times every candidate of every chain of engines, interleaved with the original.

    Args:
        chains: what is timed, on one workload, and the candidates of each.
        part: the texts that they were chosen on, with the original's answers.
    """
    first = chains[0][0]
    calls: dict[str, Calls] = {"original": first.original_calls()}
    for number, (systems, chosen) in enumerate(chains):
        calls |= {f"{number} {i}": systems.point_calls(c.point) for i, c in enumerate(chosen.candidates)}
    with first.context.progress.stage("measure operating points") as stage:
        timings = measure_interleaved(calls, FRONT_RUNS, on_run=stage)
    original_s = timings["original"].median_s
    return [
        tuple(
            _describe(systems, chosen, candidate, timings[f"{number} {i}"], original_s, part)
            for i, candidate in enumerate(chosen.candidates)
        )
        for number, (systems, chosen) in enumerate(chains)
    ]


def measure_chosen(systems: Systems, point: OperatingPoint) -> dict[str, Timing]:
    """Times the original, the unpruned engine, the exits alone, and the point itself, afresh."""
    exits_only = dataclasses.replace(
        point,
        keep_ratios=(1.0,) * len(point.keep_ratios),
        token_thresholds=(0.0,) * len(point.token_thresholds),
    )
    calls: dict[str, Calls] = {
        "original": systems.original_calls(),
        "unpruned": systems.unpruned_calls(),
        "exits": systems.point_calls(exits_only),
        "chosen": systems.point_calls(point),
    }
    with systems.context.progress.stage("measure the chosen point") as stage:
        return measure_interleaved(calls, FINAL_RUNS, on_run=stage)


def _describe(
    systems: Systems,
    chosen: Chosen,
    candidate: Candidate,
    timing: Timing,
    original_s: float,
    part: TextPart | None,
) -> MeasuredPoint:
    cost, workload = chosen.cost, systems.workload
    if part is None:
        lengths = np.array([batch["attention_mask"].sum(1) for batch in workload.batches])
        batches, exits = list(lengths), [np.full_like(row, candidate.exit_layer[0]) for row in lengths]
        all_lengths, all_exits = lengths.ravel(), np.concatenate(exits)
    else:
        all_lengths, all_exits = part.lengths, candidate.exit_layer
        batches = [all_lengths[index] for index in workload.positions]
        exits = [all_exits[index] for index in workload.positions]
    full = OperatingPoint((cost.work.num_layers,))
    flops = cost.count_flops(all_lengths, candidate.point, all_exits).sum()
    full_flops = cost.count_flops(all_lengths, full, np.full_like(all_exits, cost.work.num_layers)).sum()
    chain = Chain(tuple(s.exit_layer for s in systems.runtime.segments), systems.runtime.split_tokens)
    accuracy, agreement, drop = _losses(candidate, part)
    return MeasuredPoint(
        point=candidate.point,
        predicted_s=predict_workload(cost, chain, candidate.point, batches, exits),
        measured_s=timing.median_s,
        speedup=original_s / timing.median_s,
        accuracy=accuracy,
        agreement=agreement,
        drop=drop,
        flops_ratio=float(full_flops / flops),
        mean_exit_layer=float(all_exits.mean()),
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
    return accuracy, agreement, float(1.0 - differs(part.original_answer, part.truth).mean()) - accuracy
