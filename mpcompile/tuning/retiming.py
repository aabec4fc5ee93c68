"""Times of a tuned artifact against the original in it, for its report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mpcompile.compile.original import open_original, place_original
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.cost.timing import measure_interleaved
from mpcompile.runtime.artifact import MODEL
from mpcompile.runtime.runtime import Runner
from mpcompile.tuning.builder import VariantBuilder
from mpcompile.tuning.cuts import find_cuts, fit_point_maybe
from mpcompile.tuning.variant import Variant

RUNS = 3
_PROBES = 3
"""Batches on which the threads of the original are chosen."""


@dataclass(frozen=True)
class PointTimes:
    """A point of the front that a variant's engines can run.

    Attributes:
        index: on the artifact's front.
        point: the operating point, for the variant's cuts and precision.
        measured_s: median seconds per batch.
    """

    index: int
    point: OperatingPoint
    measured_s: float


@dataclass(frozen=True)
class Times:
    """Median seconds per batch, all measured in the same rounds.

    Attributes:
        original_s: the original through torch.
        original_threads: CPU threads that it runs fastest on.
        unpruned_s: the whole model as one engine.
        exits_s: the variant's point without pruning.
        points: every point that is left of the front.
    """

    original_s: float
    original_threads: int
    unpruned_s: float
    exits_s: float
    points: tuple[PointTimes, ...]


def retime(builder: VariantBuilder, batches: Sequence[dict[str, np.ndarray]], variant: Variant) -> Times:
    """Times the original, the unpruned engine and every point that a variant can run, interleaved.

    Args:
        builder: of the artifact.
        batches: workload.
        variant: to be written.
    """
    built = builder.build(variant)
    runner, cuts = builder.load(built), find_cuts(built.segments)
    fitted = [
        point if variant.cuts == "front" else fit_point_maybe(point, cuts)
        for point in (row.point for row in builder.report.operating_points)
    ]
    points = {i: _at(point, variant.precision) for i, point in enumerate(fitted) if point is not None}
    exits = dataclasses.replace(built.point, keep_ratios=(1.0,) * len(built.point.keep_ratios))
    unpruned = builder.load_unpruned(batches)
    whole = OperatingPoint((builder.sources.captured.num_layers,), precision=variant.precision)
    original_calls, num_threads = _original_calls(builder, batches)
    timings = measure_interleaved(
        {
            "original": original_calls,
            "unpruned": _calls(unpruned, whole, batches),
            "exits": _calls(runner, exits, batches),
            **{str(i): _calls(runner, point, batches) for i, point in points.items()},
        },
        RUNS,
    )
    return Times(
        original_s=timings["original"].median_s,
        original_threads=num_threads,
        unpruned_s=timings["unpruned"].median_s,
        exits_s=timings["exits"].median_s,
        points=tuple(PointTimes(i, point, timings[str(i)].median_s) for i, point in points.items()),
    )


def _at(point: OperatingPoint, precision: str) -> OperatingPoint:
    return dataclasses.replace(point, precision=precision)


def _original_calls(
    builder: VariantBuilder, batches: Sequence[dict[str, np.ndarray]]
) -> tuple[list[Callable[[], object]], int]:
    names = builder.manifest.signature.input_names
    found = open_original(builder.directory / MODEL, None)
    original = place_original(found, builder.backend.device_kind, batches[:_PROBES], names)
    prepared = [original.prepare(batch, names) for batch in batches]
    num_threads = original.find_threads(prepared[:_PROBES])
    return [partial(original.run, batch, num_threads) for batch in prepared], num_threads


def _calls(
    runner: Runner, point: OperatingPoint, batches: Sequence[dict[str, np.ndarray]]
) -> list[Callable[[], object]]:
    return [partial(runner.run, batch, point) for batch in batches]
