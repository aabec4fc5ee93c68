"""Time of an operating point, predicted.

Roofline (Williams et al. 2009): a node takes max(flops / peak, bytes / bandwidth) and a fixed part;
an engine takes its nodes and a fixed part; a workload takes its examples' engines.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpcompile.cost.device import Device
from mpcompile.cost.nodes import FP32_BYTES, GraphWork, NodeWork
from mpcompile.operating_point import OperatingPoint, count_kept

Size = np.ndarray | np.float64
"""A number of examples or tokens, or an array of them."""


@dataclass(frozen=True)
class CostModel:
    """Predicts times and counts flops from work and device; runs nothing.

    Attributes:
        work: the captured model's.
        device: peaks and overheads.
        scale: measured over predicted time of the unpruned model, 1 before calibration.
    """

    work: GraphWork
    device: Device
    scale: float = 1.0

    def predict_layers(
        self, first: int, last: int, batch_size: Size, seq_len: Size, point: OperatingPoint
    ) -> tuple[np.ndarray, np.ndarray]:
        """Seconds of layers `first` to `last` (exclusive), and the tokens left behind them.

        Args:
            batch_size: examples, any shape.
            seq_len: tokens that enter, the same shape.
            point: for its keep ratios.
        """
        seconds = np.zeros(np.shape(seq_len))
        for layer in range(first, last):
            seconds = seconds + self._predict(self.work.attention[layer], batch_size, seq_len)
            if point.keep_ratio_at(layer) < 1.0 or layer in point.prune_layers:
                seconds = seconds + self._predict(self._prune_work(), batch_size, seq_len)
                seq_len = count_kept(point.keep_ratio_at(layer), seq_len)
            seconds = seconds + self._predict(self.work.feed_forward[layer], batch_size, seq_len)
        return seconds, np.asarray(seq_len)

    def predict_segment(
        self,
        first: int,
        exit_layer: int,
        batch_size: Size,
        seq_len: Size,
        point: OperatingPoint,
        has_embeddings: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Seconds of one engine: layers `first` to `exit_layer`, its classifier, its call; and the tokens left."""
        seconds, kept = self.predict_layers(first, exit_layer, batch_size, seq_len, point)
        if has_embeddings:
            seconds = seconds + self._predict(self.work.embeddings, batch_size, seq_len)
        is_end = exit_layer == self.work.num_layers
        classifier = self.work.classifier if is_end else self._exit_work()
        seconds = seconds + self._predict(classifier, batch_size, kept)
        return seconds + self.device.engine_overhead_s, kept

    def predict_unpruned(self, batch_size: Size, seq_len: Size) -> np.ndarray:
        """Seconds of the whole model in one engine."""
        point = OperatingPoint(exit_layers=(self.work.num_layers,))
        return self.predict_segment(0, self.work.num_layers, batch_size, seq_len, point, has_embeddings=True)[0]

    def split_tokens(self, exit_layers: Sequence[int], seq_len: int) -> tuple[float, ...]:
        """Padding tokens that cost as much as another call, for the segment that ends at each exit.

        Args:
            exit_layers: where the segments end, ascending.
            seq_len: a typical length.
        """
        point = OperatingPoint(exit_layers=(self.work.num_layers,))
        length, tokens = np.float64(seq_len), []
        for index, (first, exit_layer) in enumerate(itertools.pairwise((0, *exit_layers))):
            few, many = (
                float(self.predict_segment(first, exit_layer, np.float64(n), length, point, index == 0)[0])
                for n in (8, 16)
            )
            per_token = max(many - few, 1e-12) / (8 * seq_len)
            tokens.append(max(few - 8 * seq_len * per_token, 0.0) / per_token)
        return tuple(tokens)

    def count_flops(self, seq_len: Size, point: OperatingPoint, exit_layer: np.ndarray) -> np.ndarray:
        """Flops of each example alone: its own length, its own exit, (N,)."""
        one = np.ones_like(seq_len, dtype=np.float64)
        flops = self._count(self.work.embeddings, one, seq_len)
        for exited in point.exit_layers:
            is_end = exited == self.work.num_layers
            head = self.work.classifier if is_end else self._exit_work()
            flops = flops + (exit_layer >= exited) * self._count(head, one, seq_len)
        for layer in range(self.work.num_layers):
            ran = exit_layer > layer
            flops = flops + ran * self._count(self.work.attention[layer], one, seq_len)
            if layer in point.prune_layers:
                flops = flops + ran * self._count(self._prune_work(), one, seq_len)
                seq_len = count_kept(point.keep_ratio_at(layer), seq_len)
            flops = flops + ran * self._count(self.work.feed_forward[layer], one, seq_len)
        return flops

    def _prune_work(self) -> tuple[NodeWork, ...]:
        size = self.work.hidden_size
        # Mean query, one row of attention, value norms: 6 flops per element; q, k, v and h are read, h written.
        score = NodeWork(lambda b, s: 6 * b * s * size, lambda b, s: FP32_BYTES * 5 * b * s * size, 1)
        # Reductions, top-k, sort and gather are about six small nodes beside the score.
        return (score, NodeWork(lambda b, s: 0 * b, lambda b, s: 0 * b, 6))

    def _exit_work(self, width: int = 128) -> tuple[NodeWork, ...]:
        size, labels = self.work.hidden_size, self.work.num_labels
        weights = FP32_BYTES * width * (2 * size + labels)
        pool = NodeWork(lambda b, s: 3 * b * s * size, lambda b, s: FP32_BYTES * b * s * size, 1)
        head = NodeWork(lambda b, s: 2 * b * width * (2 * size + labels), lambda b, s: weights + 0 * b, 1)
        return (pool, head)

    def _predict(self, nodes: Sequence[NodeWork], batch_size: Size, seq_len: Size) -> np.ndarray:
        seconds = np.zeros(np.broadcast_shapes(np.shape(batch_size), np.shape(seq_len)))
        narrow = self.device.activation_bytes / FP32_BYTES
        for node in nodes:
            compute_s = node.flops(batch_size, seq_len) / self.device.peak_flops_per_s
            memory_s = node.bytes_moved(batch_size, seq_len) * narrow / self.device.peak_bytes_per_s
            seconds = seconds + node.count * (np.maximum(compute_s, memory_s) + self.device.node_overhead_s)
        return self.scale * seconds

    def _count(self, nodes: Sequence[NodeWork], batch_size: Size, seq_len: Size) -> np.ndarray:
        total = np.zeros(np.shape(seq_len))
        for node in nodes:
            total = total + node.count * node.flops(batch_size, seq_len)
        return total
