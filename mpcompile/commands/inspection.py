"""Describes what an artifact holds, and what this machine can run. Imports no torch."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.table import Table

from mpcompile.backends import BACKENDS, find_backend
from mpcompile.backends import PACKAGES as OF_BACKENDS
from mpcompile.backends.cores import count_cores
from mpcompile.contract.task import Task
from mpcompile.errors import MpcompileError
from mpcompile.report.report import Report
from mpcompile.report.tables import render
from mpcompile.runtime.artifact import REPORT, read_manifest
from mpcompile.runtime.ngrams import NGRAMS

PACKAGES = ("mpcompile", *OF_BACKENDS, "transformers", "tokenizers", "safetensors", "numpy")


def inspect_artifact(directory: Path) -> dict[str, Any]:
    """Manifest, sizes and report of an artifact, as JSON values.

    Raises:
        ArtifactError: when it is damaged, foreign or of a newer format.
    """
    manifest = read_manifest(directory)
    report = json.loads((directory / REPORT).read_text("utf-8"))
    sizes = {str(p.relative_to(directory)): p.stat().st_size for p in sorted(directory.rglob("*")) if p.is_file()}
    return {**manifest.to_json(), "bytes": sizes, "report": report}


def describe_artifact(directory: Path) -> str:
    """The same for people."""
    values = inspect_artifact(directory)
    table = Table(title=f"segments ({values['backend']})", title_justify="left")
    for name in ("segment", "runs to layer", "prunes in", "precision", "MiB"):
        table.add_column(name)
    if NGRAMS in values["bytes"]:
        table.add_row("n-grams", "before the model", "-", "f16", f"{values['bytes'][NGRAMS] / 2**20:.1f}")
    for segment in values["segments"]:
        size = values["bytes"][f"engines/{segment['index']}.plan"]
        prunes = " ".join(map(str, segment["prune_layers"])) or "-"
        table.add_row(
            str(segment["index"]), str(segment["exit_layer"]), prunes, segment["precision"], f"{size / 2**20:.1f}"
        )
    labels = ", ".join(list(values["signature"]["id2label"].values())[:10])
    task = Task.from_json(values["signature"]["task"])
    total = sum(values["bytes"].values()) / 2**20
    lines = f"{directory}: {total:.0f} MiB, {task.describe_outputs()}{f' ({labels})' if labels else ''}"
    return f"{lines}\n{render(table, width=120)}\n{Report.from_json(values['report'])}"


def examine_machine() -> dict[str, Any]:
    """Versions, cores and backends, as JSON values."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    backends: dict[str, Any] = {}
    for name in BACKENDS:
        try:
            backend = find_backend(name)
            backends[name] = {"precisions": list(backend.precisions()), **backend.fingerprint()}
        except MpcompileError as error:
            backends[name] = {"missing": str(error)}
    return {"machine": platform.platform(), "cores": count_cores(), "versions": versions, "backends": backends}


def describe_doctor() -> str:
    """The same for people."""
    values = examine_machine()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("machine", f"{values['machine']}, {values['cores']} cores")
    table.add_row("python", platform.python_version())
    for name, version in values["versions"].items():
        table.add_row(name, version)
    for name, facts in values["backends"].items():
        table.add_row(f"backend {name}", ", ".join(f"{key}: {_join(value)}" for key, value in facts.items()))
    return render(table, width=120)


def _join(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)
