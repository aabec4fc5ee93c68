"""Result files: what ran where, with which versions, from which commit."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from mpcompile.backends.cores import count_cores
from mpcompile.store.results import replace_file


def describe_machine() -> dict[str, object]:
    """Hardware, versions and commit that a result belongs to."""
    names = ("mpcompile", "torch", "transformers", "openvino", "onnxruntime", "nncf", "numpy")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(), "cores": count_cores(), "platform": platform.platform(),
        "python": platform.python_version(), "commit": commit + (" with changes" if dirty else ""),
        "versions": {name: metadata.version(name) for name in names if _installed(name)},
    }  # fmt: skip


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    return found[1].strip() if found else platform.processor()


def slug() -> str:
    """Hardware and date, as result files are named."""
    cpu = re.sub(r"[^a-z0-9]+", "-", f"{_cpu()}-{count_cores()}-cores".lower()).strip("-")
    return f"{cpu}_{datetime.now(UTC):%Y-%m-%d}"


def resume(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What an earlier run left in a file, or what is measured now and left there, whole or not at all."""
    if path.is_file():
        print(f"{path.stem}: found in {path}", file=sys.stderr)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        values = json.dumps(measure())
        replace_file(path, lambda name: Path(name).write_text(values, "utf-8"))
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def describe_run(result: Mapping[str, Any]) -> list[str]:
    """The first lines of a table: what was measured where, and when."""
    machine = f"{result['cpu']}, {result['cores']} cores, {result['date']}, commit {result['commit'][:12]}"
    return [machine, "", f"`{result['command']}`", ""]


def write_result(path: Path, result: dict[str, object], table: str) -> None:
    """Writes a result as JSON, whole or not at all, and as Markdown beside it; prints the latter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda name: Path(name).write_text(json.dumps(result, indent=2), "utf-8"))
    path.with_suffix(".md").write_text(table)
    print(table)
