"""Grids of engines and sizes that this machine is timed at. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """Engines and sizes to time.

    Attributes:
        hidden_size, num_heads: of the random encoder.
        batch_sizes, lengths: all pairs of at most `max_tokens` tokens.
        keep_ratios: of its prune.
        max_tokens: tokens of a batch at most.
    """

    hidden_size: int
    num_heads: int
    batch_sizes: tuple[int, ...]
    lengths: tuple[int, ...]
    keep_ratios: tuple[float, ...]
    max_tokens: int = 3072

    def shapes(self) -> Iterator[tuple[int, int]]:
        """Pairs of batch size and length."""
        for batch_size in self.batch_sizes:
            for length in self.lengths:
                if batch_size * length <= self.max_tokens:
                    yield batch_size, length


QUICK = (Grid(256, 8, (1, 4, 32), (4, 24, 96), (0.5,), 2048),)
FULL = (
    Grid(256, 8, (1, 4, 16, 64), (4, 16, 48, 128, 320), (0.3, 0.8)),
    Grid(768, 12, (1, 4, 16, 64), (4, 16, 48, 128, 320), (0.3, 0.8)),
)
HELD_OUT = (Grid(384, 12, (1, 2, 8, 32), (8, 24, 40, 64, 100, 200, 400), (0.25, 0.5, 0.9)),)
"""Widths, batches, lengths and ratios that are not fitted to."""
