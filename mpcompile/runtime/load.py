"""Reads artifacts. Imports no torch."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from mpcompile.backends import find_backend
from mpcompile.contract.backend import Backend, BuildConfig, Target
from mpcompile.contract.segment import Segment
from mpcompile.errors import ArtifactError
from mpcompile.report.report import Report
from mpcompile.runtime.artifact import RECIPE, REPORT, Manifest, plan_path, read_manifest
from mpcompile.runtime.model import OptimizedModel
from mpcompile.runtime.ngrams import NGRAMS, FirstExit, NGramClassifier
from mpcompile.runtime.runner import make_runner
from mpcompile.runtime.tokens import Tokenizer
from mpcompile.store.results import Store

logger = logging.getLogger(__name__)

Chain = tuple[Sequence[Segment], Sequence[bytes]]
"""Segments and their plans."""
Rebuild = Callable[[Path, Manifest, Target, Store], Chain]
"""Makes a chain again from the weights in an artifact: segments with their graphs, and plans for this machine."""


def load_artifact(
    directory: str | Path,
    num_threads: int | None = None,
    cache_dir: str | Path | None = None,
    rebuild: Rebuild | None = None,
) -> OptimizedModel:
    """Reads an artifact; `mpcompile.load` is this function with what rebuilds engines where torch is installed.

    Args:
        directory: see `mpcompile.load`.
        num_threads: see `mpcompile.load`.
        cache_dir: see `mpcompile.load`.
        rebuild: called where an engine is stale or needs its graph; None uses stale engines as they are.

    Raises:
        ArtifactError: when it is damaged, foreign or of a newer format, or its engines need a graph and `rebuild` is
            None.
        BackendError: when its backend is missing here.
        SettingError: when num_threads is less than 1.
    """
    path = Path(directory).expanduser()
    manifest, notes = read_manifest(path), []
    report = Report.from_json(json.loads((path / REPORT).read_text("utf-8")))
    backend = find_backend(manifest.backend)
    precision = manifest.segments[0].precision
    if precision not in backend.precisions():
        notes.append(f"this machine does not run {precision} natively: engines run in f32")
        segments = tuple(dataclasses.replace(segment, precision="f32") for segment in manifest.segments)
        manifest = dataclasses.replace(manifest, segments=segments)
    chain: Chain
    config, ignored = _config(manifest, backend, num_threads)
    notes.extend(ignored)
    target = Target(backend, manifest.segments[0].precision, config)
    reason = find_stale_maybe(path, manifest, backend)
    if reason is None and not backend.needs_graph:
        chain = manifest.segments, read_plans(path, manifest)
    elif rebuild is None or target.precision == "int8":
        chain = manifest.segments, read_plans(path, manifest)
        notes.append(_explain_stale(path, manifest, backend, reason))
    else:
        chain = rebuild(path, manifest, target, Store(None if cache_dir is None else Path(cache_dir).expanduser()))
        notes.extend([] if reason is None else [f"engines were rebuilt: {reason}"])
    for note in notes:
        logger.warning(note)
    first_exit = load_first_exit_maybe(path, manifest)
    runtime = make_runner(target, *chain, manifest.signature.num_labels, manifest.split_tokens, first_exit)
    tokenizer = Tokenizer.load(path) if manifest.has_tokenizer else None
    return OptimizedModel(runtime, manifest.signature, report.with_notes(*notes), tokenizer, path)


def load_first_exit_maybe(path: Path, manifest: Manifest) -> FirstExit | None:
    """The exit before the model that an artifact holds, None where it has none."""
    if not (path / NGRAMS).exists():
        return None
    return FirstExit(NGramClassifier.load(path), manifest.signature.task)


def read_plans(path: Path, manifest: Manifest) -> tuple[bytes, ...]:
    """The plans that an artifact holds, one per segment."""
    return tuple(plan_path(path, segment.index).read_bytes() for segment in manifest.segments)


def find_stale_maybe(path: Path, manifest: Manifest, backend: Backend) -> str | None:
    """What makes the engines of an artifact stale here, None where nothing does.

    Raises:
        ArtifactError: when it is a bundle, whose engines only `mpcompile build` makes, and they are stale or missing.
    """
    here, before = backend.fingerprint(), manifest.fingerprint
    is_bundle = (path / RECIPE).exists()
    if is_bundle and not before:
        raise ArtifactError(f"{path}: a bundle without engines; build them here: mpcompile build {path}")
    # A bundle that was built with options has facts in its fingerprint that only its builder knows.
    changed = [key for key in here if here[key] != before.get(key) and (key in before or not is_bundle)]
    if not changed:
        return None
    reason = ", ".join(f"{key} was {before.get(key, 'unknown')}, is {here[key]}" for key in changed)
    if is_bundle:
        raise ArtifactError(f"{path}: its engines are stale ({reason}); build them again: mpcompile build {path}")
    return reason


def _explain_stale(path: Path, manifest: Manifest, backend: Backend, reason: str | None) -> str:
    """What to say of stale engines that are used as they are."""
    if backend.needs_graph:
        raise ArtifactError(
            f"{path}: the {backend.name} backend needs torch and transformers; pip install mpcompile[build]"
        )
    why = "torch and transformers, which rebuild them, are not installed"
    if manifest.segments[0].precision == "int8":
        why = "int8 engines are rebuilt by optimizing on texts"
    return f"engines are stale ({reason}); used as they are, because {why}"


def _config(manifest: Manifest, backend: Backend, num_threads: int | None) -> tuple[BuildConfig, tuple[str, ...]]:
    """The settings to load engines with, and what is to be said about them."""
    if manifest.config != BuildConfig() and backend.fingerprint() != manifest.fingerprint:
        return BuildConfig(num_threads), (
            f"threads and streams were tuned for another machine or version ({manifest.config.num_threads or 'all'} "
            f"threads, {manifest.config.num_streams} streams) and are not used: tune again",
        )
    if num_threads is None:
        return manifest.config, ()
    return BuildConfig(num_threads, min(manifest.config.num_streams, max(num_threads, 1))), ()
