"""Compares ways to a faster classifier on several tasks, in one process, interleaved.

    python bench/bench_tasks.py --tasks tasks.json --out bench/results

`tasks.json` is a list of objects with the keys of `Task`. Rows per task and batch size: the original (Hugging Face
eager), OpenVINO int8 unpruned (NNCF), a student with half the layers distilled from the same model on the same texts
(`scripts/finetune.py --teacher`; run through OpenVINO int8, the best that its user could do), both also with batches
grouped by length, logistic regression on TF-IDF and on static embeddings, and mpcompile, also with one of its halves
switched off: the same point and engines with every token kept, and with every text running to the end. A row has
accuracy on the test texts, time on the same batches and flops.

mpcompile's point is fixed on held-out texts before the test texts are read: the fastest of the front whose loss there
and its standard error are at most `--max-drop` together. Its loss is then bounded on the texts that `optimize` put
aside. The original's answers are those of its fp32 engine, its time is its own. A stopped run goes on with the task
that it was at.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import shallow
import systems as peers
from fronts import draw_fronts
from result_files import describe_machine, describe_run, resume, slug, write_result
from smoke import parse_or_smoke, run_or_smoke
from systems import System
from transformers.utils import logging as transformers_logging

import mpcompile
from mpcompile.compile.certify import bound_drop
from mpcompile.compile.certify.refusals import Tested
from mpcompile.compile.given import read_given, split_given
from mpcompile.compile.job import open_job
from mpcompile.compile.measure.workload import MIN_BATCHES, build_workload
from mpcompile.compile.original import open_original
from mpcompile.compile.reference import ask_original
from mpcompile.compile.settings import Settings
from mpcompile.compile.texts.examples import labels_to_ids, load_examples
from mpcompile.compile.texts.parts import TextPart, Texts
from mpcompile.contract.front import MeasuredPoint
from mpcompile.cost.timing import Timing, measure_interleaved
from mpcompile.progress import StageProgress
from mpcompile.runtime.answer import answer_texts
from mpcompile.runtime.tokens import TokenIds, Tokenizer, batches_by_length

MOST_TRAINING = 20_000
"""Labelled texts that classifiers without a transformer are trained on, at most."""
ORIGINAL, INT8, STUDENT = "original (HF eager)", "OpenVINO int8 (NNCF)", "student of half the layers, int8"
NUM_CALIBRATION = 100
"""Texts that the int8 baselines are calibrated on, as many as ours."""
BOTH, EXITS_ONLY, PRUNING_ONLY = "mpcompile", "mpcompile, exits only", "mpcompile, pruning only"


@dataclass(frozen=True)
class Task:
    """What is compared on one data set.

    Attributes:
        name: of its rows.
        model: folder of the fine-tuned classifier.
        student: folder of the student distilled from it, None leaves that row out.
        texts: csv that `optimize` is given.
        test: csv with labels, read once.
        held_out: csv of texts that the classifier was not fine-tuned on, None where it was on no text of `texts`.
        options: of `optimize`, such as {"adapt": "finetune"}.
        max_test: test texts that are read, drawn at random; None for all.
    """

    name: str
    model: str
    student: str | None
    texts: str
    test: str
    held_out: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    max_test: int | None = None


@dataclass(frozen=True)
class TestSet:
    """Tokens and class ids of the test texts, and batches of them in random order."""

    tokenizer: Tokenizer
    encoded: Sequence[TokenIds]
    labels: np.ndarray

    def batches(self, batch_size: int, num_texts: int) -> Sequence[dict[str, np.ndarray]]:
        """Batches of `num_texts` texts together, at least `MIN_BATCHES`, padded as batches of these texts are."""
        rank = np.random.default_rng(batch_size).permutation(len(self.encoded))
        num_batches = max(MIN_BATCHES, num_texts // batch_size)
        return build_workload(self.tokenizer, self.encoded, batch_size, num_batches, rank, seed=0).batches


def main() -> None:
    options = _parse()
    logging.basicConfig(level=logging.WARNING)
    transformers_logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    run_or_smoke(options, _bench, _smoke_options)


def _bench(options: argparse.Namespace) -> None:
    done = []
    for task in [Task(**values) for values in json.loads(options.tasks.read_text("utf-8"))]:
        done.append(resume(options.work / f"{task.name}.json", partial(_bench_task, task, options)))
    result = {
        **describe_machine(), "command": " ".join(["python", *sys.argv]), "max_drop": options.max_drop,
        "summary": summarise(done), "tasks": done,
    }  # fmt: skip
    path = options.out / f"{options.name}_{slug()}.json"
    write_result(path, result, format_table(result))
    draw_fronts(done, path.with_suffix(".png"))


def _bench_task(task: Task, options: argparse.Namespace) -> dict[str, Any]:
    started = time.time()
    given = {"texts": task.texts, "held_out": task.held_out}
    given |= {"batch_size": options.optimize_batch_size, "cache_dir": options.cache_dir}
    optimized = mpcompile.optimize(task.model, **{"target_speedup": 8.0, **given, **task.options})
    optimize_s = time.time() - started
    print(f"{task.name}\n{optimized.report}", file=sys.stderr)
    parts = split_as_optimize_did(task, options)
    chosen = pick_point(optimized.operating_points, options.max_drop, len(parts.choosing.encoded))
    bound = bound_loss(optimized, chosen, parts.certifying)
    test = _read_test(task, optimized)
    compared = [*_make_systems(task, optimized, chosen), *_make_shallow(task, optimized)]
    answers = {system.name: _answer(system, test) for system in (peers.openvino(task.model, "f32"), *compared[1:])}
    answers[ORIGINAL] = answers.pop("OpenVINO f32")
    rows = []
    for batch_size in options.batch_size:
        print(f"{task.name}: timing batches of {batch_size}", file=sys.stderr)
        batches = test.batches(batch_size, options.texts_per_run)
        timings = measure_interleaved(
            {system.name: peers.prepare_calls(system, batches) for system in compared}, options.runs
        )
        rows += [_row(task, system, batch_size, timings, answers, test.labels) for system in compared]
    return {
        "name": task.name, "texts": len(test.labels), "rows": rows, "optimize_s": optimize_s, "task": asdict(task),
        "chosen": chosen.to_json(), "front": [row.to_json() for row in optimized.operating_points],
        "certified_drop": bound, "certified_on": len(parts.certifying.encoded), "report": optimized.report.to_json(),
    }  # fmt: skip


def _row(
    task: Task,
    system: System,
    batch_size: int,
    timings: dict[str, Timing],
    answers: dict[str, np.ndarray],
    labels: np.ndarray,
) -> dict[str, Any]:
    timing, ours, theirs = timings[system.name], answers[system.name], answers[ORIGINAL]
    return {
        "task": task.name, "system": system.name, "batch_size": batch_size, "measured_s": timing.median_s,
        "p10_s": timing.p10_s, "p90_s": timing.p90_s, "speedup": timings[ORIGINAL].median_s / timing.median_s,
        "speedup_over_int8": timings[INT8].median_s / timing.median_s,
        "accuracy": float((ours == labels).mean()),
        "drop": float((theirs == labels).mean() - (ours == labels).mean()),
        "agreement": float((ours == theirs).mean()), **system.facts,
    }  # fmt: skip


def split_as_optimize_did(task: Task, options: argparse.Namespace) -> Texts:
    """The texts that `optimize` chose on, and those that it put aside, with the original's answers on the latter."""
    kept = {k: v for k, v in task.options.items() if k in ("max_texts", "adapt", "seed")}
    batch_size = options.optimize_batch_size
    settings = Settings(1.0, cache_dir=options.cache_dir, precision="f32", batch_size=batch_size, **kept)
    given = read_given(settings, task.texts, None, None, task.held_out)
    with StageProgress(False) as bars:
        original = open_original(task.model, None)
        job, model, target = open_job(settings, original, bars, given.has_pairs)
        parts, _ = split_given(job, model, given, Tested(0, settings.seed))
        assert parts is not None
        certifying = ask_original(job, model, target, parts.certifying, "texts put aside")
        return dataclasses.replace(parts, certifying=certifying)


