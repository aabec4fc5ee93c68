"""Rebuilds the segments and engines of an artifact from the weights in it. Needs torch and transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from mpcompile.compile.build import Blueprint, build_plans
from mpcompile.compile.original import open_original
from mpcompile.contract.backend import Target
from mpcompile.contract.profile import default_profile
from mpcompile.contract.segment import Segment
from mpcompile.errors import ArtifactError
from mpcompile.graph.capture import CapturedModel, capture
from mpcompile.graph.segments import partition
from mpcompile.runtime.artifact import BACKBONE, EXITS, MANIFEST, MODEL, Manifest
from mpcompile.store.results import Store
from passes import ExitHead


@dataclass(frozen=True)
class Sources:
    """The sources of segments: the captured original and its exit heads. Needs torch and transformers.

    Attributes:
        captured: the original as a graph, with the weights that it was fine-tuned to.
        heads: exit heads by exit layer.
    """

    captured: CapturedModel
    heads: dict[int, ExitHead]


def load_sources(path: Path) -> Sources:
    """Captures the original in an artifact, and reads its exit heads and what it was fine-tuned to. Slow."""

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
    sources = load_sources(path)
    prunes = tuple(layer for segment in manifest.segments for layer in segment.prune_layers)
    end = manifest.segments[-1].exit_layer
    last_exit = None if end == sources.captured.num_layers else end
    selection = "threshold" if any(segment.prunes_by_threshold for segment in manifest.segments) else "top"
    segments = partition(sources.captured, sources.heads, prunes, last_exit, manifest.segments[0].precision, selection)
    if [s.exit_layer for s in segments] != [s.exit_layer for s in manifest.segments]:
        raise ArtifactError(f"{path}: its weights do not give the segments of its manifest; optimize again")
    return segments


def rebuild_chain(
    path: Path, manifest: Manifest, target: Target, store: Store
) -> tuple[tuple[Segment, ...], list[bytes]]:
    """The segments of an artifact with their graphs, and plans for this machine; see `runtime.load.Rebuild`.

    Raises:
        ArtifactError: when the weights do not give the segments that the manifest lists.
        BackendError: when the backend cannot build a segment.
    """
    segments = rebuild_segments(path, manifest)
    profile = manifest.profile or default_profile(manifest.signature.max_length)
    digest = hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
    return segments, build_plans(target, Blueprint(segments, profile, digest), store)
