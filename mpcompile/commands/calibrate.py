"""`mpcompile calibrate`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mpcompile.backends import BACKENDS
from mpcompile.commands.output import show, silence_transformers
from mpcompile.errors import SettingError


def add(commands: Any) -> None:
    """Declares the command."""
    calibrate = commands.add_parser("calibrate", help="measure this machine for the cost model; about a minute")
    calibrate.add_argument("--backend", default="auto", help=f"auto or one of {', '.join(BACKENDS)}")
    calibrate.add_argument("--precision", default="auto", help="auto (the fastest native float), f32, bf16 or int8")
    calibrate.add_argument("--fresh", action="store_true", help="measure again although a profile is kept")
    calibrate.add_argument("--cache-dir", type=Path, help="where it is kept (default: the user's cache)")
    calibrate.add_argument("--no-progress", action="store_true")
    calibrate.add_argument("--json", action="store_true", help="print one JSON object")
    calibrate.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from mpcompile.backends import find_backend
    from mpcompile.contract.backend import Target
    from mpcompile.contract.precision import fastest_float
    from mpcompile.cost.profiles import describe_profile, find_profile
    from mpcompile.progress import StageProgress
    from mpcompile.store.results import Store

    silence_transformers()
    backend = find_backend(options.backend)
    native = backend.precisions()
    precision = fastest_float(native) if options.precision == "auto" else options.precision
    if precision not in native:
        raise SettingError(f"--precision: {precision!r}; {backend.name} runs {', '.join(native)} here, or auto")
    with StageProgress(not options.no_progress) as bars, bars.stage("calibrate") as stage:
        store = Store(options.cache_dir)
        profile = find_profile(Target(backend, precision), store, stage, thorough=True, fresh=options.fresh)
    show(json.dumps(profile.to_json()) if options.json else describe_profile(profile))
