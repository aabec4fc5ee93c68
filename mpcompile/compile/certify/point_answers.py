"""Answers of operating points to texts that nothing was chosen on, each point run once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpcompile.compile.certify.drop import Counts
from mpcompile.compile.job import Job
from mpcompile.compile.texts.parts import TextPart
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.errors import BackendError
from mpcompile.runtime.runtime import Runner


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
        self.part = part
        self.name = name

    @property
    def num_asked(self) -> int:
        """How many points were run."""
        return len(self._logits)

    def logits(self, index: int) -> np.ndarray:
        """Logits of a point, (N, C).

        Raises:
            BackendError: when the engines answer NaN where the original does not.
        """
        if index not in self._logits:
            point = self._points[index]
            with self._job.progress.stage(f"answers of the result ({self.name})") as stage:
                logits = self.part.answer(self._runtime, point, stage).logits
            _refuse_nan(logits, self.part, point, self.name)
            self._logits[index] = logits
        return self._logits[index]

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
