"""`mpcompile inspect`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mpcompile.commands.output import show


def add(commands: Any) -> None:
    """Declares the command."""
    inspect = commands.add_parser("inspect", help="show what an artifact holds")
    inspect.add_argument("directory", type=Path)
    inspect.add_argument("--json", action="store_true", help="print one JSON object")
    inspect.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from mpcompile.commands.inspection import describe_artifact, inspect_artifact

    show(json.dumps(inspect_artifact(options.directory)) if options.json else describe_artifact(options.directory))
