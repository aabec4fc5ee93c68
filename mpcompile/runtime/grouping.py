"""Decides which examples of a batch run together. Imports no torch."""

from __future__ import annotations

import numpy as np


def split_by_length(extent: np.ndarray, split_tokens: float) -> list[np.ndarray]:
    """Cuts a batch, sorted by length, where padding costs more than another call of the engine.

    Minimises sum(examples * longest) + split_tokens * groups by dynamic programming over the cuts.

    Args:
        extent: tokens that each example occupies, (R,).
        split_tokens: padding tokens that cost as much as another call.

    Returns:
        Positions in the batch, one array per group, shortest group first.
    """
    size = len(extent)
    if int(extent.max()) * size - int(extent.sum()) <= split_tokens:
        return [np.arange(size)]
    by_length = np.argsort(extent, kind="stable")
    sorted_extent = extent[by_length].astype(np.float64)
    best = np.zeros(size + 1)
    cut = [0] * (size + 1)
    sizes = np.arange(size, 0, -1)
    for end in range(1, size + 1):
        cost = best[:end] + sizes[size - end :] * sorted_extent[end - 1]
        cut[end] = int(cost.argmin())
        best[end] = cost[cut[end]] + split_tokens
    groups, end = [], size
    while end:
        groups.append(by_length[cut[end] : end])
        end = cut[end]
    return groups[::-1]