def bound_loss(optimized: mpcompile.OptimizedModel, row: MeasuredPoint, part: TextPart) -> float:
    """Upper bound on the loss of a point, with 95% confidence, on texts that nothing was chosen on."""
    assert optimized.tokenizer is not None
    answers = answer_texts(optimized.runtime, row.point, optimized.tokenizer, part.encoded).logits.argmax(1)
    return bound_drop(answers != part.truth, part.original_answer != part.truth, 0.95)


def pick_point(front: Sequence[MeasuredPoint], max_drop: float, num_texts: int) -> MeasuredPoint:
    """The fastest point whose loss and its standard error are at most `max_drop` together, else the least of all.

    The standard error is that of paired answers on the texts that the front was searched on: what looks best on few
    texts is partly luck. No more texts than those answered unlike the original can make a difference.
    """

    def careful(row: MeasuredPoint) -> float:
        assert row.drop is not None
        assert row.agreement is not None
        return row.drop + math.sqrt((1.0 - row.agreement) / num_texts)

    allowed = [row for row in front if careful(row) <= max_drop]
    return max(allowed, key=lambda row: row.speedup) if allowed else min(front, key=careful)


def _read_test(task: Task, optimized: mpcompile.OptimizedModel) -> TestSet:
    examples = load_examples(task.test, name="test")
    if examples.labels is None or optimized.tokenizer is None:
        raise SystemExit(f"{task.test}: labels and a tokenizer are needed to measure accuracy")
    if task.max_test is not None:
        examples = examples.take(np.random.default_rng(0).permutation(len(examples))[: task.max_test])
    encoded = optimized.tokenizer.encode(examples.texts, examples.text_pairs)
    return TestSet(optimized.tokenizer, encoded, labels_to_ids(examples.labels, optimized.id2label))


