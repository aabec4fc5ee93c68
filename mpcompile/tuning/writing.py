"""A tuned artifact: the one that tuning started from, with other engines and a report of what changed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from safetensors.numpy import load_file, save_file

from mpcompile.report.page import PAGE, write_page_maybe
from mpcompile.report.report import Report
from mpcompile.runtime.artifact import EXITS, REPORT, Manifest, copy_files, write_manifest, write_plans
from mpcompile.runtime.directories import replace_directory
from mpcompile.tuning.builder import BuiltVariant
from mpcompile.tuning.space import Machine


def copy_artifact(source: Path, target: Path) -> None:
    """Writes the artifact as it is to another folder; nothing is done where that is its own.

    Raises:
        ArtifactError: when the target holds something else, or cannot be written.
    """
    if target.resolve() == source.resolve():
        return
    with replace_directory(target) as temporary:
        copy_files(source, temporary)


def write_tuned(source: Path, target: Path, manifest: Manifest, report: Report, built: BuiltVariant) -> None:
    """Writes the tuned artifact, whole or not at all; the target may be the artifact that it was made from.

    Args:
        source: the artifact that tuning started from.
        target: folder to write.
        manifest, report: manifest and report of the tuned artifact.
        built: engines of the tuned artifact.

    Raises:
        ArtifactError: when the target holds something else, or cannot be written.
    """
    with replace_directory(target) as temporary:
        copy_files(source, temporary)
        write_plans(temporary, built.plans)
        _keep_heads(temporary / EXITS, {segment.exit_layer for segment in built.segments})
        write_page_maybe(temporary / PAGE, report)
        (temporary / REPORT).write_text(json.dumps(report.to_json(), indent=2) + "\n", "utf-8")
        write_manifest(temporary, manifest)


def tune_manifest(manifest: Manifest, built: BuiltVariant, machine: Machine) -> Manifest:
    """The manifest of a tuned artifact."""
    return dataclasses.replace(
        manifest,
        fingerprint=machine.fingerprint,
        segments=built.segments,
        split_tokens=built.split_tokens,
        config=built.variant.config,
        profile=built.profile,
    )


def _keep_heads(path: Path, exit_layers: set[int]) -> None:
    """Drops the heads of exits that are no longer cuts; their names start with the layer."""
    save_file({name: value for name, value in load_file(path).items() if int(name.split(".")[0]) in exit_layers}, path)
