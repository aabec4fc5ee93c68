"""`mpcompile plan`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mpcompile.commands.output import check_target_file, show, silence_transformers, write_text


def add(commands: Any) -> None:
    """Declares the command."""
    plan = commands.add_parser("plan", help="predict what a model could gain on a device; trains and runs nothing")
    plan.add_argument("model", help="folder of a Hugging Face classifier, or a hub id")
    plan.add_argument("--device", required=True, help="such as jetson-orin-nano; a wrong name lists the known ones")
    plan.add_argument("--target-speedup", type=float, required=True, help="times the unpruned engine, such as 8")
    plan.add_argument("--texts", help="csv, jsonl or parquet whose lengths to plan for")
    plan.add_argument("--seq-len", type=int, help="tokens of every example, instead of texts (default: 128)")
    plan.add_argument("--batch-size", type=int, default=1)
    plan.add_argument("--precision", default="auto", help="auto, f32, f16, bf16, fp8 or int8")
    plan.add_argument("--devices", type=Path, help="file of devices instead of the packaged one")
    plan.add_argument("--out", type=Path, help="json file to write the plan to, for optimize --plan")
    plan.add_argument("--cache-dir", type=Path, help="where measured profiles are kept (default: the user's cache)")
    plan.add_argument("--no-progress", action="store_true")
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
        seq_len=options.seq_len,
        batch_size=options.batch_size,
        precision=options.precision,
        devices=options.devices,
        cache_dir=options.cache_dir,
        progress=not options.no_progress,
    )
    written = json.dumps(planned.to_json(), indent=2)
    if options.out is not None:
        write_text(options.out, written + "\n")
    show(written if options.json else str(planned))
