"""Keeps what every exit answers to each text that runs so far, whether it leaves there or not. Imports no torch.

Points that prune alike differ in nothing but in who leaves where: one run answers for all of them.

Shapes: N texts, K exits of the chain, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpcompile.contract.operating_point import BEFORE, OperatingPoint
from mpcompile.runtime.runtime import Group, RunResult, Runtime, find_leaving
from mpcompile.runtime.tokens import TokenIds, Tokenizer, batches_by_length

BATCH_SIZE = 32


@dataclass(frozen=True)
class ExitLog:
    """Answers of a chain of engines at each of its exits, to texts that run at one of its points.

    Attributes:
        exit_layers: of the chain, (K,).
        logits: fp32, K of (N, C).
        entropy: normalised, fp32, (K, N); NaN where an engine says none, as at the last exit.
        reached: whether the text ran that far, (K, N) bool.
    """

    exit_layers: tuple[int, ...]
    logits: tuple[np.ndarray, ...]
    entropy: np.ndarray
    reached: np.ndarray

    def answer(self, point: OperatingPoint) -> tuple[np.ndarray, np.ndarray]:
        """Logits of a point that prunes as the one that ran, (N, C), and where they are known, (N,) bool.

        They are not known of a text that left earlier than it would at this point.
        """
        undecided = np.ones(self.reached.shape[1], bool)
        known = np.zeros_like(undecided)
        logits = np.zeros_like(self.logits[-1])
        for k, exit_layer in enumerate(self.exit_layers):
            leaving = undecided & find_leaving(self.entropy[k], point.threshold_at(exit_layer))
            undecided &= ~leaving & self.reached[k]
            leaving &= self.reached[k]
            logits[leaving], known[leaving] = self.logits[k][leaving], True
        return logits, known


class LoggingRuntime(Runtime):
    """A runtime on the engines of another one that keeps what its exits answer.

    Args:
        runtime: whose engines run.
        widths: logits of each segment, None for as many as the model has.
    """

    def __init__(self, runtime: Runtime, widths: Sequence[int] | None = None) -> None:
        chain = (runtime.segments, runtime.engines, runtime.num_labels, runtime.split_tokens)
        super().__init__(*chain, runtime.first_exit)
        before = () if self.first_exit is None else (BEFORE,)
        self._exit_layers = before + tuple(segment.exit_layer for segment in self.segments)
        self._widths = tuple(widths or [runtime.num_labels] * len(self._exit_layers))
        self._log = self._open(0)
        self._texts = np.empty(0, np.int64)

    def log_texts(
        self,
        tokenizer: Tokenizer,
        encoded: Sequence[TokenIds],
        point: OperatingPoint,
        on_batch: Callable[[float], None] = lambda _: None,
    ) -> ExitLog:
        """Runs texts at a point.

        Args:
            tokenizer: pads the batches.
            encoded: N texts.
            point: of the runtime.
            on_batch: called after each batch with the share of texts done.
        """
        self._log, done = self._open(len(encoded)), 0
        for batch in batches_by_length([len(tokens) for tokens in encoded], BATCH_SIZE):
            self._texts = np.asarray(batch)
            inputs = tokenizer.pad([encoded[i] for i in batch])
            if self.first_exit is not None and BEFORE not in point.exit_layers:  # faster points may leave there
                self._keep(BEFORE, self._texts, self.first_exit(inputs))
            self.run(inputs, point)
            done += len(batch)
            on_batch(done / len(encoded))
        return self._log

    def _open(self, num_texts: int) -> ExitLog:
        shape = (len(self._exit_layers), num_texts)
        return ExitLog(
            self._exit_layers,
            tuple(np.zeros((num_texts, width), np.float32) for width in self._widths),
            np.full(shape, np.nan, np.float32),
            np.zeros(shape, bool),
        )

    def _answer(
        self, exit_layer: int, outputs: Mapping[str, np.ndarray], leaving: np.ndarray, group: Group, result: RunResult
    ) -> None:
        super()._answer(exit_layer, outputs, leaving, group, result)
        self._keep(exit_layer, self._texts[group.order], outputs)

    def _keep(self, exit_layer: int, texts: np.ndarray, outputs: Mapping[str, np.ndarray]) -> None:
        k = self._exit_layers.index(exit_layer)
        self._log.logits[k][texts], self._log.reached[k, texts] = outputs["logits"], True
        if "entropy" in outputs:
            self._log.entropy[k, texts] = outputs["entropy"]
