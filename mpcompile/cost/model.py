"""Predicts the time of a segment at an operating point. Runs nothing."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mpcompile.contract.operating_point import BEFORE, OperatingPoint, count_kept
from mpcompile.cost.rates import Rates
from mpcompile.cost.regions import GraphWork, Part, Size
from mpcompile.cost.roofline import predict_region

GRAMS_PER_TOKEN = 3
"""The exit before the model reads each token, each pair and each triple of neighbours."""


@dataclass(frozen=True)
class CostModel:
    """Predicts times and counts flops from work and rates.

    Attributes:
        work: the captured model's.
        rates: the device's.
        scale: measured over predicted time of the unpruned model, 1 before calibration.
        max_length: tokens that the model reads at most.
    """

    work: GraphWork
    rates: Rates
    scale: float = 1.0
    max_length: int = 512
    _tables: dict[tuple[int, float, float, float], np.ndarray] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _weight_bytes: dict[tuple[int, int], float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def predict_segment(
        self, is_first: bool, first: int, exit_layer: int, batch_size: float, seq_len: Size, point: OperatingPoint
    ) -> np.ndarray:
        """Seconds of one engine: what it computes, its call, and the host's look at the entropies.

        Args:
            is_first: whether it starts from ids.
            first, exit_layer: layers that it runs, the second exclusive.
            batch_size: examples.
            seq_len: tokens that enter, a number or an array.
            point: for its keep ratios, and for its last exit, whose entropies the host does not read.
        """
        seconds = np.full(np.shape(seq_len), self.rates.engine_s)
        if exit_layer != point.exit_layers[-1]:
            seconds = seconds + self.rates.sync_s
        weight_bytes = self._count_weight_bytes(first, exit_layer)
        for part in self.work.list_parts(is_first, first, exit_layer, seq_len, point):
            seconds = seconds + self._predict(part, batch_size, weight_bytes)
        return seconds

    def predict_reshape(self, is_first: bool, first: int, exit_layer: int, point: OperatingPoint) -> float:
        """Seconds that an engine takes more when its sizes differ from those of its last call."""
        if self.rates.reshape_s == 0.0:
            return 0.0
        parts = self.work.list_parts(is_first, first, exit_layer, np.float64(1), point)
        return self.scale * self.rates.reshape_s * sum(part.region.num_launches for part in parts)

    def predict_unpruned(self, batch_size: float, seq_len: Size) -> np.ndarray:
        """Seconds of the whole model in one engine."""
        end = self.work.num_layers
        return self.predict_segment(True, 0, end, batch_size, seq_len, OperatingPoint((end,)))

    def predict_call(
        self, is_first: bool, first: int, exit_layer: int, seq_len: int, point: OperatingPoint
    ) -> tuple[float, float]:
        """Seconds of a call of an engine whatever it holds, and for each example in it.

        They are the straight line through batches of 8 and 16.

        Args:
            is_first, first, exit_layer, point: see `predict_segment`.
            seq_len: a typical length.
        """
        few, many = (
            float(self.predict_segment(is_first, first, exit_layer, n, np.float64(seq_len), point)) for n in (8, 16)
        )
        per_example = max(many - few, 1e-12) / 8
        return max(few - 8 * per_example, 0.0), per_example

    def split_tokens(
        self, exit_layers: tuple[int, ...], seq_len: int, prune_layers: tuple[int, ...] = ()
    ) -> tuple[float, ...]:
        """Padding tokens that cost as much as another call, for the segment that ends at each exit.

        Args:
            exit_layers: where the segments end, ascending.
            seq_len: a typical length.
            prune_layers: layers that the engines can prune at.
        """
        point = OperatingPoint(exit_layers[-1:], (), prune_layers, (1.0,) * len(prune_layers))
        tokens = []
        for index, (first, exit_layer) in enumerate(itertools.pairwise((0, *exit_layers))):
            call_s, example_s = self.predict_call(index == 0, first, exit_layer, seq_len, point)
            call_s += self.predict_reshape(index == 0, first, exit_layer, point)
            tokens.append(call_s / example_s * seq_len)
        return tuple(tokens)

    def count_flops(
        self,
        seq_len: np.ndarray,
        point: OperatingPoint,
        exit_layer: np.ndarray,
        num_kept: Mapping[int, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Flops of each example alone: its own length, its own exit, (N,).

        Args:
            seq_len: tokens of each example, (N,).
            point: exits and keep ratios.
            exit_layer: where each example leaves, (N,); before the model an addition for each gram is counted.
            num_kept: by layer that prunes, tokens that each example has left after it, (N,), where they were
                counted; otherwise they follow from the keep ratios.
        """
        one, length = np.float64(1), np.asarray(seq_len, np.float64)
        flops = (exit_layer > BEFORE) * self.work.embeddings.count_flops(one, length)
        if BEFORE in point.exit_layers:
            flops = flops + GRAMS_PER_TOKEN * length
        for layer in range(self.work.num_layers + 1):
            if layer in point.exit_layers:
                head = self.work.classifier if layer == self.work.num_layers else self.work.exits[layer]
                flops = flops + (exit_layer >= layer) * head.count_flops(one, length)
            if layer == self.work.num_layers:
                break
            ran = exit_layer > layer
            flops = flops + ran * self.work.attention[layer].count_flops(one, length)
            if layer in point.prune_layers:
                counted = count_kept(point.keep_ratio_at(layer), length) if num_kept is None else num_kept[layer]
                kept = counted.astype(np.float64)
                flops = flops + ran * self.work.prune[layer].count_flops(one, length, kept)
                length = kept
            flops = flops + ran * self.work.feed_forward[layer].count_flops(one, length)
        return np.asarray(flops)

    def _count_weight_bytes(self, first: int, exit_layer: int) -> float:
        """Parameters that an engine reads, fp32; without the tables of ids."""
        key = (first, exit_layer)
        if key not in self._weight_bytes:
            parts = self.work.list_parts(False, first, exit_layer, np.float64(1), OperatingPoint((exit_layer,)))
            self._weight_bytes[key] = sum(part.region.weight_bytes for part in parts)
        return self._weight_bytes[key]

    def _predict(self, part: Part, batch_size: float, weight_bytes: float) -> np.ndarray:
        """Seconds of a part, looked up: lengths are whole numbers, and a search asks for the same ones again."""
        key = (id(part.region), float(batch_size), part.keep_ratio, weight_bytes)
        if key not in self._tables:
            lengths = np.arange(1.0, self.max_length + 1)
            work = part.region.evaluate(np.float64(batch_size), lengths, count_kept(part.keep_ratio, lengths))
            predicted = self.scale * predict_region(self.rates, work, weight_bytes)
            self._tables[key] = np.broadcast_to(predicted, lengths.shape)
        return self._tables[key][np.asarray(part.seq_len, np.int64) - 1]
