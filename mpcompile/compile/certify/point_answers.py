"""Answers of operating points to texts that nothing was chosen on; points that prune alike share one run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np

from mpcompile.compile.certify.drop import Counts
from mpcompile.compile.exit_log import ExitLog, LoggingRuntime
from mpcompile.compile.job import Job
from mpcompile.compile.texts.parts import TextPart
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.errors import BackendError
from mpcompile.progress import Stage
from mpcompile.runtime.runtime import Runner, Runtime


class PointAnswers:
    """Runs the points of a front on some texts when they are asked for.

    Args:
        job: draws the stages.
        runtime: the engines.
        points: of the front.
        part: texts, with the original's answers.
        name: what stages and errors call the texts.
    """

    def __init__(
        self, job: Job, runtime: Runner, points: Sequence[OperatingPoint], part: TextPart, name: str = "held-out texts"
    ) -> None:
        self._job = job
        self._runtime = runtime
        self._points = tuple(points)
        self._logits: dict[int, np.ndarray] = {}
        self._logs: dict[tuple[tuple[float, float], ...], ExitLog] = {}
        self.part = part
        self.name = name

    @property
    def num_asked(self) -> int:
        """Of how many points answers were asked."""
        return len(self._logits)

    def logits(self, index: int) -> np.ndarray:
        """Logits of a point, (N, C).

        Raises:
            BackendError: when the engines answer NaN where the original does not.
        """
        if index not in self._logits:
            point = self._points[index]
            logits = self._find(point)
            _refuse_nan(logits, self.part, point, self.name)
            self._logits[index] = logits
        return self._logits[index]

    def _find(self, point: OperatingPoint) -> np.ndarray:
        """Logits from an earlier run of a point that prunes alike, else from a run of this one."""
        if not isinstance(self._runtime, Runtime):
            with self._stage() as stage:
                return self.part.answer(self._runtime, point, stage).logits
        prunes = [layer for segment in self._runtime.segments for layer in segment.prune_layers]
        keeps = tuple((point.keep_ratio_at(layer), point.token_threshold_at(layer)) for layer in prunes)
        if keeps in self._logs:
            logits, known = self._logs[keeps].answer(point)
            if known.all():
                return logits
        with self._stage() as stage:
            self._logs[keeps] = LoggingRuntime(self._runtime).log_texts(
                self.part.tokenizer, self.part.encoded, point, stage
            )
        return self._logs[keeps].answer(point)[0]

    def _stage(self) -> AbstractContextManager[Stage]:
        return self._job.progress.stage(f"answers of the result ({self.name})")

    def loss(self, index: int) -> np.ndarray:
        """Whether a point errs, (N,) bool."""
        return self.part.task.differs(self.part.task.answers(self.logits(index)), self.part.truth)

    @property
    def original_loss(self) -> np.ndarray | None:
        """Whether the original errs, (N,) bool; None where it is its own measure."""
        return self.part.original_loss if self.part.has_accuracy else None

    def count(self, index: int) -> Counts:
        """Texts on which a point and the original differ."""
        return Counts.of(self.loss(index), self.original_loss)


def _refuse_nan(logits: np.ndarray, part: TextPart, point: OperatingPoint, name: str) -> None:
    assert part.original is not None
    overflows = int((np.isnan(logits).any(1) & ~np.isnan(part.original).any(1)).sum())
    if overflows:
        raise BackendError(
            f"precision {point.precision!r}: the engines answer {overflows} of {len(logits)} {name} with NaN and the "
            "original does not: they overflow; choose another precision, such as 'f32'"
        )
