"""Times an artifact against the original that it was made from, on labelled or unlabelled texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from mpcompile.compile.context import Context, TextPart, encode_examples
from mpcompile.compile.measure.front import Systems
from mpcompile.compile.measure.workload import build_workload
from mpcompile.compile.optimize import open_context
from mpcompile.compile.original import open_original
from mpcompile.compile.rebuild import rebuild_chain
from mpcompile.compile.recording import CalibrationTexts
from mpcompile.compile.reference import ask_original, build_unpruned, unpruned_point
from mpcompile.compile.settings import Settings
from mpcompile.compile.texts.examples import load_examples
from mpcompile.cost.timing import Timing, measure_interleaved
from mpcompile.progress import StageProgress
from mpcompile.report.tables import render
from mpcompile.runtime.answer import answer_texts
from mpcompile.runtime.artifact import MODEL
from mpcompile.runtime.load import load_artifact
from mpcompile.runtime.model import OptimizedModel


def benchmark_artifact(
    directory: Path, test: Any, batch_sizes: Sequence[int], runs: int, max_texts: int, progress: bool = True
) -> list[dict[str, Any]]:
    """Accuracy and time of the original, the unpruned engine and every operating point, interleaved.

    Args:
        directory: the artifact; needs torch and transformers to run the original in it.
        test: texts, with labels for the accuracy.
        batch_sizes: workloads.
        runs: timed runs of each system.
        max_texts: more texts than these are sampled.

    Returns:
        A row per system and batch size: `system`, `batch_size`, `measured_s` per batch with `p10_s` and
        `p90_s`, `speedup` over the original, `accuracy` and `agreement`.
    """
    optimized = load_artifact(directory, rebuild=rebuild_chain)
    settings = Settings(
        1.0, backend=optimized.report.machine["backend"], precision=optimized.report.machine["precision"]
    )
    with StageProgress(progress) as bars:
        context = open_context(open_original(Path(directory) / MODEL, None), settings, bars)
        context = _with_tokenizer(context, optimized)
        examples = load_examples(test, name="test")
        order = np.random.default_rng(0).permutation(len(examples))[:max_texts]
        part = ask_original(context, encode_examples(context, examples.take(order), "test"), "test")
        assert context.tokenizer is not None
        # An unpruned engine in int8 is a baseline of time above all; the texts at hand will do to calibrate it.
        context = dataclasses.replace(context, calibration=CalibrationTexts.draw(context.tokenizer, part.encoded))
        unpruned = build_unpruned(context, context.precision)
        answers = {
            "original": part.original_answer,
            "unpruned": _answers(context, unpruned, unpruned_point(context), part),
        }
        for i, row in enumerate(optimized.operating_points):
            answers[f"point {i}"] = _answers(context, optimized.runtime, row.point, part)
        rows: list[dict[str, Any]] = []
        for batch_size in batch_sizes:
            with bars.stage(f"measure batch {batch_size}") as stage:
                timings = _measure(context, optimized, unpruned, part, batch_size, runs, stage)
            rows.extend(_row(name, batch_size, timings, answers, part) for name in timings)
    return rows


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a table for people."""
    table = Table()
    for name in ("system", "batch", "ms", "p10", "p90", "speedup", "accuracy", "agrees"):
        table.add_column(name, justify="left" if name == "system" else "right")
    for row in rows:
        times = (f"{row[key] * 1e3:.2f}" for key in ("measured_s", "p10_s", "p90_s"))
        accuracy = "-" if row["accuracy"] is None else f"{100 * row['accuracy']:.2f}"
        table.add_row(
            row["system"],
            str(row["batch_size"]),
            *times,
            f"{row['speedup']:.2f}x",
            accuracy,
            f"{100 * row['agreement']:.2f}",
        )
    return render(table, width=100)


def _with_tokenizer(context: Context, optimized: OptimizedModel) -> Context:
    return dataclasses.replace(context, tokenizer=optimized.tokenizer, task=optimized.task)


def _answers(context: Context, runtime: Any, point: Any, part: TextPart) -> np.ndarray:
    assert context.tokenizer is not None
    return part.task.answers(answer_texts(runtime, point, context.tokenizer, part.encoded).logits)


def _measure(
    context: Context, optimized: OptimizedModel, unpruned: Any, part: TextPart, batch_size: int, runs: int, stage: Any
) -> dict[str, Timing]:
    assert context.tokenizer is not None
    num_batches = max(3, 96 // batch_size)
    order = np.random.default_rng(0).permutation(len(part.encoded))
    workload = build_workload(context.tokenizer, part.encoded, batch_size, num_batches, order, 0)
    prepared = [context.original.prepare(batch, context.captured.input_names) for batch in workload.batches[:3]]
    num_threads = context.original.find_threads(prepared)
    systems = Systems(context, workload, unpruned, optimized.runtime, num_threads)
    calls = {"original": systems.original_calls(), "unpruned": systems.unpruned_calls()}
    for i, row in enumerate(optimized.operating_points):
        calls[f"point {i}"] = systems.point_calls(row.point)
    return measure_interleaved(calls, runs, on_run=stage)


def _row(
    name: str, batch_size: int, timings: dict[str, Timing], answers: dict[str, np.ndarray], part: TextPart
) -> dict[str, Any]:
    timing = timings[name]
    differs = part.task.differs
    accuracy = float(1.0 - differs(answers[name], part.truth).mean()) if part.has_accuracy else None
    return {
        "system": name,
        "batch_size": batch_size,
        "measured_s": timing.median_s,
        "p10_s": timing.p10_s,
        "p90_s": timing.p90_s,
        "speedup": timings["original"].median_s / timing.median_s,
        "accuracy": accuracy,
        "agreement": float(1.0 - differs(answers[name], answers["original"]).mean()),
    }
