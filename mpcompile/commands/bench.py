"""`mpcompile bench`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mpcompile.commands.output import show
from mpcompile.errors import SettingError


def add(commands: Any) -> None:
    """Declares the command."""
    bench = commands.add_parser("bench", help="time an artifact against its original")
    bench.add_argument("directory", type=Path)
    bench.add_argument("--test", required=True, help="csv, jsonl or parquet with texts, and labels for the accuracy")
    bench.add_argument("--batch-size", type=int, nargs="+", default=[1, 32])
    bench.add_argument("--runs", type=int, default=5)
    bench.add_argument("--max-texts", type=int, default=1000)
    bench.add_argument("--json", action="store_true", help="print one JSON object")
    bench.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from mpcompile.compile.measure.benchmark import benchmark_artifact, format_rows

    for name, values in (
        ("batch-size", options.batch_size),
        ("runs", [options.runs]),
        ("max-texts", [options.max_texts]),
    ):
        if min(values) < 1:
            raise SettingError(f"--{name}: {min(values)}; a whole number from 1 is expected")
    rows = benchmark_artifact(options.directory, options.test, options.batch_size, options.runs, options.max_texts)
    show(json.dumps({"rows": rows}) if options.json else format_rows(rows))