def _make_systems(task: Task, optimized: mpcompile.OptimizedModel, chosen: MeasuredPoint) -> list[System]:
    compared = [
        peers.eager(task.model),
        peers.openvino_int8(task.model, task.texts, optimized.tokenizer, NUM_CALIBRATION),
    ]
    compared.append(peers.grouped(compared[-1]))
    if task.student is not None:
        student = peers.openvino_int8(task.student, task.texts, optimized.tokenizer, NUM_CALIBRATION)
        facts = {"flops_ratio": peers.layer_ratio(task.model, task.student)}
        compared.append(System(STUDENT, student.prepare, student.run, facts))
        compared.append(peers.grouped(compared[-1]))
    point = chosen.point
    all_tokens = dataclasses.replace(point, keep_ratios=(1.0,) * len(point.keep_ratios))
    to_the_end = dataclasses.replace(point, exit_layers=point.exit_layers[-1:], exit_thresholds=())
    for name, variant in ((EXITS_ONLY, all_tokens), (PRUNING_ONLY, to_the_end)):
        compared.append(peers.at_point(optimized, variant, name))
    facts = {"predicted_s": chosen.predicted_s, "flops_ratio": chosen.flops_ratio}
    return [*compared, peers.at_point(optimized, point, BOTH, facts)]


def _make_shallow(task: Task, optimized: mpcompile.OptimizedModel) -> list[System]:
    """Trained on the texts with labels that a user has."""
    assert optimized.tokenizer is not None
    examples = load_examples(task.texts)
    examples = examples.take(np.random.default_rng(0).permutation(len(examples))[:MOST_TRAINING])
    assert examples.labels is not None
    train = shallow.Labelled(
        optimized.tokenizer.encode(examples.texts, examples.text_pairs),
        labels_to_ids(examples.labels, optimized.id2label), len(optimized.id2label),
    )  # fmt: skip
    return [shallow.tfidf(train), shallow.static_embeddings(task.model, train)]


