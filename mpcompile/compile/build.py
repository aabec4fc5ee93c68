"""Builds the plan of each segment once, and finds it again in the store. Imports no torch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mpcompile.compile.recording import CalibrationTexts, describe_calibration, record_inputs
from mpcompile.contract.backend import Samples, Target
from mpcompile.contract.profile import OptimizationProfile
from mpcompile.contract.segment import Segment
from mpcompile.errors import BackendError
from mpcompile.store.results import Store
from mpcompile.store.source import digest_source


@dataclass(frozen=True)
class Blueprint:
    """A blueprint of engines: everything that they are built from.

    Attributes:
        segments: the chain, with graphs.
        profile: sizes to build for.
        digest: of everything that determines the segments beside the code of their graphs: weights and exit heads.
        calibration: texts, for segments in int8; None where there are none.
    """

    segments: Sequence[Segment]
    profile: OptimizationProfile
    digest: str
    calibration: CalibrationTexts | None = None


def build_plans(
    target: Target, blueprint: Blueprint, store: Store, on_plan: Callable[[float], None] = lambda _: None
) -> list[bytes]:
    """Plans of segments, from the store where they were built before.

    Segments in int8 are calibrated on what they are given while an fp32 chain answers texts.

    Args:
        target: backend and config; the precision is that of each segment.
        blueprint: segments, and what they are built for.
        store: keeps the plans.
        on_plan: called after each plan with the share done.

    Raises:
        BackendError: when the backend cannot build a segment.
    """
    plans = []
    backend, recorded = target.backend, functools.cache(lambda: _record(target, blueprint, store))
    for segment in blueprint.segments:
        reason = backend.unsupported_reason(segment)
        if reason is not None:
            raise BackendError(f"backend {backend.name!r}, segment {segment.index}: {reason}")

        def build(segment: Segment = segment) -> dict[str, np.ndarray]:
            samples = recorded()[segment.index] if segment.precision == "int8" else None
            plan = backend.build(segment, blueprint.profile, target.config, samples)
            return {"plan": np.frombuffer(plan, np.uint8)}

        plans.append(store.fetch(_describe(target, blueprint, segment), build)["plan"].tobytes())
        on_plan(len(plans) / len(blueprint.segments))
    return plans


def _describe(target: Target, blueprint: Blueprint, segment: Segment) -> dict[str, object]:
    """Everything that a plan depends on: the key that it is kept under."""
    return {
        "kind": "plan",
        "digest": blueprint.digest,
        "backend": target.backend.name,
        "fingerprint": target.backend.fingerprint(),
        "profile": repr(blueprint.profile),
        "config": repr(target.config),
        "source": digest_source(),
        "graph": None if segment.graph_module is None else segment.graph_module.code,
        "segment": [segment.index, segment.exit_layer, segment.prune_layers, segment.precision],
        **describe_calibration(target.backend, segment.precision, blueprint.calibration),
    }


def _record(target: Target, blueprint: Blueprint, store: Store) -> Sequence[Samples]:
    """Inputs of each segment; none without texts, which the backend then refuses."""
    segments = blueprint.segments
    if blueprint.calibration is None:
        return [()] * len(segments)
    floats = tuple(dataclasses.replace(segment, precision="f32") for segment in segments[:-1])
    plans = build_plans(target, dataclasses.replace(blueprint, segments=floats), store)
    engines = [target.backend.load(plan, segment, target.config) for plan, segment in zip(plans, floats, strict=True)]
    return record_inputs(segments, engines, blueprint.calibration.batches)
