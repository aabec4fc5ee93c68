"""`mpcompile optimize`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mpcompile.commands.output import show, silence_transformers
from mpcompile.compile.settings import Settings
from mpcompile.contract.options import add_arguments, read_arguments


def add(commands: Any) -> None:
    """Declares the command."""
    optimize = commands.add_parser("optimize", help="compile a fine-tuned classifier, regression or encoder")
    optimize.add_argument("model", help="folder of a Hugging Face or sentence-transformers model, or a hub id")
    optimize.add_argument("--out", type=Path, required=True, help="folder to write the artifact to")
    optimize.add_argument("--texts", help="csv, jsonl or parquet with a column text, maybe text_pair and label")
    optimize.add_argument(
        "--held-out",
        help="texts that the model was not fine-tuned on, where it was on --texts: points, times and the certificate "
        "are taken from these",
    )
    optimize.add_argument("--test", help="the same with labels, read once for the report")
    add_arguments(optimize, Settings)
    optimize.add_argument("--json", action="store_true", help="print the report as one JSON object")
    optimize.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    import mpcompile
    from mpcompile.runtime.directories import check_target_directory

    check_target_directory(options.out)
    silence_transformers()
    optimized = mpcompile.optimize(
        options.model,
        texts=options.texts,
        held_out=options.held_out,
        test=options.test,
        **read_arguments(options, Settings),
    )
    optimized.save(options.out)
    show(json.dumps(optimized.report.to_json()) if options.json else f"{optimized.report}\nwritten to {options.out}")
