"""Keeps what every exit answers to a text that runs so far, so that points that prune alike are answered in one run.

Shapes: N texts, K exits of the chain, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from mpcompile.compile.texts.parts import TextPart
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.segment import Segment
from mpcompile.runtime.runtime import Group, RunResult, Runtime, find_staying
from mpcompile.runtime.tokens import batches_by_length

BATCH_SIZE = 32


@dataclass(frozen=True)
class ExitLog:
    """Answers of a chain of engines at each of its exits, to texts that run at one of its points.

    Attributes:
        exit_layers: of the chain, (K,).
        logits: fp32, (K, N, C).
        entropy: normalised, fp32, (K, N); NaN where an engine says none, as at the last exit.
        reached: whether the text ran that far, (K, N) bool.
    """

    exit_layers: tuple[int, ...]
    logits: np.ndarray
    entropy: np.ndarray
    reached: np.ndarray

    def answer(self, point: OperatingPoint) -> tuple[np.ndarray, np.ndarray]:
        """Logits of a point that prunes as the one that ran, (N, C), and where they are known, (N,) bool.

        They are not known of a text that left earlier than it would at this point.
        """
        undecided = np.ones(self.reached.shape[1], bool)
        known = np.zeros_like(undecided)
        logits = np.zeros(self.logits.shape[1:], np.float32)
        for k, exit_layer in enumerate(self.exit_layers):
            leaving = undecided & ~find_staying(self.entropy[k], point.threshold_at(exit_layer))
            undecided &= ~leaving & self.reached[k]
            leaving &= self.reached[k]
            logits[leaving], known[leaving] = self.logits[k, leaving], True
        return logits, known


class LoggingRuntime(Runtime):
    """A runtime on the engines of another one that keeps what its exits answer.

    Args:
        runtime: whose engines run.
    """

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime.segments, runtime.engines, runtime.num_labels, runtime.split_tokens)
        self._exit_layers = tuple(segment.exit_layer for segment in self.segments)
        self._log = self._open(0)
        self._texts = np.empty(0, np.int64)

    def log_texts(self, part: TextPart, point: OperatingPoint, on_batch: Callable[[float], None]) -> ExitLog:
        """Runs texts at a point.

        Args:
            part: texts.
            point: of the runtime.
            on_batch: called after each batch with the share of texts done.
        """
        self._log, done = self._open(len(part.encoded)), 0
        for batch in batches_by_length([len(tokens) for tokens in part.encoded], BATCH_SIZE):
            self._texts = np.asarray(batch)
            self.run(part.pad(batch), point)
            done += len(batch)
            on_batch(done / len(part.encoded))
        return self._log

    def _open(self, num_texts: int) -> ExitLog:
        shape = (len(self._exit_layers), num_texts)
        return ExitLog(
            self._exit_layers,
            np.zeros((*shape, self.num_labels), np.float32),
            np.full(shape, np.nan, np.float32),
            np.zeros(shape, bool),
        )

    def _answer(
        self, segment: Segment, outputs: Mapping[str, np.ndarray], staying: np.ndarray, group: Group, result: RunResult
    ) -> None:
        super()._answer(segment, outputs, staying, group, result)
        texts, k = self._texts[group.order], self._exit_layers.index(segment.exit_layer)
        self._log.logits[k, texts], self._log.reached[k, texts] = outputs["logits"], True
        if "entropy" in outputs:
            self._log.entropy[k, texts] = outputs["entropy"]
