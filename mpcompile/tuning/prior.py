"""Ranks candidates before any is measured, by the times that the cost model predicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mpcompile.contract.backend import Target
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.cost.chain import Chain, predict_workload
from mpcompile.cost.model import CostModel
from mpcompile.cost.profiles import find_profile
from mpcompile.cost.work import estimate_work
from mpcompile.tuning.builder import VariantBuilder
from mpcompile.tuning.cuts import find_used_cuts, fit_point_maybe, merge_split_tokens
from mpcompile.tuning.variant import Variant

STEP_DOWN = 0.7
"""Time in a precision that is one step less exact over that in the other: half the bytes, not half of all."""


class Prior:
    """Predicts variants of one artifact on one workload.

    Threads, streams and profiles are not predicted: variants that differ in those alone get the same time.

    Args:
        builder: of the artifact; the profile of the machine is measured when its store has none, which takes seconds.
        lengths: tokens of each example, (B,), one array per batch.
        find_exits: gives the layers that each example runs at a point of the front, (B,), one array per batch.
    """

    def __init__(
        self,
        builder: VariantBuilder,
        lengths: Sequence[np.ndarray],
        find_exits: Callable[[OperatingPoint], Sequence[np.ndarray]],
    ) -> None:
        self._builder, self._lengths, self._find_exits = builder, lengths, find_exits
        captured = builder.sources.captured
        self._precisions = builder.backend.precisions()
        self._precision = builder.manifest.segments[0].precision
        profile = find_profile(Target(builder.backend, self._precision), builder.store)
        work = estimate_work(captured, builder.backend.fusion, builder.store)
        self._cost = CostModel(work, profile.rates, max_length=captured.max_length)
        self._exits: dict[int, Sequence[np.ndarray]] = {}
        self._seconds: dict[tuple[int, str, float], float] = {}

    def predict(self, start: Variant, variants: Sequence[Variant]) -> list[float | None]:
        """Time of each variant over that of the start."""
        start_s = self._predict(start)
        return [self._predict(variant) / start_s for variant in variants]

    def _predict(self, variant: Variant) -> float:
        key = (variant.point, variant.cuts, variant.split_scale)
        if key not in self._seconds:
            self._seconds[key] = self._predict_chain(*key)
        steps = self._precisions.index(variant.precision) - self._precisions.index(self._precision)
        return self._seconds[key] * STEP_DOWN**steps

    def _predict_chain(self, index: int, cuts_of: str, split_scale: float) -> float:
        own, front_point = self._builder.cuts, self._builder.report.operating_points[index].point
        if index not in self._exits:
            self._exits[index] = self._find_exits(front_point)
        cuts = own if cuts_of == "front" else find_used_cuts(front_point)
        point = front_point if cuts_of == "front" else fit_point_maybe(front_point, cuts)
        assert point is not None
        split_tokens = merge_split_tokens(own, self._builder.manifest.split_tokens, cuts)
        scaled = tuple(split_scale * tokens for tokens in split_tokens)
        chain = Chain(cuts.exit_layers, scaled, lambda _: 0.0)  # all variants have the same exit before the model
        return predict_workload(self._cost, chain, point, self._lengths, self._exits[index])
