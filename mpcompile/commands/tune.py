"""`mpcompile tune`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mpcompile.commands.output import show
from mpcompile.contract.options import add_arguments, read_arguments
from mpcompile.tuning.settings import TuneSettings


def add(commands: Any) -> None:
    """Declares the command."""
    tune = commands.add_parser("tune", help="find the fastest way to run an artifact on this machine")
    tune.add_argument("directory", type=Path, help="the artifact to start from")
    tune.add_argument("--out", type=Path, required=True, help="folder of the tuned artifact; may be the same")
    tune.add_argument("--texts", help="csv, jsonl or parquet with texts to time (default: random ids of like lengths)")
    add_arguments(tune, TuneSettings)
    tune.add_argument("--json", action="store_true", help="print one JSON object")
    tune.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from mpcompile.tuning import tune

    _silence_optuna()
    settings = read_arguments(options, TuneSettings)
    result = tune(options.directory, options.out, texts=options.texts, **settings)
    show(json.dumps(result.to_json()) if options.json else f"{result.describe()}\nwritten to {result.directory}")


def _silence_optuna() -> None:
    """The progress bars and the result say what is to be said."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
