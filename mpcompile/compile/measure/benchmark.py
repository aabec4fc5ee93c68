"""Times an artifact against the original that it was made from, on labelled or unlabelled texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from mpcompile.compile.choose.cost import measure_cost_model
from mpcompile.compile.job import Job, Model, open_job
from mpcompile.compile.measure.front import Baseline
from mpcompile.compile.measure.workload import MIN_BATCHES, build_workload, rank_texts
from mpcompile.compile.original import open_original, place_original
from mpcompile.compile.rebuild import rebuild_chain
from mpcompile.compile.recording import CalibrationTexts
from mpcompile.compile.reference import ask_original, build_unpruned, group_by_length, unpruned_point
from mpcompile.compile.settings import Settings
from mpcompile.compile.texts.examples import load_examples
from mpcompile.compile.texts.parts import TextPart, encode_examples
from mpcompile.contract.backend import Target
from mpcompile.contract.operating_point import OperatingPoint, mean_layers
from mpcompile.cost.timing import Timing, measure_interleaved, measure_noise
from mpcompile.progress import Stage, StageProgress
from mpcompile.report.tables import render
from mpcompile.runtime.artifact import MODEL
from mpcompile.runtime.load import load_artifact
from mpcompile.runtime.model import OptimizedModel
from mpcompile.runtime.runtime import RunResult, Runtime

GROUPED = "unpruned, grouped by length"
TEXTS_TIMED = 192
"""Texts in a run, or `MIN_BATCHES` batches where that is more."""
MORE = 2
"""Times more runs than are asked for, at most, on a busy machine."""


def benchmark_artifact(
    directory: Path, test: Any, batch_sizes: Sequence[int], runs: int, max_texts: int, progress: bool = True
) -> list[dict[str, Any]]:
    """Accuracy and time of the original, the unpruned engine and every operating point, interleaved.

    Batches are drawn at random from texts in order of where they leave at the point that the artifact was made for, so
    that the drawn ones leave where all of them do. Batches of several are timed on the unpruned engine split by length,
    too.

    Args:
        directory: the artifact; needs torch and transformers to run the original in it.
        test: texts, with labels for the accuracy.
        batch_sizes: workloads.
        runs: timed runs of each system, up to twice as many on a busy machine.
        max_texts: more texts than these are sampled.

    Returns:
        A row per system and batch size: `system`, `batch_size`, `measured_s` per batch with `p10_s` and
        `p90_s`, `speedup` over the original, its `noise`, `mean_exit_layer`, `accuracy`, `agreement`.
    """
    optimized = load_artifact(directory, rebuild=rebuild_chain)
    machine = optimized.report.machine
    settings = Settings(1.0, backend=machine["backend"], precision=machine["precision"])
    with StageProgress(progress) as bars:
        job, model, target = open_job(settings, open_original(Path(directory) / MODEL, None), bars)
        job = dataclasses.replace(job, tokenizer=optimized.tokenizer)
        model = dataclasses.replace(model, task=optimized.task)
        examples = load_examples(test, name="test")
        order = np.random.default_rng(0).permutation(len(examples))[:max_texts]
        part = encode_examples(job.require_tokenizer("test"), model, examples.take(order), "test")
        part = ask_original(job, model, target, part, "test")
        # An unpruned engine in int8 is a baseline of time above all; the texts at hand will do to calibrate it.
        job = dataclasses.replace(job, calibration=CalibrationTexts.draw(part.tokenizer, part.encoded))
        bench = _Bench(job, model, target, optimized, build_unpruned(job, model, target), part)
        answers, rank = bench.answer()
        rows: list[dict[str, Any]] = []
        for batch_size in batch_sizes:
            with bars.stage(f"measure batch {batch_size}") as stage:
                timings = bench.measure(batch_size, runs, rank, stage)
            rows.extend(_row(name, batch_size, timings, answers, part) for name in timings)
    return rows


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a table for people."""
    table = Table()
    for name in ("system", "batch", "ms", "p10", "p90", "speedup", "layers", "accuracy", "agrees"):
        table.add_column(name, justify="left" if name == "system" else "right")
    for row in rows:
        times = (f"{row[key] * 1e3:.2f}" for key in ("measured_s", "p10_s", "p90_s"))
        accuracy = "-" if row["accuracy"] is None else f"{100 * row['accuracy']:.2f}"
        table.add_row(
            row["system"],
            str(row["batch_size"]),
            *times,
            f"{row['speedup']:.2f}x",
            f"{row['mean_exit_layer']:.1f}",
            accuracy,
            f"{100 * row['agreement']:.2f}",
        )
    return render(table, width=100)


