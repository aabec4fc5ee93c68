"""Measures the exit before the model: who may leave there, at what loss, after which teaching, and how long it takes.

    python bench/bench_ngrams.py --model MODEL --texts train.csv --test test.csv --taught 4000 12000 --out bench/results

The test texts are sorted by how sure the exit is of them; for each share of them that leaves, the rows say how many
are answered otherwise than by the original, and how many points of accuracy that costs. Nothing is chosen on them.
Teaching answers come from the original's engine in the fastest precision that needs no texts; they are kept, so that a
stopped run goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from result_files import describe_machine, describe_run, slug, write_result
from smoke import parse_or_smoke, run_or_smoke

from mpcompile.compile.adapt.ngrams import Grams, train_ngrams
from mpcompile.compile.choose.ngrams import answer_before, ask_chunk
from mpcompile.compile.job import open_job
from mpcompile.compile.original import open_original
from mpcompile.compile.reference import ask_original, build_unpruned, unpruned_point
from mpcompile.compile.settings import Settings
from mpcompile.compile.texts.examples import load_examples
from mpcompile.compile.texts.parts import TextPart, encode_examples
from mpcompile.contract.task import Task
from mpcompile.cost.timing import measure_interleaved
from mpcompile.progress import StageProgress
from mpcompile.runtime.ngrams import FirstExit, NGramClassifier

SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
BATCH_SIZES = (1, 32)
CHUNK = 2048


def main() -> None:
    """Measures, writes and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of the fine-tuned classifier")
    parser.add_argument("--texts", help="csv of texts to teach on")
    parser.add_argument("--test", help="csv with labels, read once")
    parser.add_argument("--taught", type=int, nargs="+", default=[4000, 12000])
    parser.add_argument("--max-test", type=int, default=4000, help="test texts that are read, drawn at random")
    parser.add_argument("--name", default="ngrams", help="start of the result file's name")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--cache-dir", type=Path, default=None)
    run_or_smoke(parse_or_smoke(parser, "model", "texts", "test"), _bench, _smoke_options)


def _bench(options: argparse.Namespace) -> None:
    settings, original = Settings(1.0, cache_dir=options.cache_dir), open_original(options.model, None)
    with StageProgress(False) as bars, original.evaluating():
        job, model, target = open_job(settings, original, bars)
        texts, test = load_examples(options.texts), load_examples(options.test, name="test")
        random = np.random.default_rng(0)
        texts = texts.take(random.permutation(len(texts))[: max(options.taught)])
        test = test.take(random.permutation(len(test))[: options.max_test])
        tokenizer = job.require_tokenizer("texts")
        part, asked = (encode_examples(tokenizer, model, each, "texts") for each in (texts, test))
        asked = ask_original(job, model, target, asked, "test texts")
        engine, point = build_unpruned(job, model, target), unpruned_point(model, target.precision)
        logits = np.concatenate([ask_chunk(job, model, chunk, engine, point) for chunk in _split(part)])
    rows = [_measure(part.take(np.arange(min(n, len(logits)))), logits[:n], asked) for n in options.taught]
    result = {**describe_machine(), "command": " ".join(["python", *sys.argv]), "test": len(test), "rows": rows}
    write_result(options.out / f"{options.name}_{slug()}.json", result, format_table(result))


def _split(part: TextPart) -> list[TextPart]:
    count = len(part.encoded)
    return [part.take(np.arange(start, min(start + CHUNK, count))) for start in range(0, count, CHUNK)]


def _measure(taught: TextPart, logits: np.ndarray, asked: TextPart) -> dict[str, Any]:
    """What a classifier that was taught on some texts answers to the test texts, and how long it takes."""
    started = time.perf_counter()
    classifier = train_ngrams(Grams.count(taught.tokenizer, taught.encoded), logits, taught.task.kind == "multi_label")
    teach_s = time.perf_counter() - started
    first_exit = FirstExit(classifier, asked.task)
    answered = answer_before(classifier, asked)
    found, entropy = asked.task.answers(answered), asked.task.entropy(answered)
    order = np.argsort(entropy, kind="stable")
    other, worse = asked.task.differs(found, asked.original_answer), asked.task.differs(found, asked.truth)
    gained = asked.original_loss.astype(float)
    shares = []
    for share in SHARES:
        leaving = order[: round(share * len(order))]
        lost = (worse[leaving].sum() - gained[leaving].sum()) / len(order)
        shares.append({"share": share, "other": other[leaving].sum() / len(order), "lost": float(lost)})
    return {
        "taught": len(logits), "grams": len(classifier.slots), "teach_s": teach_s, "shares": shares,
        "accuracy": float(1.0 - worse.mean()), "us": _time(first_exit, asked),
    }  # fmt: skip


def _time(first_exit: FirstExit, part: TextPart) -> dict[str, float]:
    """Microseconds of a text by batch size, and in batches of one with ten classes whatever the task has."""
    ten = NGramClassifier(
        first_exit.classifier.slots,
        np.resize(first_exit.classifier.weight, (len(first_exit.classifier.slots), 10)),
        first_exit.classifier.rareness,
        np.resize(first_exit.classifier.bias, 10),
    )
    systems, order = {}, np.random.default_rng(0).permutation(len(part.encoded))
    for name, timed in (("own", first_exit), ("ten classes", FirstExit(ten, Task("single_label", 10)))):
        for size in BATCH_SIZES:
            starts = range(0, min(200 * size, len(order) - size + 1), size)
            batches = [part.pad(order[start : start + size]) for start in starts]
            systems[f"{name}, batch {size}"] = [partial(timed, batch) for batch in batches]
    timings = measure_interleaved(systems, runs=5)
    return {name: 1e6 * timing.median_s / int(name.split()[-1]) for name, timing in timings.items()}


def _smoke_options(folder: Path, cache_dir: Path) -> dict[str, Any]:
    """The same on the demo encoder with an untrained classifier and a hundred docstrings."""
    return {
        "model": str(folder / "model"), "texts": str(folder / "train.csv"), "test": str(folder / "test.csv"),
        "taught": [50, 100], "out": folder, "cache_dir": cache_dir,
    }  # fmt: skip


def format_table(result: dict[str, Any]) -> str:
    """A result file as Markdown."""
    lines = [
        *describe_run(result),
        f"{result['test']} test texts. Of all of them, the share that is answered otherwise than by the original / "
        "points of accuracy lost, where so many leave before the model:",
        "",
        "| taught on | " + " | ".join(f"{share:.0%}" for share in SHARES) + " | accuracy alone | grams | s |",
        "|---|" + "---|" * (len(SHARES) + 3),
    ]
    for row in result["rows"]:
        cells = [f"{share['other']:.2%} / {100 * share['lost']:+.2f}" for share in row["shares"]]
        lines.append(
            f"| {row['taught']:,} | " + " | ".join(cells) + f" | {row['accuracy']:.1%} | {row['grams']:,} "
            f"| {row['teach_s']:.0f} |"
        )
    lines += ["", "| taught on | " + " | ".join(result["rows"][0]["us"]) + " |", "|---|" + "---|" * 4]
    for row in result["rows"]:
        lines.append(f"| {row['taught']:,} | " + " | ".join(f"{us:.1f} us a text" for us in row["us"].values()) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
