"""Measures mpcompile against what people run today, in one process, interleaved.

    python bench/bench_cpu.py --model DIR --train train.csv --test test.csv --out bench/results

Rows: the original (Hugging Face eager), torch.compile, ONNX Runtime, OpenVINO unpruned in fp32, in bf16
where the machine has it, in int8 (NNCF) and in int8 with batches grouped by length, and mpcompile at several
operating points. Every row has accuracy on all test texts and time on the same batches, drawn at random, in the
order they came.
Operating points are chosen on train texts alone; the test texts are read once.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import systems as peers
from result_files import describe_machine, describe_run, slug, write_result
from smoke import parse_or_smoke, run_or_smoke
from systems import System
from transformers.utils import logging as transformers_logging

import mpcompile
from mpcompile.compile.texts.examples import labels_to_ids, load_examples
from mpcompile.cost.timing import Timing, measure_interleaved
from mpcompile.runtime.tokens import TokenIds, Tokenizer, batches_by_length

TARGETS = (4.0, 8.0, 12.0, 16.0, 24.0)
Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Workload:
    """Batches that are timed, and all test texts for the accuracy."""

    tokenizer: Tokenizer
    encoded: Sequence[TokenIds]
    labels: np.ndarray

    def batches(self, batch_size: int, count: int, seed: int = 0) -> list[Batch]:
        """`count` batches of texts drawn at random without replacement."""
        order = np.random.default_rng(seed).permutation(len(self.encoded))
        count = min(count, len(order) // batch_size)
        return [
            self.tokenizer.pad([self.encoded[j] for j in order[i * batch_size : (i + 1) * batch_size]])
            for i in range(count)
        ]


def main() -> None:
    options = _parse()
    run_or_smoke(options, _bench, _smoke_options)


def _bench(options: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.WARNING)
    transformers_logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    started = time.time()
    optimized = mpcompile.optimize(
        options.model, options.target_speedup, texts=options.train, max_texts=options.max_texts,
        batch_size=options.optimize_batch_size, precision=options.precision, seed=options.seed,
        cache_dir=options.cache_dir,
    )  # fmt: skip
    optimize_s = time.time() - started
    print(optimized.report, file=sys.stderr)
    workload = _read_test(options, optimized)
    made = _make_systems(options, optimized)
    answers = {system.name: _answer(system, workload, options.accuracy_texts) for system in made}
    rows = []
    for batch_size in options.batch_size:
        batches = workload.batches(batch_size, max(options.batches, options.requests // batch_size))
        timings = _time(made, batches, options.runs)
        rows += [_row(system, batch_size, timings, answers, workload.labels, made[0].name) for system in made]
    overhead = {str(size): peers.host_overhead(optimized, workload.batches(size, 64)) for size in options.batch_size}
    result = {
        **describe_machine(), "command": " ".join(["python", *sys.argv]), "optimize_s": optimize_s,
        "optimize_report": optimized.report.to_json(), "time_outside_engines": overhead, "rows": rows,
    }  # fmt: skip
    write_result(options.out / f"{options.name}_{slug()}.json", result, format_table(result))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a Hugging Face classifier, or a hub id")
    parser.add_argument("--train", help="csv to choose operating points on")
    parser.add_argument("--test", help="csv with labels")
    parser.add_argument("--name", default="bench", help="start of the result file's name")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--target-speedup", type=float, default=8.0)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--optimize-batch-size", type=int, default=1)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--max-texts", type=int, default=4000)
    parser.add_argument("--accuracy-texts", type=int, default=10**9, help="test texts for the accuracy (default: all)")
    parser.add_argument("--requests", type=int, default=96, help="texts in a timed run, at least")
    parser.add_argument("--batches", type=int, default=4, help="batches in a timed run, at least")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache-dir", type=Path, default=None)
    parser.add_argument("--skip", nargs="*", default=[], help="systems to leave out")
    return parse_or_smoke(parser, "model", "train", "test")


def _smoke_options(folder: Path, cache_dir: Path) -> dict[str, Any]:
    """The same run on the demo encoder with an untrained classifier and a hundred docstrings."""
    return {
        "model": str(folder / "model"), "train": str(folder / "train.csv"), "test": str(folder / "test.csv"),
        "out": folder, "name": "smoke", "batch_size": [1, 8], "max_texts": 64, "accuracy_texts": 16, "requests": 4,
        "batches": 1, "runs": 1, "cache_dir": cache_dir, "target_speedup": 2.0, "precision": "f32",
    }  # fmt: skip


def _read_test(options: argparse.Namespace, optimized: mpcompile.OptimizedModel) -> Workload:
    examples = load_examples(options.test, name="test")
    if examples.labels is None or optimized.tokenizer is None:
        raise SystemExit(f"{options.test}: labels and a tokenizer are needed to measure accuracy")
    encoded = optimized.tokenizer.encode(examples.texts, examples.text_pairs)
    return Workload(optimized.tokenizer, encoded, labels_to_ids(examples.labels, optimized.id2label))


def _make_systems(options: argparse.Namespace, optimized: mpcompile.OptimizedModel) -> list[System]:
    makers: dict[str, Callable[[], System]] = {
        "original (HF eager)": lambda: peers.eager(options.model),
        "torch.compile": lambda: peers.compiled(options.model),
        "ONNX Runtime": lambda: peers.onnx_runtime(options.model),
        "OpenVINO f32": lambda: peers.openvino(options.model, "f32"),
        "OpenVINO bf16": lambda: peers.openvino(options.model, "bf16"),
        "OpenVINO int8 (NNCF)": lambda: peers.openvino_int8(options.model, options.train, optimized.tokenizer),
    }
    made: list[System] = []
    for name, make in makers.items():
        if any(word in name for word in options.skip):
            continue
        try:
            made.append(make())
        except (ImportError, RuntimeError) as error:
            print(f"{name}: left out: {error}", file=sys.stderr)
    made += [peers.grouped(system) for system in made if "int8" in system.name]
    seen = set()
    for target in sorted({*TARGETS, options.target_speedup}):
        optimized.set_speedup(target)
        if optimized.operating_point.point not in seen:
            seen.add(optimized.operating_point.point)
            row = optimized.operating_point
            facts = {"predicted_s": row.predicted_s, "flops_ratio": row.flops_ratio}
            made.append(peers.at_point(optimized, row.point, f"mpcompile, target {target:g}x", facts))
    return made


def _answer(system: System, workload: Workload, limit: int) -> np.ndarray:
    """Class ids of the first test texts: all, but for systems that compute what the original does."""
    encoded = workload.encoded[: min(limit, system.max_texts)]
    answers = np.empty(len(encoded), np.int64)
    for batch in batches_by_length([len(tokens) for tokens in encoded], 32):
        inputs = system.prepare(workload.tokenizer.pad([encoded[i] for i in batch]))
        answers[batch] = system.run(inputs).argmax(1)
    correct = answers == workload.labels[: len(answers)]
    print(f"{system.name}: accuracy {correct.mean():.4f} on {len(answers)} texts", file=sys.stderr)
    return answers


def _time(made: Sequence[System], batches: Sequence[Batch], runs: int) -> dict[str, Timing]:
    return measure_interleaved({system.name: peers.prepare_calls(system, batches) for system in made}, runs)


def _row(
    system: System,
    batch_size: int,
    timings: dict[str, Timing],
    answers: dict[str, np.ndarray],
    labels: np.ndarray,
    original: str,
) -> dict:
    timing, ours = timings[system.name], answers[system.name]
    labels, theirs = labels[: len(ours)], answers[original][: len(ours)]
    return {
        "system": system.name, "batch_size": batch_size, "measured_s": timing.median_s, "p10_s": timing.p10_s,
        "p90_s": timing.p90_s, "runs": timing.runs, "speedup": timings[original].median_s / timing.median_s,
        "accuracy": float(np.mean(ours == labels)), "texts": len(ours),
        "drop": float(np.mean(theirs == labels) - np.mean(ours == labels)),
        "agreement": float(np.mean(ours == theirs)), **system.facts,
    }  # fmt: skip


def format_table(result: dict) -> str:
    """A result file as Markdown."""
    lines = [
        *describe_run(result),
        "| batch | system | ms per batch | p10 | p90 | speedup | accuracy | drop | texts |",
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for row in result["rows"]:
        times = " | ".join(f"{row[key] * 1e3:.2f}" for key in ("measured_s", "p10_s", "p90_s"))
        lines.append(
            f"| {row['batch_size']} | {row['system']} | {times} | {row['speedup']:.2f}x "
            f"| {100 * row['accuracy']:.2f} | {100 * row['drop']:+.2f} | {row['texts']} |"
        )
    lines += ["", f"`optimize` took {result['optimize_s']:.0f} s."]
    for size, facts in result["time_outside_engines"].items():
        lines.append(
            f"Outside engines at batch {size}: {facts['outside_s'] * 1e3:.3f} ms of {facts['total_s'] * 1e3:.3f} ms "
            f"({100 * facts['share']:.1f}%)."
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
