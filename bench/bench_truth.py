"""Compares what `optimize` says with what new texts get: speed beside speed, certified loss beside loss.

    python bench/bench_truth.py --tasks tasks.json --out bench/results

`tasks.json` is a list of objects with the keys of `Claim`. For each task, each batch size and both ways of getting a
model, by path and from memory, the model is optimized on texts for a target; then `mpcompile bench` times the artifact
against the original on test texts that are read for nothing else. A stopped run goes on with the next row.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from result_files import describe_machine, describe_run, resume, slug, write_result
from smoke import parse_or_smoke, run_or_smoke

import mpcompile
from mpcompile.compile.measure.benchmark import benchmark_artifact
from mpcompile.compile.original import open_original

WAYS = ("path", "memory")
WITHIN = 0.1
"""What speed on new texts may differ from the speed that is said by, as a share of it."""


@dataclass(frozen=True)
class Claim:
    """A task of which something is said.

    Attributes:
        name: of its rows.
        model: folder of the fine-tuned classifier.
        texts: csv that `optimize` is given, which the classifier was not trained on.
        test: csv with labels, read once.
        options: of `optimize`, such as {"max_texts": 1000}.
    """

    name: str
    model: str
    texts: str
    test: str
    options: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    """Compares, writes and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, help="json, see above")
    parser.add_argument("--work", type=Path, default=Path("build/truth"), help="rows that are done, and artifacts")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--target-speedup", type=float, default=8.0)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--max-test", type=int, default=2000, help="test texts that are read, drawn at random")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cache-dir", type=Path, default=None)
    options = parse_or_smoke(parser, "tasks")
    logging.basicConfig(level=logging.WARNING)
    run_or_smoke(options, _bench, _smoke_options)


def _bench(options: argparse.Namespace) -> None:
    rows = []
    for task in (Claim(**values) for values in json.loads(options.tasks.read_text())):
        for batch_size in options.batch_size:
            for way in options.ways:
                done = options.work / f"{task.name}_{batch_size}_{way}.json"
                rows.append(resume(done, partial(_compare, task, batch_size, way, options)))
    result = {**describe_machine(), "command": " ".join(["python", *sys.argv]), "rows": rows}
    write_result(options.out / f"truth_{slug()}.json", result, format_table(result))


def _compare(task: Claim, batch_size: int, way: str, options: argparse.Namespace) -> dict[str, Any]:
    """What is said of an artifact, and what `mpcompile bench` finds on test texts."""
    original = open_original(task.model, None)
    given = {"model": task.model} if way == "path" else {"model": original.model, "tokenizer": original.tokenizer}
    optimized = mpcompile.optimize(
        **given, target_speedup=options.target_speedup, texts=task.texts, batch_size=batch_size, progress=False,
        cache_dir=options.cache_dir, **task.options,
    )  # fmt: skip
    report = optimized.report
    artifact = optimized.save(options.work / f"{task.name}_{batch_size}_{way}")
    found = {
        row["system"]: row
        for row in benchmark_artifact(artifact, task.test, [batch_size], options.runs, options.max_test, False)
    }
    point, base = found[f"point {report.chosen}"], found["original"]
    return {
        "task": task.name,
        "batch_size": batch_size,
        "way": way,
        "speed_said": report.measured_speedup,
        "noise_said": optimized.operating_point.noise,
        "speed_on_test": point["speedup"],
        "noise_on_test": point["noise"],
        "original_s_said": report.original_s,
        "original_s_on_test": base["measured_s"],
        "measured_s_said": report.measured_s,
        "measured_s_on_test": point["measured_s"],
        "layers_said": optimized.operating_point.mean_exit_layer,
        "layers_on_test": point["mean_exit_layer"],
        "drop_on_held_out": None if report.accuracy is None else (report.original_accuracy or 0.0) - report.accuracy,
        "certified_drop": report.certified_drop,
        "drop_on_test": None if point["accuracy"] is None else base["accuracy"] - point["accuracy"],
        "accuracy_on_test": point["accuracy"],
        "warnings": list(report.warnings),
    }


def _smoke_options(folder: Path, cache_dir: Path) -> dict[str, Any]:
    """The same comparison on the demo encoder with an untrained classifier and a hundred docstrings."""
    texts = {"texts": str(folder / "train.csv"), "test": str(folder / "test.csv")}
    task = Claim("smoke", str(folder / "model"), **texts, options={"max_texts": 64, "precision": "f32"})
    (folder / "tasks.json").write_text(json.dumps([asdict(task)]))
    return {
        "tasks": folder / "tasks.json", "out": folder, "work": folder / "work", "runs": 1, "batch_size": [1],
        "cache_dir": cache_dir,
    }  # fmt: skip


def format_table(result: dict[str, Any]) -> str:
    """A result file as Markdown."""
    rows: Sequence[dict[str, Any]] = result["rows"]
    near = sum(abs(row["speed_on_test"] / row["speed_said"] - 1.0) <= WITHIN for row in rows)
    held = sum(_is_within(row) for row in rows)
    lines = [
        *describe_run(result),
        f"Speed on test texts within {WITHIN:.0%} of the speed that was said: {near} of {len(rows)} rows. Loss on test "
        f"texts within the bound: {held} of {len(rows)}.",
        "",
        "| task | batch | way | speed said | noise | on test | noise | ratio | ms said | on test | layers said "
        "| on test | lost, held out | at most | lost, test |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = row["speed_on_test"] / row["speed_said"]
        losses = (row[name] for name in ("drop_on_held_out", "certified_drop", "drop_on_test"))
        shown = " | ".join("-" if loss is None else f"{100 * loss:+.2f}" for loss in losses)
        lines.append(
            f"| {row['task']} | {row['batch_size']} | {row['way']} | {row['speed_said']:.2f}x "
            f"| {row['noise_said']:.1%} | {row['speed_on_test']:.2f}x "
            f"| {row['noise_on_test']:.1%} | {ratio:.2f} "
            f"| {1e3 * row['measured_s_said']:.2f} | {1e3 * row['measured_s_on_test']:.2f} "
            f"| {row['layers_said']:.2f} | {row['layers_on_test']:.2f} | {shown} |"
        )
    warned = [f"- {row['task']}, batch {row['batch_size']}: {said}" for row in rows for said in row["warnings"]]
    return "\n".join([*lines, *(["", "Warnings:", "", *warned] if warned else [])]) + "\n"


def _is_within(row: dict[str, Any]) -> bool:
    bound, drop = row["certified_drop"], row["drop_on_test"]
    return bound is None or drop is None or drop <= bound


if __name__ == "__main__":
    main()
