"""Tunes an artifact for some batch sizes and reports what that gained on the clock, and kept in answers.

    python bench/bench_tune.py --artifact DIR --texts train.csv --test test.csv --out bench/results

Candidates are measured on the texts; accuracy before and after is that on the test texts, read once.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from result_files import describe_machine, describe_run, slug, write_result
from smoke import parse_or_smoke, run_or_smoke

import mpcompile
from mpcompile.compile.texts.examples import Examples, labels_to_ids, load_examples
from mpcompile.tuning import tune


def main() -> None:
    """Tunes once per batch size."""
    options = _parse()
    run_or_smoke(options, _bench, _smoke_options)


def _bench(options: argparse.Namespace) -> None:
    result: dict[str, Any] = {"name": options.name, "command": " ".join(["python", *sys.argv]), **describe_machine()}
    test = load_examples(options.test, name="test")
    rows = []
    for batch_size in options.batch_size:
        with tempfile.TemporaryDirectory() as folder:
            tuned = tune(
                options.artifact,
                Path(folder) / "tuned",
                texts=options.texts,
                batch_size=batch_size,
                budget_s=options.budget_s,
                cache_dir=options.cache_dir,
            )
            facts = tuned.to_json()
            before, after = (_accuracy(path, test) for path in (options.artifact, Path(folder) / "tuned"))
        dropped = {name: facts.pop(name) for name in ("directory", "storage", "study", "workload")}
        rows.append({
            "batch_size": batch_size, "accuracy_before": before, "accuracy_after": after, "texts": len(test),
            "workload": dropped["workload"], **facts,
        })  # fmt: skip
    result["rows"] = rows
    write_result(options.out / f"{options.name}_{slug()}.json", result, format_table(result))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path)
    parser.add_argument("--texts")
    parser.add_argument("--test")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--budget-s", type=float, default=120.0)
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--name", default="tune")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    return parse_or_smoke(parser, "artifact", "texts", "test")


def _smoke_options(folder: Path, cache_dir: Path) -> dict[str, Any]:
    """The same run on an artifact of the demo encoder with an untrained classifier."""
    train = str(folder / "train.csv")
    optimized = mpcompile.optimize(
        folder / "model", 2.0, texts=train, max_texts=64, precision="f32", cache_dir=cache_dir, progress=False
    )
    return {
        "artifact": optimized.save(folder / "artifact"), "texts": train, "test": str(folder / "test.csv"),
        "batch_size": [4], "budget_s": 1.0, "cache_dir": cache_dir, "out": folder,
    }  # fmt: skip


def _accuracy(directory: Path, test: Examples) -> float:
    optimized = mpcompile.load(directory)
    logits, _ = optimized.classify(test.texts, test.text_pairs)
    assert test.labels is not None
    return float(np.mean(logits.argmax(1) == labels_to_ids(test.labels, optimized.id2label, "labels of test")))


def format_table(result: dict[str, Any]) -> str:
    """A result file as Markdown."""
    lines = describe_run(result)
    lines += [
        "| batch | start ms | tuned ms | gain | over the original | accuracy before, after | candidates | variant |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for row in result["rows"]:
        variant = ", ".join(f"{name} {value}" for name, value in row["variant"].items())
        lines.append(
            f"| {row['batch_size']} | {row['start_s'] * 1e3:.2f} | {row['tuned_s'] * 1e3:.2f} | {row['speedup']:.2f}x "
            f"| {row['speedup_over_original']:.2f}x | {100 * row['accuracy_before']:.2f}, "
            f"{100 * row['accuracy_after']:.2f} | {row['trials']['total']} | {variant} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