@dataclass(frozen=True)
class _Answered:
    """What a system answers to the texts, see `Task.answers`, and after how many layers on average."""

    answers: np.ndarray
    mean_exit_layer: float


@dataclass(frozen=True)
class _Bench:
    """The systems that are compared."""

    job: Job
    model: Model
    target: Target
    optimized: OptimizedModel
    unpruned: Runtime
    part: TextPart

    @property
    def _unpruned_point(self) -> OperatingPoint:
        return unpruned_point(self.model, self.optimized.report.machine["precision"])

    def answer(self) -> tuple[dict[str, _Answered], np.ndarray]:
        """What each system answers, and how hard each text is, see `rank_texts`."""
        part, rank = self.part, self.part.lengths
        unpruned = self._read(part.answer(self.unpruned, self._unpruned_point))
        original = _Answered(part.original_answer, unpruned.mean_exit_layer)
        answers = {"original": original, "unpruned": unpruned, GROUPED: unpruned}
        for i, row in enumerate(self.optimized.operating_points):
            result = part.answer(self.optimized.runtime, row.point)
            answers[f"point {i}"] = self._read(result)
            if i == self.optimized.report.chosen:
                rank = rank_texts(result.exit_layer, part.lengths)
        return answers, rank

    def _read(self, result: RunResult) -> _Answered:
        return _Answered(self.part.task.answers(result.logits), mean_layers(result.exit_layer))

    def measure(self, batch_size: int, runs: int, rank: np.ndarray, stage: Stage) -> dict[str, Timing]:
        """Times of each system on batches of the texts, interleaved."""
        num_batches = max(MIN_BATCHES, TEXTS_TIMED // batch_size)
        workload = build_workload(self.part.tokenizer, self.part.encoded, batch_size, num_batches, rank, 0)
        names, device_kind = self.model.captured.input_names, self.target.backend.device_kind
        original = place_original(self.job.original, device_kind, workload.batches[:3], names)
        num_threads = original.find_threads([original.prepare(batch, names) for batch in workload.batches[:3]])
        baseline = Baseline(original, num_threads, self.unpruned, self._unpruned_point, workload, names)
        calls = {"original": baseline.original_calls(), "unpruned": baseline.unpruned_calls()}
        if batch_size > 1:
            length = int(np.median(self.part.lengths))
            cost = measure_cost_model(self.job, self.model, self.target, self.unpruned, length)
            grouped = group_by_length(self.unpruned, cost, self.model.captured.num_labels, length)
            calls[GROUPED] = baseline.point_calls(grouped, self._unpruned_point)
        for i, row in enumerate(self.optimized.operating_points):
            calls[f"point {i}"] = baseline.point_calls(self.optimized.runtime, row.point)
        return measure_interleaved(calls, runs, on_run=stage, most_runs=MORE * runs)


def _row(
    name: str, batch_size: int, timings: dict[str, Timing], answers: dict[str, _Answered], part: TextPart
) -> dict[str, Any]:
    timing, found = timings[name], answers[name]
    differs = part.task.differs
    accuracy = float(1.0 - differs(found.answers, part.truth).mean()) if part.has_accuracy else None
    return {
        "system": name,
        "batch_size": batch_size,
        "measured_s": timing.median_s,
        "p10_s": timing.p10_s,
        "p90_s": timing.p90_s,
        "speedup": timings["original"].median_s / timing.median_s,
        "noise": measure_noise(timings["original"], timing),
        "mean_exit_layer": found.mean_exit_layer,
        "accuracy": accuracy,
        "agreement": float(1.0 - differs(found.answers, answers["original"].answers).mean()),
    }
