"""`mpcompile export`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mpcompile.commands.output import show, silence_transformers


def add(commands: Any) -> None:
    """Declares the command."""
    export = commands.add_parser("export", help="write an artifact as a bundle for an NVIDIA GPU or Jetson")
    export.add_argument("directory", type=Path, help="an artifact of mpcompile optimize")
    export.add_argument("--target", required=True, help="device, such as jetson-agx-orin; mpcompile plan knows them")
    export.add_argument("--out", type=Path, required=True, help="folder to write the bundle to")
    export.add_argument("--precision", default="f16", help="f16 (default), bf16 or f32")
    export.add_argument("--max-batch-size", type=int, default=32, help="that engines take at once (default: 32)")
    export.add_argument("--no-progress", action="store_true")
    export.add_argument("--json", action="store_true", help="print one JSON object")
    export.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from mpcompile.compile.bundle import export_bundle
    from mpcompile.progress import StageProgress

    silence_transformers()
    with StageProgress(not options.no_progress) as bars, bars.stage("export and check segments") as stage:
        recipe = export_bundle(
            options.directory, options.out, options.target, options.precision, options.max_batch_size, stage
        )
    told = (
        f"{len(recipe.profiles)} segments written to {options.out}; on the device: mpcompile build {options.out.name}"
    )
    show(json.dumps(recipe.to_json()) if options.json else told)
