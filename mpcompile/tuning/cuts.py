"""Where a model is cut into segments, and which operating points the cuts allow. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpcompile.contract.operating_point import BEFORE, OperatingPoint
from mpcompile.contract.segment import Segment


@dataclass(frozen=True)
class Cuts:
    """Exits and prunes that engines are built with.

    Attributes:
        exit_layers: where segments end, ascending; nothing is built after the last.
        prune_layers: layers that prune, ascending.
    """

    exit_layers: tuple[int, ...]
    prune_layers: tuple[int, ...]

    def allow(self, other: Cuts) -> bool:
        """Whether everything that the other cuts at is cut here, too."""
        return set(other.exit_layers) <= set(self.exit_layers) and set(other.prune_layers) <= set(self.prune_layers)


def find_cuts(segments: Sequence[Segment]) -> Cuts:
    """The cuts of a chain."""
    return Cuts(
        tuple(segment.exit_layer for segment in segments),
        tuple(layer for segment in segments for layer in segment.prune_layers),
    )


def find_used_cuts(point: OperatingPoint) -> Cuts:
    """The cuts that change what a point answers: exits that examples may take, prunes that drop tokens.

    None of them is the exit before the model, where nothing is cut.
    """
    last = point.exit_layers[-1]
    exits = [layer for layer in point.exit_layers if layer != BEFORE and point.threshold_at(layer) > 0.0]
    prunes = [layer for layer in point.prune_layers if layer < last and point.keep_ratio_at(layer) < 1.0]
    return Cuts(tuple(exits), tuple(prunes))


def fit_point_maybe(point: OperatingPoint, cuts: Cuts) -> OperatingPoint | None:
    """The same point for engines that are cut elsewhere; None when it uses a cut that they lack."""
    if not cuts.allow(find_used_cuts(point)):
        return None
    exits = tuple(layer for layer in point.exit_layers if layer == BEFORE or layer in cuts.exit_layers)
    prunes = tuple(layer for layer in point.prune_layers if layer in cuts.prune_layers)
    thresholds = tuple(point.threshold_at(layer) for layer in exits[:-1])
    return OperatingPoint(exits, thresholds, prunes, tuple(map(point.keep_ratio_at, prunes)), point.precision)


def merge_split_tokens(before: Cuts, split_tokens: Sequence[float], after: Cuts) -> tuple[float, ...]:
    """`split_tokens` of segments that were merged: the mean of those that went into each.

    A call costs a part that is fixed and a part per token; both add up when segments are merged, so that their
    ratio stays between those of the parts. Tuning scales it anyway.

    Args:
        before: cuts that `split_tokens` belongs to.
        after: cuts at fewer exits.
    """
    merged, first = [], 0
    for exit_layer in after.exit_layers:
        last = before.exit_layers.index(exit_layer)
        parts = split_tokens[first : last + 1]
        merged.append(sum(parts) / len(parts))
        first = last + 1
    return tuple(merged)
