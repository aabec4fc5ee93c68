"""`mpcompile predict`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mpcompile.commands.output import show, write_csv


def add(commands: Any) -> None:
    """Declares the command."""
    predict = commands.add_parser("predict", help="answer the texts of a file")
    predict.add_argument("directory", type=Path)
    predict.add_argument("file", help="csv, jsonl or parquet with a column text, maybe text_pair")
    predict.add_argument(
        "--out",
        type=Path,
        required=True,
        help="csv to write: label, score, exit_layer per text, or its score, or vector",
    )
    predict.add_argument("--batch-size", type=int, default=32)
    predict.add_argument("--speedup", type=float, help="another operating point than the one optimized for")
    predict.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    import mpcompile
    from mpcompile.compile.texts.examples import load_examples
    from mpcompile.runtime.predictions import tabulate_predictions, tabulate_vectors

    examples = load_examples(options.file, name="file")
    optimized = mpcompile.load(options.directory)
    if options.speedup is not None:
        optimized.set_speedup(options.speedup)
    if optimized.task.kind == "embedding":
        rows = tabulate_vectors(optimized.encode(examples.texts, examples.text_pairs, options.batch_size))
    else:
        predictions = optimized.predict(examples.texts, examples.text_pairs, options.batch_size)
        rows = tabulate_predictions(predictions, optimized.id2label)
    write_csv(options.out, rows)
    show(f"{len(examples)} answers written to {options.out}")
