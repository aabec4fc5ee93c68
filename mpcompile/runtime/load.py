"""Reading artifacts, and rebuilding what another machine or version made stale."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mpcompile.backends import find_backend
from mpcompile.compile.build import build_plans, make_runner
from mpcompile.contract.segment import Backend, BuildConfig, Segment, default_profile
from mpcompile.errors import ArtifactError
from mpcompile.report.report import Report
from mpcompile.runtime.artifact import BACKBONE, EXITS, MANIFEST, MODEL, REPORT, Manifest, read_manifest
from mpcompile.runtime.model import OptimizedModel
from mpcompile.runtime.tokens import TextEncoder
from mpcompile.store.results import Store

if TYPE_CHECKING:
    from torch import Tensor

    from mpcompile.graph.capture import CapturedModel
    from passes import ExitHead

logger = logging.getLogger(__name__)


def load(directory: str | Path, num_threads: int | None = None, cache_dir: Path | None = None) -> OptimizedModel:
    """Reads an artifact.

    With the OpenVINO backend this imports neither torch nor transformers, unless an engine is
    stale (built by another version or for another machine) and has to be built again.

    Args:
        directory: what `OptimizedModel.save` or `mpcompile optimize --out` wrote.
        num_threads: CPU threads, instead of those that the artifact was tuned to; None for those, or all cores.
        cache_dir: where rebuilt engines are kept; None is the user's cache directory.

    Raises:
        ArtifactError: when it is damaged, foreign or of a newer format.
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
    config, ignored = _config(manifest, backend, num_threads)
    notes.extend(ignored)
    ready, plans, stale = _plans(path, manifest, backend, config, Store(cache_dir))
    notes.extend(stale)
    for note in notes:
        logger.warning(note)
    runtime = make_runner(backend, ready, plans, config, manifest.signature.num_labels, manifest.split_tokens)
    encoder = TextEncoder.load(path) if manifest.has_tokenizer else None
    return OptimizedModel(runtime, manifest.signature, report.with_notes(*notes), encoder, path)


def plan_path(directory: Path, index: int) -> Path:
    """Where an artifact keeps the plan of a segment."""
    return directory / "engines" / f"{index}.plan"


def write_plans(directory: Path, plans: Sequence[bytes]) -> None:
    """Writes the plans of a chain into an artifact, in the place of those that were there."""
    folder = plan_path(directory, 0).parent
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    for index, plan in enumerate(plans):
        plan_path(directory, index).write_bytes(plan)


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


def _plans(
    path: Path, manifest: Manifest, backend: Backend, config: BuildConfig, store: Store
) -> tuple[Sequence[Segment], Sequence[bytes], tuple[str, ...]]:
    here = backend.fingerprint()
    if manifest.backend == "tensorrt":
        return manifest.segments, _bundled_plans(path, manifest, here), ()
    changed = [key for key in here if here[key] != manifest.fingerprint.get(key)]
    needs_graph = manifest.backend in ("eager", "inductor")
    stored = [plan_path(path, segment.index).read_bytes() for segment in manifest.segments]
    if not changed and not needs_graph:
        return manifest.segments, stored, ()
    if importlib.util.find_spec("transformers") is None or importlib.util.find_spec("torch") is None:
        reason = f"engines are stale ({_describe(changed, manifest.fingerprint, here)})"
        if needs_graph:
            raise ArtifactError(
                f"{path}: the {manifest.backend} backend needs torch and transformers; pip install mpcompile[build]"
            )
        note = f"{reason}; used as they are, because torch and transformers, which rebuild them, are not installed"
        return manifest.segments, stored, (note,)
    if manifest.segments[0].precision == "int8":
        note = f"engines are stale ({_describe(changed, manifest.fingerprint, here)}); used as they are, because int8 "
        return manifest.segments, stored, (f"{note}engines are rebuilt by optimizing on texts",)
    segments = rebuild_segments(path, manifest)
    if not changed:
        return segments, stored, ()
    note = f"engines were rebuilt: {_describe(changed, manifest.fingerprint, here)}"
    profile = manifest.profile or default_profile(manifest.signature.max_length)
    digest = hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
    return segments, build_plans(backend, segments, profile, config, store, digest), (note,)