def _answer(system: System, test: TestSet) -> np.ndarray:
    """Class ids of all test texts."""
    answers = np.empty(len(test.encoded), np.int64)
    for batch in batches_by_length([len(tokens) for tokens in test.encoded], 32):
        inputs = system.prepare(test.tokenizer.pad([test.encoded[i] for i in batch]))
        answers[batch] = system.run(inputs).argmax(1)
    print(f"{system.name}: accuracy {(answers == test.labels).mean():.4f}", file=sys.stderr)
    return answers


def summarise(tasks: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Geometric means over the tasks, by system and batch size."""
    rows = [row for task in tasks for row in task["rows"]]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(f"{row['system']}, batch {row['batch_size']}", []).append(row)
    return {
        name: {
            "speedup": geometric_mean([row["speedup"] for row in group]),
            "speedup_over_int8": geometric_mean([row["speedup_over_int8"] for row in group]),
            "worst_drop": max(row["drop"] for row in group),
        }
        for name, group in groups.items()
    }


def geometric_mean(values: Sequence[float]) -> float:
    """exp of the mean of logarithms."""
    return math.exp(sum(math.log(value) for value in values) / len(values))


def format_table(result: dict[str, Any]) -> str:
    """A result file as Markdown."""
    lines = [
        *describe_run(result),
        f"Loss and its standard error on held-out texts: at most {100 * result['max_drop']:g} points.", "",
        "| task | batch | system | ms per batch | speedup | over int8 | flops | accuracy | lost | agrees |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for task in result["tasks"]:
        for row in task["rows"]:
            flops = row.get("flops_ratio", 1.0 if row["system"] in (ORIGINAL, INT8) else None)
            lines.append(
                f"| {row['task']} | {row['batch_size']} | {row['system']} | {row['measured_s'] * 1e3:.2f} "
                f"| {row['speedup']:.2f}x | {row['speedup_over_int8']:.2f}x "
                f"| {'' if flops is None else f'{flops:.1f}x'} | {100 * row['accuracy']:.2f} "
                f"| {100 * row['drop']:+.2f} | {100 * row['agreement']:.2f} |"
            )
    lines += [
        "",
        "| task | texts tested | lost | certified: at most | on | `optimize` took |",
        "|---|---|---|---|---|---|",
    ]
    for task in result["tasks"]:
        drop = next(row["drop"] for row in task["rows"] if row["system"] == BOTH)
        lines.append(
            f"| {task['name']} | {task['texts']} | {100 * drop:+.2f} | {100 * task['certified_drop']:+.2f} "
            f"| {task['certified_on']} texts | {task['optimize_s']:.0f} s |"
        )
    lines += ["", "| geometric mean over tasks | speedup | over int8 | most points lost |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {row['speedup']:.2f}x | {row['speedup_over_int8']:.2f}x | {100 * row['worst_drop']:+.2f} |"
        for name, row in result["summary"].items()
    ]
    return "\n".join(lines) + "\n"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, help="json list of tasks, see Task")
    parser.add_argument("--name", default="tasks", help="start of the result file's name")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--work", type=Path, default=Path("build/bench-tasks"), help="finished tasks are kept there")
    parser.add_argument("--max-drop", type=float, default=0.005, help="loss allowed on held-out texts")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--optimize-batch-size", type=int, default=32)
    parser.add_argument("--texts-per-run", type=int, default=128, help="texts in a timed run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cache-dir", type=Path, default=None)
    return parse_or_smoke(parser, "tasks")


def _smoke_options(folder: Path, cache_dir: Path) -> dict[str, Any]:
    """The same run on the demo encoder with an untrained classifier and a hundred docstrings."""
    model, texts = str(folder / "model"), {"texts": str(folder / "train.csv"), "test": str(folder / "test.csv")}
    task = Task("smoke", model, model, **texts, options={"max_texts": 64, "precision": "f32"})
    (folder / "tasks.json").write_text(json.dumps([asdict(task)]))
    return {
        "tasks": folder / "tasks.json", "out": folder, "work": folder / "work", "texts_per_run": 8, "runs": 1,
        "batch_size": [1, 8], "optimize_batch_size": 8, "cache_dir": cache_dir,
    }  # fmt: skip


if __name__ == "__main__":
    main()
