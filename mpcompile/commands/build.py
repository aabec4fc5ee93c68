"""`mpcompile build`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mpcompile.commands.output import show


def add(commands: Any) -> None:
    """Declares the command."""
    build = commands.add_parser("build", help="build the TensorRT engines of a bundle")
    build.add_argument("directory", type=Path, help="a bundle of mpcompile export")
    build.add_argument("--targets", nargs="+", default=(), help="SM80 SM86 SM89 SM120: ahead of time, by TensorRT-RTX")
    build.add_argument("--workspace-mib", type=int, help="scratch memory that a layer may take (default: all there is)")
    build.add_argument("--cache-dir", type=Path, help="where engines are kept (default: the user's cache)")
    build.add_argument("--no-progress", action="store_true")
    build.add_argument("--json", action="store_true", help="print one JSON object")
    build.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from mpcompile.backends.tensorrt.builder import BuilderOptions
    from mpcompile.compile.bundle import build_bundle, describe_engines
    from mpcompile.progress import StageProgress
    from mpcompile.store.results import Store

    workspace = None if options.workspace_mib is None else options.workspace_mib * 2**20
    settings = BuilderOptions(tuple(options.targets), workspace)
    with StageProgress(not options.no_progress) as bars, bars.stage("build engines") as stage:
        facts = build_bundle(options.directory, settings, Store(options.cache_dir), stage)
    show(json.dumps([engine.to_json() for engine in facts]) if options.json else describe_engines(facts))