def _bundled_plans(path: Path, manifest: Manifest, here: dict[str, str]) -> Sequence[bytes]:
    """Engines of a bundle, which are built where they run."""
    if not manifest.fingerprint:
        raise ArtifactError(f"{path}: a bundle without engines; build them here: mpcompile build {path}")
    changed = [key for key in here if key in manifest.fingerprint and here[key] != manifest.fingerprint[key]]
    if changed:
        stale = _describe(changed, manifest.fingerprint, here)
        raise ArtifactError(f"{path}: its engines are stale ({stale}); build them again: mpcompile build {path}")
    return [plan_path(path, segment.index).read_bytes() for segment in manifest.segments]


def _describe(changed: Sequence[str], before: dict[str, str], now: dict[str, str]) -> str:
    return ", ".join(f"{key} was {before.get(key, 'unknown')}, is {now[key]}" for key in changed)


@dataclass(frozen=True)
class Sources:
    """What segments are made from. Needs torch and transformers.

    Attributes:
        captured: the original as a graph, with the weights that it was fine-tuned to.
        heads: exit heads by exit layer.
    """

    captured: CapturedModel
    heads: dict[int, ExitHead]


def load_sources(path: Path) -> Sources:
    """Captures the original in an artifact, and reads its exit heads and what it was fine-tuned to. Slow."""
    from safetensors.torch import load_file

    from mpcompile.compile.original import open_original
    from mpcompile.graph.capture import capture
    from passes import ExitHead

    original = open_original(path / MODEL, None)
    values = json.loads((path / MANIFEST).read_text("utf-8"))
    captured = capture(original.model, original.pooling.normalise, values["signature"].get("separator_id"))
    if (path / BACKBONE).exists():
        _replace_weights(captured, load_file(path / BACKBONE))
    weights, heads = load_file(path / EXITS), {}
    for layer in sorted({int(name.split(".")[0]) for name in weights}):
        state = {name.split(".", 1)[1]: value for name, value in weights.items() if name.startswith(f"{layer}.")}
        width = state["hidden.weight"].shape[0]
        head = ExitHead(captured.hidden_size, captured.num_labels, width, captured.task.kind == "multi_label")
        heads[layer] = head.eval().requires_grad_(False)
        heads[layer].load_state_dict(state)
    return Sources(captured, heads)


def _replace_weights(captured: CapturedModel, weights: Mapping[str, Tensor]) -> None:
    """Gives a captured model, which nothing else shares, other weights."""
    ours = dict(captured.graph_module.named_parameters())
    if ours.keys() != weights.keys() or any(ours[name].shape != value.shape for name, value in weights.items()):
        raise ArtifactError(f"{BACKBONE}: its weights are not those of the model beside it; optimize again")
    for name, value in weights.items():
        ours[name].data.copy_(value)


def rebuild_segments(path: Path, manifest: Manifest) -> tuple[Segment, ...]:
    """The segments with their graphs, from the artifact's weights. Needs torch and transformers.

    Raises:
        ArtifactError: when the weights do not give the segments that the manifest lists.
    """
    from mpcompile.graph.segments import partition

    sources = load_sources(path)
    prunes = tuple(layer for segment in manifest.segments for layer in segment.prune_layers)
    end = manifest.segments[-1].exit_layer
    last_exit = None if end == sources.captured.num_layers else end
    selection = "threshold" if any(segment.prunes_by_threshold for segment in manifest.segments) else "top"
    segments = partition(sources.captured, sources.heads, prunes, last_exit, manifest.segments[0].precision, selection)
    if [s.exit_layer for s in segments] != [s.exit_layer for s in manifest.segments]:
        raise ArtifactError(f"{path}: its weights do not give the segments of its manifest; optimize again")
    return segments
