"""`mpcompile plan`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mpcompile.commands.output import check_target_file, show, silence_transformers, write_text
from mpcompile.contract.options import add_arguments, read_arguments
from mpcompile.planning.settings import PlanSettings


def add(commands: Any) -> None:
    """Declares the command."""
    plan = commands.add_parser("plan", help="predict what a model could gain on a device; trains and runs nothing")
    plan.add_argument("model", help="folder of a Hugging Face classifier, or a hub id")
    plan.add_argument("--device", required=True, help="such as jetson-orin-nano; a wrong name lists the known ones")
    plan.add_argument("--target-speedup", type=float, required=True, help="times the unpruned engine, such as 8")
    plan.add_argument("--texts", help="csv, jsonl or parquet whose lengths to plan for")
    add_arguments(plan, PlanSettings)
    plan.add_argument("--out", type=Path, help="json file to write the plan to, for optimize --plan")
    plan.add_argument("--json", action="store_true", help="print the plan as one JSON object")
    plan.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    import mpcompile

    if options.out is not None:
        check_target_file(options.out)
    silence_transformers()
    planned = mpcompile.plan(
        options.model,
        options.device,
        options.target_speedup,
        texts=options.texts,
        **read_arguments(options, PlanSettings),
    )
    written = json.dumps(planned.to_json(), indent=2)
    if options.out is not None:
        write_text(options.out, written + "\n")
    show(written if options.json else str(planned))
