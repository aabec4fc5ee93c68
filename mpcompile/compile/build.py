"""Builds the plan of each segment once, and finds it again in the store. Imports no torch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from mpcompile.compile.recording import CalibrationTexts, describe_calibration, record_inputs
from mpcompile.contract.backend import Backend, BuildConfig, Samples
from mpcompile.contract.profile import OptimizationProfile
from mpcompile.contract.segment import Segment
from mpcompile.errors import BackendError
from mpcompile.store.results import Store


def build_plans(
    backend: Backend,
    segments: Sequence[Segment],
    profile: OptimizationProfile,
    config: BuildConfig,
    store: Store,
    digest: str,
    on_plan: Callable[[float], None] = lambda _: None,
    calibration: CalibrationTexts | None = None,
) -> list[bytes]:
    """Plans of segments, from the store where they were built before.

    Segments in int8 are calibrated on what they are given while an fp32 chain answers texts.

    Args:
        profile: shapes to build for.
        config: for the backend.
        digest: of everything that determines the segments: weights, exit heads, rewrites.
        on_plan: called after each plan with the share done.
        calibration: texts, for segments in int8.

    Raises:
        BackendError: when the backend cannot build a segment.
    """
    plans = []
    recorded = functools.cache(lambda: _record(backend, segments, profile, config, store, digest, calibration))
    for segment in segments:
        reason = backend.unsupported_reason(segment)
        if reason is not None:
            raise BackendError(f"backend {backend.name!r}, segment {segment.index}: {reason}")
        key = {
            "kind": "plan",
            "digest": digest,
            "backend": backend.name,
            "fingerprint": backend.fingerprint(),
            "profile": repr(profile),
            "config": repr(config),
            "segment": [segment.index, segment.exit_layer, segment.prune_layers, segment.precision],
            **describe_calibration(segment.precision, calibration),
        }

        def build(segment: Segment = segment) -> dict[str, np.ndarray]:
            samples = recorded()[segment.index] if segment.precision == "int8" else None
            return {"plan": np.frombuffer(backend.build(segment, profile, config, samples), np.uint8)}

        plans.append(store.fetch(key, build)["plan"].tobytes())
        on_plan(len(plans) / len(segments))
    return plans


def _record(
    backend: Backend,
    segments: Sequence[Segment],
    profile: OptimizationProfile,
    config: BuildConfig,
    store: Store,
    digest: str,
    calibration: CalibrationTexts | None,
) -> Sequence[Samples]:
    """Inputs of each segment; none without texts, of which the backend will complain."""
    if calibration is None:
        return [()] * len(segments)
    floats = [dataclasses.replace(segment, precision="f32") for segment in segments[:-1]]
    plans = build_plans(backend, floats, profile, config, store, digest)
    engines = [backend.load(plan, segment, config) for plan, segment in zip(plans, floats, strict=True)]
    return record_inputs(segments, engines, calibration.batches)
