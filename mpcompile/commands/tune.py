"""`mpcompile tune`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mpcompile.commands.output import show


def add(commands: Any) -> None:
    """Declares the command."""
    tune = commands.add_parser("tune", help="find the fastest way to run an artifact on this machine")
    tune.add_argument("directory", type=Path, help="the artifact to start from")
    tune.add_argument("--out", type=Path, required=True, help="folder of the tuned artifact; may be the same")
    tune.add_argument("--texts", help="csv, jsonl or parquet with texts to time (default: random ids of like lengths)")
    tune.add_argument("--batch-size", type=int, help="examples that run together (default: as in the report)")
    tune.add_argument("--max-drop", type=float, help="loss that a point may have (default: that of the chosen one)")
    tune.add_argument("--budget-s", type=float, default=300.0, help="seconds of measuring candidates")
    tune.add_argument("--max-trials", type=int, help="candidates at most, those of killed runs included")
    tune.add_argument("--storage", help="URL of an Optuna storage (default: SQLite in the cache directory)")
    tune.add_argument("--study", help="name of the study there (default: from model, workload and machine)")
    tune.add_argument("--ray", metavar="ADDRESS", help="measure on the nodes of a Ray cluster: auto, local, ray://...")
    tune.add_argument("--trial-timeout-s", type=float, default=60.0, help="a round that takes longer hangs")
    tune.add_argument("--seed", type=int, default=0)
    tune.add_argument("--cache-dir", type=Path, help="where study and engines are kept (default: the user's cache)")
    tune.add_argument("--no-progress", action="store_true")
    tune.add_argument("--json", action="store_true", help="print one JSON object")
    tune.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from mpcompile.tuning import tune

    _silence_optuna()
    result = tune(
        options.directory,
        options.out,
        texts=options.texts,
        batch_size=options.batch_size,
        max_drop=options.max_drop,
        budget_s=options.budget_s,
        max_trials=options.max_trials,
        storage=options.storage,
        study=options.study,
        ray=options.ray,
        trial_timeout_s=options.trial_timeout_s,
        seed=options.seed,
        progress=not options.no_progress,
        cache_dir=options.cache_dir,
    )
    show(json.dumps(result.to_json()) if options.json else f"{result.describe()}\nwritten to {result.directory}")


def _silence_optuna() -> None:
    """The progress bars and the result say what is to be said."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
