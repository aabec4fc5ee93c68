"""Optimization profiles: the sizes that an engine is built for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mpcompile.backends.size_buckets import round_length
from mpcompile.contract.inputs import SLOTS, find_input
from mpcompile.contract.operating_point import MIN_KEPT, OperatingPoint, count_kept
from mpcompile.contract.profile import OptimizationProfile, Range
from mpcompile.contract.segment import Segment

Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""The smallest, best and largest shape of each input."""

WIDE = 8
"""A batch range this many times its smallest gets a second profile: one that spans all costs speed (TensorRT issues
1166 and 3364), and switching between profiles is a context of its own here."""


def list_shapes(segment: Segment, profile: OptimizationProfile) -> list[Shapes]:
    """Shapes of a segment's inputs in each profile that it is built with."""
    return [find_shapes(segment, part) for part in split_profile(profile)]


def split_profile(profile: OptimizationProfile) -> tuple[OptimizationProfile, ...]:
    """One profile, or two where the batch range is wide: single requests first."""
    batch = profile.batch_size
    if batch.max < WIDE * batch.min:
        return (profile,)
    single = Range(batch.min, batch.min, 2 * batch.min)
    return (dataclasses.replace(profile, batch_size=single), profile)


def shrink_profiles(
    profile: OptimizationProfile, segments: Sequence[Segment], points: Sequence[OperatingPoint]
) -> tuple[OptimizationProfile, ...]:
    """A profile for each segment of a chain: tokens get fewer from prune to prune.

    The most are rounded up as the runtime does for CUDA graphs.

    Args:
        profile: of what enters the first.
        segments: the chain.
        points: all that the engines are to run; the first is the one to be fastest at.
    """
    profiles, lengths = [], [profile.seq_len] * len(points)
    for segment in segments:
        longest = min(round_length(max(length.max for length in lengths)), profile.seq_len.max)
        shortest = min(length.min for length in lengths)
        seq_len = Range(shortest, lengths[0].opt, longest)
        profiles.append(dataclasses.replace(profile, seq_len=seq_len))
        for layer in segment.prune_layers:
            lengths = [_keep(length, point.keep_ratio_at(layer)) for length, point in zip(lengths, points, strict=True)]
    return tuple(profiles)


def find_shapes(segment: Segment, profile: OptimizationProfile) -> Shapes:
    """Shapes of a segment's inputs.

    What was in the buffers before survivors were gathered is in the same range as they are. A prune inside the
    segment may keep everything, or as little as any prune does.
    """
    batch = _ends(profile.batch_size)
    length = _ends(profile.seq_len)
    shapes: Shapes = {}
    for name in segment.input_names:
        low, best, high = (_shape(name, b, s, segment.hidden_size) for b, s in zip(batch, length, strict=True))
        if find_input(name)[0] is SLOTS:
            low = (min(MIN_KEPT, *low),)
        shapes[name] = (low, best, high)
    return shapes


def _shape(name: str, batch_size: int, seq_len: int, hidden_size: int) -> tuple[int, ...]:
    sizes = {"batch": batch_size, "rows": batch_size, "hidden_size": hidden_size}
    sizes |= dict.fromkeys(("seq_len", "positions", "kept"), seq_len)
    return find_input(name)[0].shape(sizes, int)


def _ends(sizes: Range) -> tuple[int, int, int]:
    return sizes.min, sizes.opt, sizes.max


def _keep(length: Range, keep_ratio: float) -> Range:
    return Range(*(int(count_kept(keep_ratio, np.float64(size))) for size in _ends(length)))
