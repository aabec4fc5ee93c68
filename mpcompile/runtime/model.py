"""The compiled model, called like the model that it replaces. Imports no torch."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpcompile.contract.front import MeasuredPoint, check_target, choose_point
from mpcompile.contract.task import Task
from mpcompile.errors import DataError, SettingError
from mpcompile.report.report import Report
from mpcompile.runtime.answer import answer_texts
from mpcompile.runtime.predictions import Fields, Predictions, read_predictions
from mpcompile.runtime.requests import ModelSignature, check_request
from mpcompile.runtime.runtime import Runner, RunResult
from mpcompile.runtime.tokens import Tokenizer

logger = logging.getLogger(__name__)

_IN_EACH_PROCESS = (
    "engines belong to the process that loaded them. Call .save(folder) once and mpcompile.load(folder) in each "
    "process, of a pool in its initializer"
)


@dataclass(frozen=True)
class ClassifierOutput(Fields):
    """Answers in the order asked; torch tensors where the request was torch.

    Attributes:
        logits: (B, C); of a model of vectors, these.
        exit_layer: encoder layers that each example ran, (B,).
        tokens_kept: tokens that each example had left when it was answered, (B,).
    """

    logits: Any
    exit_layer: Any
    tokens_kept: Any


class OptimizedModel:
    """A model that does less work per input.

    Made by `mpcompile.optimize` and `mpcompile.load`. Calls from several threads are answered one by one. Engines
    belong to the process that loaded them: pickling, copying and calling it in a forked process raise SettingError.

    Args:
        runtime: engines and what runs them.
        signature: what requests must fit.
        report: how it was made, with the front.
        tokenizer: tokenizes texts, None when no tokenizer was known.
        directory: the artifact that it was read from or written to.
    """

    def __init__(
        self,
        runtime: Runner,
        signature: ModelSignature,
        report: Report,
        tokenizer: Tokenizer | None,
        directory: Path,
    ) -> None:
        self.runtime = runtime
        self._signature = signature
        self.tokenizer = tokenizer
        self._directory = directory
        self.report = report
        self._current = report.chosen
        self._process = os.getpid()

    @property
    def operating_points(self) -> tuple[MeasuredPoint, ...]:
        """The front: points that `set_speedup` picks from."""
        return self.report.operating_points

    @property
    def operating_point(self) -> MeasuredPoint:
        """The point in use."""
        return self.operating_points[self._current]

    @property
    def id2label(self) -> dict[int, str]:
        """Class names by id."""
        return dict(self._signature.id2label)

    @property
    def task(self) -> Task:
        """The task: what the outputs mean."""
        return self._signature.task

    def set_speedup(self, target_speedup: float) -> MeasuredPoint:
        """Changes to another point of the front; nothing is rebuilt.

        Args:
            target_speedup: the least lossy point that is at least this fast is taken.

        Returns:
            The point now in use; the closest one, with a warning, when none is that fast.

        Raises:
            SettingError: when the target is not a finite number from 1 to 100.
        """
        choice = choose_point(self.operating_points, check_target(target_speedup))
        if choice.warning:
            logger.warning(choice.warning)
        self._current = choice.index
        if self.operating_point.certified is False:
            logger.warning(
                "set_speedup(%g): the point of %.2fx is not certified to lose at most %g; certified are %s",
                target_speedup,
                self.operating_point.speedup,
                self.report.max_drop,
                ", ".join(f"{point.speedup:.2f}x" for point in self.operating_points if point.certified) or "none",
            )
        return self.operating_point

    def __call__(
        self, input_ids: Any = None, attention_mask: Any = None, token_type_ids: Any = None
    ) -> ClassifierOutput:
        """Answers a tokenized batch.

        Args:
            input_ids: (B, S), tensor, array or nested list.
            attention_mask: (B, S), 1 at tokens; None is all ones.
            token_type_ids: (B, S); None is all zeros.

        Raises:
            InputError: when something does not fit the model.
        """
        request = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        result = self._run(check_request(self._signature, request))
        if hasattr(input_ids, "detach"):
            torch = sys.modules["torch"]  # which made the tensor: a deployed model does not import it
            return ClassifierOutput(
                *(torch.from_numpy(v) for v in (result.logits, result.exit_layer, result.tokens_kept))
            )
        return ClassifierOutput(result.logits, result.exit_layer, result.tokens_kept)

    def predict(
        self, texts: Sequence[str | tuple[str, str]], text_pairs: Sequence[str] | None = None, batch_size: int = 32
    ) -> Predictions:
        """Answers texts, or pairs of texts, in the order given.

        A `Prediction` each: label, score and exit_layer. Where several labels may hold a `MultiLabelPrediction`:
        labels and scores of those over 0.5. Of a regression a `ScorePrediction`: score.

        Args:
            texts: strings, or pairs of strings; longer ones than the model reads are truncated.
            text_pairs: second text of each, instead of pairs in `texts`.
            batch_size: examples that run together; texts of alike lengths share a batch.

        Raises:
            SettingError: when no tokenizer is known, or the answers are vectors, see `encode`.
            DataError: when there are no texts or something is not a string.
        """
        if self.task.kind == "embedding":
            raise SettingError("predict: this model gives vectors; call .encode(texts)")
        logits, exit_layer = self.classify(texts, text_pairs, batch_size)
        return read_predictions(self.task, self._signature.id2label, logits, exit_layer)

    def encode(
        self, texts: Sequence[str | tuple[str, str]], text_pairs: Sequence[str] | None = None, batch_size: int = 32
    ) -> np.ndarray:
        """Vectors (N, D) fp32 of texts, in the order given; of unit length where the original's are. See `predict`.

        Raises:
            SettingError: when no tokenizer is known, or the answers are no vectors.
            DataError: when there are no texts or something is not a string.
        """
        if self.task.kind != "embedding":
            raise SettingError(f"encode: this model is {self.task.describe_kind()}; call .predict(texts)")
        return self.classify(texts, text_pairs, batch_size)[0]

    def classify(
        self, texts: Sequence[str | tuple[str, str]], text_pairs: Sequence[str] | None = None, batch_size: int = 32
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logits (N, C) and exit layers (N,) of texts, in the order given; see `predict`."""
        if self.tokenizer is None:
            raise SettingError(
                "predict: no tokenizer is known; give optimize(..., tokenizer=...) or call the model on ids"
            )
        if isinstance(texts, str):
            raise DataError("texts: a single string; a list of strings is expected: predict([text])")
        if batch_size < 1:
            raise SettingError(f"batch_size: {batch_size}; a whole number from 1 is expected")
        texts, text_pairs = _unzip(list(texts), text_pairs)
        if not texts:
            raise DataError("texts: empty; at least one text is expected")
        self._check_process()
        encoded = self.tokenizer.encode(texts, text_pairs)
        result = answer_texts(self.runtime, self.operating_point.point, self.tokenizer, encoded, batch_size)
        return result.logits, result.exit_layer

    def save(self, directory: str | Path) -> Path:
        """Writes the artifact: whole or not at all.

        Args:
            directory: made, or replaced when it holds an artifact already.

        Raises:
            ArtifactError: when something else is there, or it cannot be written.
        """
        from mpcompile.runtime.artifact import copy_files
        from mpcompile.runtime.directories import replace_directory

        target = Path(directory)
        with replace_directory(target) as temporary:
            copy_files(self._directory, temporary)
        return target

    def __reduce__(self) -> Any:
        raise SettingError(f"{type(self).__name__}: cannot be pickled or copied: {_IN_EACH_PROCESS}")

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise SettingError(
                f"{type(self).__name__}: was loaded in process {self._process} and is called in {os.getpid()}, which "
                f"was forked from it and has none of its threads: {_IN_EACH_PROCESS}"
            )

    def _run(self, inputs: dict[str, np.ndarray]) -> RunResult:
        self._check_process()
        return self.runtime.run(inputs, self.operating_point.point)

    def __repr__(self) -> str:
        return f"OptimizedModel({self.operating_point.describe()})"


def _unzip(texts: list[Any], text_pairs: Sequence[str] | None) -> tuple[list[str], list[str] | None]:
    if text_pairs is not None:
        if len(text_pairs) != len(texts):
            raise DataError(f"text_pairs: {len(text_pairs)} given for {len(texts)} texts; one each is expected")
        return texts, list(text_pairs)
    if texts and all(isinstance(text, tuple | list) and len(text) == 2 for text in texts):
        return [text[0] for text in texts], [text[1] for text in texts]
    return texts, None
