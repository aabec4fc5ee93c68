"""The sizes that an engine is built for. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """Sizes that a dimension may take; `opt` is the one to be fastest at."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class OptimizationProfile:
    """Shapes that an engine is built for.

    Attributes:
        batch_size: survivors that enter.
        seq_len: tokens of the longest survivor.
    """

    batch_size: Range
    seq_len: Range


def default_profile(max_length: int) -> OptimizationProfile:
    """The profile to build for when the workload is not known: single requests and small batches."""
    return OptimizationProfile(Range(1, 8, 128), Range(2, min(128, max_length), max_length))
