"""Bundles: artifacts without engines, which are built on the device that runs them.

segments/N.onnx     a segment in its precision, see `mpcompile.graph.onnx_segments`
recipe.json         for which device, and the sizes that each segment is built for
engines/N.plan      what `build_bundle` made of them
README.md           what to type on the device

The rest is as in any artifact (`mpcompile.runtime.artifact`), but for the original model and the exit heads, which are
inside the segments.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpcompile.backends.tensorrt.backend import PRECISIONS as NATIVE
from mpcompile.backends.tensorrt.backend import TensorRtBackend, fingerprint
from mpcompile.backends.tensorrt.build_log import EngineFacts
from mpcompile.backends.tensorrt.builder import BuilderOptions, build_engine
from mpcompile.backends.tensorrt.profiles import list_shapes, shrink_profiles
from mpcompile.contract.profile import OptimizationProfile, Range
from mpcompile.cost.devices import find_device
from mpcompile.errors import ArtifactError, SettingError
from mpcompile.report.report import Report
from mpcompile.runtime.artifact import (
    RECIPE,
    REPORT,
    SEGMENTS,
    copy_files,
    read_manifest,
    read_profile,
    write_manifest,
    write_plans,
)
from mpcompile.runtime.directories import replace_directory
from mpcompile.runtime.ngrams import NGRAMS
from mpcompile.runtime.tokens import Tokenizer
from mpcompile.store.results import Store

PRECISIONS = NATIVE[::-1]
"""Precisions of bundles, the fastest first; int8 is quantised for the CPU."""
_CHECKED_BATCH = 4
"""Examples in the largest batch that an ONNX segment is checked at: the CPU is slow with many long texts."""


@dataclass(frozen=True)
class Recipe:
    """The recipe that a bundle is built to.

    Attributes:
        device: that it is for, see `mpcompile plan --devices`.
        profiles: sizes of each segment.
    """

    device: str
    profiles: tuple[OptimizationProfile, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"device": self.device, "profiles": [asdict(profile) for profile in self.profiles]}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Recipe:
        """The recipe that `to_json` described."""
        profiles = [read_profile(profile) for profile in values["profiles"]]
        return Recipe(values["device"], tuple(profile for profile in profiles if profile is not None))


def export_bundle(
    directory: Path,
    out: Path,
    device: str,
    precision: str = "f16",
    max_batch_size: int = 32,
    on_progress: Callable[[float], None] = lambda _: None,
) -> Recipe:
    """Writes the bundle of an artifact. Slow. Needs torch, onnx and onnxruntime.

    Args:
        directory: an artifact.
        out: folder to write, whole or not at all.
        device: that will run it.
        precision: of the segments, whatever the artifact's is.
        max_batch_size: survivors that an engine takes at once.
        on_progress: called with the share done.

    Raises:
        ArtifactError: when the artifact is damaged, a bundle itself, or `out` holds something else.
        BackendError: when a segment cannot be written as ONNX, or answers otherwise there.
        SettingError: when the device, precision or batch size is not allowed.
    """
    from mpcompile.graph.onnx_check import check_onnx
    from mpcompile.graph.onnx_segments import export_onnx

    _check(device, precision, max_batch_size)
    manifest = read_manifest(directory)
    if (directory / RECIPE).exists():
        raise ArtifactError(f"{directory}: is a bundle already; export the artifact that it was made from")
    report = Report.from_json(json.loads((directory / REPORT).read_text("utf-8")))
    points = tuple(dataclasses.replace(row, point=dataclasses.replace(row.point, precision=precision))
                   for row in report.operating_points)  # fmt: skip
    from mpcompile.compile.rebuild import rebuild_segments  # needs torch, which the device that builds does without

    segments = [dataclasses.replace(s, precision=precision) for s in rebuild_segments(directory, manifest)]
    longest = manifest.signature.max_length
    whole = OptimizationProfile(Range(1, min(8, max_batch_size), max_batch_size), Range(2, min(128, longest), longest))
    order = [points[report.chosen], *points]
    recipe = Recipe(device, shrink_profiles(whole, segments, [row.point for row in order]))
    with replace_directory(out) as temporary:
        (temporary / SEGMENTS).mkdir()
        for index, (segment, profile) in enumerate(zip(segments, recipe.profiles, strict=True)):
            model = export_onnx(segment)
            check_onnx(segment, model, _narrow(profile), manifest.signature.vocab_size)
            onnx_path(temporary, index).write_bytes(model)
            on_progress((index + 1) / len(segments))
        if manifest.has_tokenizer:
            Tokenizer.load(directory).save(temporary)
        if (directory / NGRAMS).exists():
            shutil.copy2(directory / NGRAMS, temporary / NGRAMS)
        note = f"speeds and losses were measured on {report.machine.get('cpu', 'a CPU')}, not on {device}"
        told = dataclasses.replace(report, operating_points=points).with_notes(note)
        (temporary / REPORT).write_text(json.dumps(told.to_json(), indent=2) + "\n", "utf-8")
        (temporary / RECIPE).write_text(json.dumps(recipe.to_json(), indent=2) + "\n", "utf-8")
        (temporary / "README.md").write_text(_describe(out.name, device, precision), "utf-8")
        bundle = dataclasses.replace(manifest, backend=TensorRtBackend.name, fingerprint={}, segments=tuple(segments))
        write_manifest(temporary, bundle)
    return recipe


def build_bundle(
    directory: Path,
    options: BuilderOptions | None = None,
    store: Store | None = None,
    on_progress: Callable[[float], None] = lambda _: None,
) -> tuple[EngineFacts, ...]:
    """Builds the engines of a bundle for the GPU that is here, or ahead of time for others. Needs no torch.

    Engines are found again by their content: a killed build goes on after the last engine that it finished.

    Args:
        directory: a bundle; gets its engines, all or none.
        options: see `BuilderOptions`.
        store: where engines are kept.
        on_progress: called with the share done.

    Raises:
        ArtifactError: when it is damaged or no bundle.
        BackendError: when TensorRT is missing, or cannot build a segment.
    """
    options, store = options or BuilderOptions(), store or Store()
    manifest, recipe = read_manifest(directory), read_recipe(directory)
    made, built = fingerprint(options), []
    for segment, profile in zip(manifest.segments, recipe.profiles, strict=True):
        model = onnx_path(directory, segment.index).read_bytes()
        shapes = list_shapes(segment, profile)
        key = {"kind": "tensorrt plan", "model": hashlib.sha256(model).hexdigest(), "profiles": shapes, **made}
        entry = store.find_maybe(key)
        if entry is None:
            cache_key = {"kind": "tensorrt timing cache", **made}
            cache = (store.find_maybe(cache_key) or {"cache": np.empty(0, np.uint8)})["cache"].tobytes()
            engine = build_engine(model, shapes, options, cache, f"segment {segment.index}")
            if engine.timing_cache:
                store.keep(cache_key, {"cache": np.frombuffer(engine.timing_cache, np.uint8)})
            facts = json.dumps(engine.facts.to_json()).encode()
            entry = {"plan": np.frombuffer(engine.plan, np.uint8), "facts": np.frombuffer(facts, np.uint8)}
            store.keep(key, entry)
        built.append((entry["plan"].tobytes(), EngineFacts.from_json(json.loads(entry["facts"].tobytes()))))
        on_progress(len(built) / len(manifest.segments))
    with replace_directory(directory) as temporary:
        copy_files(directory, temporary)
        write_plans(temporary, [plan for plan, _ in built])
        write_manifest(temporary, dataclasses.replace(manifest, fingerprint=made))
    return tuple(facts for _, facts in built)


def read_recipe(directory: Path) -> Recipe:
    """The recipe of a bundle.

    Raises:
        ArtifactError: when the folder is not a bundle.
    """
    path = directory / RECIPE
    if not path.is_file():
        raise ArtifactError(f"{directory}: no {RECIPE} in it; expected a bundle that mpcompile export wrote")
    try:
        return Recipe.from_json(json.loads(path.read_text("utf-8")))
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: lacks what it needs ({error!r}); export again") from error


def onnx_path(directory: Path, index: int) -> Path:
    """Where a bundle keeps a segment."""
    return directory / SEGMENTS / f"{index}.onnx"


def describe_engines(facts: Sequence[EngineFacts]) -> str:
    """Describes the engines that were built, one line each."""
    lines = []
    for index, engine in enumerate(facts):
        parts = [f"engine {index}: {engine.plan_bytes / 2**20:.1f} MiB, built in {engine.build_s:.1f} s"]
        if engine.scratch_bytes is not None:
            parts.append(f"{engine.scratch_bytes / 2**20:.0f} MiB of scratch memory")
        if engine.kernels:
            parts.append(f"{engine.num_fused_attentions} fused attentions among {len(engine.kernels)} kernels")
        lines.append(", ".join(parts))
    return "\n".join(lines)


def _check(device: str, precision: str, max_batch_size: int) -> None:
    if find_device(device).kind != "gpu":
        raise SettingError(f"target {device!r}: bundles are for NVIDIA GPUs; mpcompile optimize builds for this CPU")
    if precision not in PRECISIONS:
        raise SettingError(f"precision {precision!r}: expected {', '.join(PRECISIONS)}")
    if max_batch_size < 1:
        raise SettingError(f"max batch size {max_batch_size}: a whole number from 1 is expected")


def _narrow(profile: OptimizationProfile) -> OptimizationProfile:
    """The profile with batches that ONNX Runtime answers in time."""
    batch = profile.batch_size
    top = min(batch.max, _CHECKED_BATCH)
    return dataclasses.replace(profile, batch_size=Range(batch.min, min(batch.opt, top), top))


def _describe(name: str, device: str, precision: str) -> str:
    return f"""# A text classifier for {device}

Written by `mpcompile export`: ONNX segments in {precision}, a recipe, the tokenizer and the operating points. Plans
of TensorRT work on one GPU and one version alone, so that engines are built where they run:

```
pip install mpcompile
mpcompile build {name}
mpcompile predict {name} texts.csv --out answers.csv
```

`build` needs TensorRT (JetPack has it; `pip install tensorrt` elsewhere) and cuda-python, and neither torch nor
transformers. Interrupted, it goes on behind the last engine. `report.json` has what was measured before export.
"""
