"""`mpcompile report`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mpcompile.commands.output import show, write_text
from mpcompile.errors import SettingError


def add(commands: Any) -> None:
    """Declares the command."""
    report = commands.add_parser("report", help="draw the report of an artifact as a page")
    report.add_argument("directory", type=Path)
    report.add_argument("--out", type=Path, required=True, help="html file to write")
    report.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from mpcompile.report.page import PAGE, find_missing_maybe, render_page
    from mpcompile.report.report import Report
    from mpcompile.runtime.artifact import REPORT, read_manifest

    missing = find_missing_maybe()
    if missing is not None:
        raise SettingError(f"mpcompile report: {missing}")
    if options.out.is_dir():
        raise SettingError(f"--out {options.out}: a folder; give the name of a file, such as {options.out / PAGE}")
    if options.out.resolve().is_relative_to(options.directory.resolve()):
        raise SettingError(
            f"--out {options.out}: lies in the artifact, whose manifest lists every file; write it elsewhere"
        )
    read_manifest(options.directory)
    report = Report.from_json(json.loads((options.directory / REPORT).read_text("utf-8")))
    write_text(options.out, render_page(report))
    show(f"written to {options.out}")
