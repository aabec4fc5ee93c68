"""`mpcompile doctor`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from mpcompile.commands.output import show


def add(commands: Any) -> None:
    """Declares the command."""
    doctor = commands.add_parser("doctor", help="show what this machine can run")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from mpcompile.commands.inspection import describe_doctor, examine_machine

    show(json.dumps(examine_machine()) if options.json else describe_doctor())
