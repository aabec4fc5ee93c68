"""The runtime: runs segments one after another; finished examples leave in between. Imports no torch.

Shapes: B examples asked, R survivors of a group, S tokens, L tokens of the longest survivor, C classes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mpcompile.contract.backend import Engine
from mpcompile.contract.inputs import CARRIED, LayerSetting, fill_inputs
from mpcompile.contract.operating_point import BEFORE, OperatingPoint, count_kept
from mpcompile.contract.segment import Segment
from mpcompile.errors import BatchTooLarge, InputError
from mpcompile.runtime.grouping import split_by_length
from mpcompile.runtime.ngrams import FirstExit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """Answers in the order asked.

    Attributes:
        logits: (B, C) fp32.
        exit_layer: encoder layers that each example ran, (B,) int64; `BEFORE` where the model was not asked.
        tokens_kept: tokens that each example had left when it was answered, (B,) int64.
    """

    logits: np.ndarray
    exit_layer: np.ndarray
    tokens_kept: np.ndarray


class Runner(Protocol):
    """Anything that answers batches: a `Runtime`, or several of them as `Lanes`."""

    @property
    def segments(self) -> tuple[Segment, ...]: ...

    @property
    def split_tokens(self) -> tuple[float, ...]: ...

    @property
    def first_exit(self) -> FirstExit | None: ...

    def run(self, inputs: Mapping[str, np.ndarray], point: OperatingPoint) -> RunResult: ...


@dataclass
class Group:
    """Survivors that run together.

    Attributes:
        rows: their rows in the buffers that they are gathered from, (R,).
        order: their positions in the batch asked, (R,).
        length: tokens that each has left, (R,).
        extent: one past each example's last token, (R,); exceeds `length` if the mask has gaps.
    """

    rows: np.ndarray
    order: np.ndarray
    length: np.ndarray
    extent: np.ndarray

    def take(self, index: np.ndarray) -> Group:
        return Group(self.rows[index], self.order[index], self.length[index], self.extent[index])


class Runtime:
    """Runs a chain of engines at any operating point that they were built for.

    Depth first: a group that was split off runs to its end before its sibling starts, so that
    each engine's output buffers stay valid for as long as they are read. A group that an engine has no room
    for is split, too, and a warning says so.

    Args:
        segments: the chain.
        engines: one per segment.
        num_labels: C.
        split_tokens: for each segment, how many padding tokens cost as much as another call of its
            engine; a group is split by length where that saves more.
        first_exit: what answers before the chain, None where nothing does.

    Attributes:
        num_labels: C.
        num_nan: answers so far with NaN among their logits; they take no early exit.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        engines: Sequence[Engine],
        num_labels: int,
        split_tokens: Sequence[float],
        first_exit: FirstExit | None = None,
    ) -> None:
        self.segments = tuple(segments)
        self.engines = tuple(engines)
        self.num_labels = num_labels
        self.split_tokens = tuple(split_tokens)
        self.first_exit = first_exit
        self._lock = threading.Lock()  # engines own their buffers
        self._told: set[tuple[int, int]] = set()
        self.num_nan = 0

    def run(self, inputs: Mapping[str, np.ndarray], point: OperatingPoint) -> RunResult:
        """Answers a batch.

        Args:
            inputs: input_ids, attention_mask and, where segment 0 reads them, token_type_ids, (B, S) int64.
            point: exits, thresholds and keep ratios.

        Raises:
            BatchTooLarge: when an engine has no room for a single example.
            InputError: when the engines lack an exit or a prune of the point.
        """
        self._check_point(point)
        mask = inputs["attention_mask"]
        batch_size, seq_len = mask.shape
        result = RunResult(
            np.empty((batch_size, self.num_labels), np.float32),
            np.empty(batch_size, np.int64),
            np.empty(batch_size, np.int64),
        )
        everyone = np.arange(batch_size)
        extent = seq_len - np.argmax(mask[:, ::-1] != 0, axis=1)
        group = Group(everyone, everyone, np.count_nonzero(mask, axis=1), extent)
        if BEFORE in point.exit_layers:
            group = self._leave_before(inputs, group, point, result)
        if len(group.order):
            with self._lock:
                self._advance(0, inputs, group, point, result)
                self._count_nan(result.logits)
        return result

    def _leave_before(
        self, inputs: Mapping[str, np.ndarray], group: Group, point: OperatingPoint, result: RunResult
    ) -> Group:
        """Answers those that are sure before the model runs, and gives the others."""
        assert self.first_exit is not None
        outputs = self.first_exit(inputs)
        leaving = find_leaving(outputs["entropy"], point.threshold_at(BEFORE))
        self._answer(BEFORE, outputs, leaving, group, result)
        return group.take(np.flatnonzero(~leaving))

    def _advance(
        self, index: int, buffers: Mapping[str, np.ndarray], group: Group, point: OperatingPoint, result: RunResult
    ) -> None:
        for index_in_group in split_by_length(group.extent, self.split_tokens[index]):
            self._advance_part(index, buffers, group.take(index_in_group), point, result)

    def _advance_part(
        self, index: int, buffers: Mapping[str, np.ndarray], group: Group, point: OperatingPoint, result: RunResult
    ) -> None:
        """Runs examples that share a call, in several calls where the engine has no room for all of them."""
        segment = self.segments[index]
        try:
            outputs, part = self._run_segment(segment, buffers, group, point)
        except BatchTooLarge as error:
            if not 0 < error.max_rows < len(group.order):
                raise
            self._tell(segment.index, len(group.order), error)
            for start in range(0, len(group.order), error.max_rows):
                rows = np.arange(start, min(start + error.max_rows, len(group.order)))
                self._advance_part(index, buffers, group.take(rows), point, result)
            return
        entropy = outputs["entropy"] if "entropy" in outputs else np.full(len(part.order), np.nan, np.float32)
        leaving = find_leaving(entropy, point.threshold_at(segment.exit_layer))
        self._answer(segment.exit_layer, outputs, leaving, part, result)
        if not leaving.all():
            self._advance(index + 1, outputs, part.take(np.flatnonzero(~leaving)), point, result)

    def _answer(
        self, exit_layer: int, outputs: Mapping[str, np.ndarray], leaving: np.ndarray, group: Group, result: RunResult
    ) -> None:
        """Writes the answers of those of a group, (R,) bool, that leave at an exit."""
        if not leaving.any():
            return
        where = group.order[leaving]
        result.logits[where] = outputs["logits"][leaving]
        result.exit_layer[where] = exit_layer
        result.tokens_kept[where] = group.length[leaving]

    def _count_nan(self, logits: np.ndarray) -> None:
        """Counts answers with NaN in them, and says once that there are some."""
        is_nan = np.isnan(logits)
        if not is_nan.any():
            return
        num_nan = int(is_nan.any(axis=1).sum())
        if not self.num_nan:
            precisions = ", ".join(sorted({segment.precision for segment in self.segments}))
            logger.warning(
                "%d of %d answers are NaN, which is no answer: the engines (%s) overflow on these texts, or the model "
                "does; if the original answers them, optimize again with precision='f32'",
                num_nan,
                len(logits),
                precisions,
            )
        self.num_nan += num_nan

    def _tell(self, index: int, num_rows: int, error: BatchTooLarge) -> None:
        """Says once that batches are split, and why."""
        if (index, error.max_rows) not in self._told:
            self._told.add((index, error.max_rows))
            logger.warning("%s; a batch of %d runs in parts of at most %d", error, num_rows, error.max_rows)

    def _run_segment(
        self, segment: Segment, buffers: Mapping[str, np.ndarray], group: Group, point: OperatingPoint
    ) -> tuple[Mapping[str, np.ndarray], Group]:
        longest = int(group.extent.max())
        if segment.index == 0:
            inputs = {
                name: np.ascontiguousarray(buffers[name][group.rows, :longest])
                for name in segment.input_names
                if name in buffers
            }
        else:
            inputs = {name: buffers[name] for name in CARRIED if name in segment.input_names}
            inputs["rows"], inputs["positions"] = group.rows, np.arange(longest)
        length, extent = group.length, group.extent
        for layer in segment.prune_layers:
            if not segment.prunes_by_threshold:
                length = extent = count_kept(point.keep_ratio_at(layer), length)
            setting = LayerSetting(layer, length, int(length.max()), point.token_threshold_at(layer))
            inputs.update(fill_inputs(segment.input_names, setting))
        outputs = self.engines[segment.index](inputs)
        if segment.prunes_by_threshold:
            length = extent = np.array(outputs[f"kept_{segment.prune_layers[-1]}"])
        return outputs, Group(np.arange(len(group.order)), group.order, length, extent)

    def _check_point(self, point: OperatingPoint) -> None:
        exits = (() if self.first_exit is None else (BEFORE,)) + tuple(s.exit_layer for s in self.segments)
        prunes = tuple(layer for segment in self.segments for layer in segment.prune_layers)
        if not set(point.exit_layers) <= set(exits) or not set(point.prune_layers) <= set(prunes):
            raise InputError(
                f"operating point with exits {point.exit_layers} and prunes {point.prune_layers}: the engines have "
                f"exits {exits} and prunes {prunes}; pick one of .operating_points or optimize again"
            )
        by_threshold = any(segment.prunes_by_threshold for segment in self.segments)
        if point.prune_layers and by_threshold != bool(point.token_thresholds):
            raise InputError(
                f"operating point with token_thresholds {point.token_thresholds}: the engines prune by "
                f"{'thresholds' if by_threshold else 'keep ratios'}; pick one of .operating_points or optimize again"
            )


def find_leaving(entropy: np.ndarray, threshold: float) -> np.ndarray:
    """Whether examples leave at an exit, (R,) bool.

    An entropy that is NaN is not sure of anything, and stays.

    Args:
        entropy: normalised, (R,); NaN where an exit says none. Not read where the threshold is outside of (0, 1].
        threshold: below which an example leaves: 0 is never, more than 1 is always.
    """
    leaving: np.ndarray = (entropy < threshold) & (threshold > 0.0) | (threshold > 1.0)
    return leaving
