"""Variants as engines: plans of the artifact where they fit, rebuilt ones where they do not."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpcompile.backends import find_backend
from mpcompile.compile.build import Blueprint, build_plans
from mpcompile.compile.rebuild import Sources, load_sources
from mpcompile.compile.recording import CalibrationTexts
from mpcompile.contract.backend import Target
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.profile import OptimizationProfile, default_profile
from mpcompile.contract.segment import Segment
from mpcompile.errors import SettingError
from mpcompile.report.report import Report
from mpcompile.runtime.artifact import MANIFEST, REPORT, Manifest, plan_path, read_manifest
from mpcompile.runtime.load import load_first_exit_maybe
from mpcompile.runtime.ngrams import FirstExit
from mpcompile.runtime.runner import make_runner
from mpcompile.runtime.runtime import Runner
from mpcompile.store.results import Store, digest
from mpcompile.tuning.cuts import Cuts, find_cuts, find_used_cuts, fit_point_maybe, merge_split_tokens
from mpcompile.tuning.variant import SPLIT_SCALES, Variant

_CALIBRATED = 16
"""Batches that an unpruned engine in int8 is calibrated on."""


@dataclass(frozen=True)
class BuiltVariant:
    """A variant as it would stand in an artifact.

    Attributes:
        variant: the settings.
        point: its operating point, for its cuts and precision.
        segments: the chain; with graphs where the backend needs them to load a plan.
        plans: one per segment.
        split_tokens: see `Runtime`.
        profile: what the plans were built for.
    """

    variant: Variant
    point: OperatingPoint
    segments: tuple[Segment, ...]
    plans: tuple[bytes, ...]
    split_tokens: tuple[float, ...]
    profile: OptimizationProfile

    @property
    def key(self) -> str:
        """Equal for two variants that run the same, in hexadecimal."""
        return digest(
            {
                "plans": [hashlib.sha256(plan).hexdigest() for plan in self.plans],
                "segments": [
                    [segment.exit_layer, segment.prune_layers, segment.precision] for segment in self.segments
                ],
                "config": dataclasses.asdict(self.variant.config),
                "split_tokens": self.split_tokens,
                "point": self.point.to_json(),
            }
        )


class VariantBuilder:
    """Builds the variants of one artifact; what is slow is done once and kept.

    Args:
        directory: the artifact.
        profile: of the workload.
        cache_dir: where plans are kept; None is the user's cache directory.

    Raises:
        ArtifactError: when it is damaged or foreign.
        SettingError: when this machine does not run its precision.
        BackendError: when its precision is int8 and nncf is not installed.
    """

    def __init__(self, directory: Path, profile: OptimizationProfile, cache_dir: Path | None) -> None:
        self.directory = directory
        self.manifest: Manifest = read_manifest(directory)
        self.report = Report.from_json(json.loads((directory / REPORT).read_text("utf-8")))
        self.backend = find_backend(self.manifest.backend)
        self._profile = profile
        self.store = Store(cache_dir)
        self._sources: Sources | None = None
        self._digest = hashlib.sha256((directory / MANIFEST).read_bytes()).hexdigest()
        precision = self.manifest.segments[0].precision
        if precision not in self.backend.precisions():
            raise SettingError(
                f"{directory}: its engines run in {precision}, this machine in {', '.join(self.backend.precisions())}; "
                "optimize the model here, then tune that"
            )
        if precision == "int8":
            self.backend.find_quantiser()  # the unpruned engine will need it; better said now

    @property
    def cuts(self) -> Cuts:
        """Those of the artifact."""
        return find_cuts(self.manifest.segments)

    def build(self, variant: Variant) -> BuiltVariant:
        """Builds what the artifact does not hold. Slow.

        Raises:
            BackendError: when the backend cannot build it.
        """
        front_point = self.report.operating_points[variant.point].point
        cuts = self.cuts if variant.cuts == "front" else find_used_cuts(front_point)
        point = fit_point_maybe(front_point, cuts) if variant.cuts == "point" else front_point
        assert point is not None
        profile = self.manifest.profile or default_profile(self.manifest.signature.max_length)
        if variant.profile == "workload":
            profile = self._profile
        segments, plans = self._stored_maybe(variant) or self._rebuild(variant.precision, cuts, profile)
        split_tokens = merge_split_tokens(self.cuts, self.manifest.split_tokens, cuts)
        return BuiltVariant(
            variant=variant,
            point=dataclasses.replace(point, precision=variant.precision),
            segments=segments,
            plans=plans,
            split_tokens=tuple(variant.split_scale * tokens for tokens in split_tokens),
            profile=profile,
        )

    def load(self, built: BuiltVariant) -> Runner:
        """Engines of a built variant. Raises BackendError."""
        num_labels = self.manifest.signature.num_labels
        target = Target(self.backend, built.variant.precision, built.variant.config)
        return make_runner(target, built.segments, built.plans, num_labels, built.split_tokens, self._first_exit)

    @functools.cached_property
    def _first_exit(self) -> FirstExit | None:
        return load_first_exit_maybe(self.directory, self.manifest)

    def load_unpruned(self, batches: Sequence[dict[str, np.ndarray]]) -> Runner:
        """The whole model as one engine, in the artifact's precision: the baseline.

        Args:
            batches: to calibrate on in int8; the engine is timed and nothing else.
        """
        cuts = Cuts((self.sources.captured.num_layers,), ())
        profile = self.manifest.profile or default_profile(self.manifest.signature.max_length)
        calibration = CalibrationTexts(tuple(batches[:_CALIBRATED]))
        precision = self.manifest.segments[0].precision
        segments, plans = self._rebuild(precision, cuts, profile, calibration)
        num_labels = self.manifest.signature.num_labels
        return make_runner(Target(self.backend, precision), segments, plans, num_labels, [SPLIT_SCALES[-1]])

    @property
    def sources(self) -> Sources:
        """The original as a graph, and its exit heads; captured when they are first asked for. Slow."""
        if self._sources is None:
            _silence_bars()
            self._sources = load_sources(self.directory)
        return self._sources

    def _stored_maybe(self, variant: Variant) -> tuple[tuple[Segment, ...], tuple[bytes, ...]] | None:
        manifest = self.manifest
        is_own = (variant.cuts, variant.profile) == ("front", "given")
        is_fresh = self.backend.fingerprint() == manifest.fingerprint and not self.backend.needs_graph
        # Engines in int8 are not rebuilt: that takes texts.
        is_fresh = is_fresh or variant.precision == "int8"
        if not is_own or not is_fresh or variant.precision != manifest.segments[0].precision:
            return None
        plans = tuple(plan_path(self.directory, segment.index).read_bytes() for segment in manifest.segments)
        return manifest.segments, plans

    def _rebuild(
        self,
        precision: str,
        cuts: Cuts,
        profile: OptimizationProfile,
        calibration: CalibrationTexts | None = None,
    ) -> tuple[tuple[Segment, ...], tuple[bytes, ...]]:
        segments = self._partition(cuts, precision)
        key = f"{self._digest} {cuts}"
        blueprint = Blueprint(segments, profile, key, calibration)
        plans = build_plans(Target(self.backend, precision), blueprint, self.store)
        return segments, tuple(plans)

    def _partition(self, cuts: Cuts, precision: str) -> tuple[Segment, ...]:
        from mpcompile.graph.segments import partition

        captured, end = self.sources.captured, cuts.exit_layers[-1]
        heads = {layer: head for layer, head in self.sources.heads.items() if layer in cuts.exit_layers}
        last_exit = None if end == captured.num_layers else end
        return partition(captured, heads, cuts.prune_layers, last_exit, precision)


def _silence_bars() -> None:
    """Keeps transformers' bars out of those of the tuner, and semaphores of bars from outliving a killed process."""
    from tqdm import tqdm
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    tqdm.set_lock(threading.RLock())


def strip_graphs(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """The segments as an artifact describes them."""
    return tuple(dataclasses.replace(segment, graph_module=None) for segment in segments)
