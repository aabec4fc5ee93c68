"""Answers to texts as people read them: objects, words and rows of a CSV file. Imports no torch.

Shapes: N texts, C outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpcompile.contract.task import SEPARATOR, Task


class Fields:
    """Attributes that are also read like a Hugging Face output or pipeline result: `x["name"]`."""

    def __getitem__(self, key: str | int) -> Any:
        return list(vars(self).values())[key] if isinstance(key, int) else getattr(self, key)

    def keys(self) -> Iterator[str]:
        """Names of the fields."""
        return iter(vars(self))


@dataclass(frozen=True)
class Prediction(Fields):
    """Answer to one text: a class.

    Attributes:
        label: class name.
        score: the probability of the class.
        exit_layer: encoder layers run, -1 where the text was answered before the model.
    """

    label: str
    score: float
    exit_layer: int


@dataclass(frozen=True)
class MultiLabelPrediction(Fields):
    """Answer to one text: the labels that hold, as their probability is over 0.5, likeliest first; maybe none.

    Attributes:
        labels: their names.
        scores: their probabilities.
        exit_layer: encoder layers run, -1 where the text was answered before the model.
    """

    labels: tuple[str, ...]
    scores: tuple[float, ...]
    exit_layer: int


@dataclass(frozen=True)
class ScorePrediction(Fields):
    """Answer to one text: a score.

    Attributes:
        score: as the model gives it; a tuple where it gives several.
        exit_layer: encoder layers run, -1 where the text was answered before the model.
    """

    score: float | tuple[float, ...]
    exit_layer: int


Predictions = list[Prediction] | list[MultiLabelPrediction] | list[ScorePrediction]


def read_predictions(
    task: Task, id2label: Mapping[int, str], logits: np.ndarray, exit_layer: np.ndarray
) -> Predictions:
    """Predictions from logits (N, C), in the order given; the task is no embedding."""
    layers = [int(layer) for layer in exit_layer]
    if task.kind == "regression":
        rows = task.answers(logits).tolist()
        return [ScorePrediction(tuple(s) if isinstance(s, list) else s, k) for s, k in zip(rows, layers, strict=True)]
    if task.kind == "multi_label":
        probability = np.exp(-np.logaddexp(0.0, -logits.astype(np.float64)))
        return [_read_set(row, id2label, layer) for row, layer in zip(probability, layers, strict=True)]
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    probability = shifted / shifted.sum(1, keepdims=True)
    return [
        Prediction(id2label[int(k)], float(row[k]), layer)
        for row, k, layer in zip(probability, task.answers(probability), layers, strict=True)
    ]


def _read_set(probability: np.ndarray, id2label: Mapping[int, str], exit_layer: int) -> MultiLabelPrediction:
    holding = [int(i) for i in np.argsort(-probability, kind="stable") if probability[i] > 0.5]
    return MultiLabelPrediction(
        tuple(id2label[i] for i in holding), tuple(float(probability[i]) for i in holding), exit_layer
    )


def describe_answers(task: Task, id2label: Mapping[int, str], answers: np.ndarray) -> list[str]:
    """Answers (N, ...), see `Task.answers`, in words."""
    if task.kind == "single_label":
        return [id2label[int(k)] for k in answers]
    if task.kind == "multi_label":
        return [", ".join(id2label[int(i)] for i in np.flatnonzero(row)) or "no label" for row in answers]
    if task.kind == "regression":
        return [" ".join(f"{score:.3f}" for score in np.atleast_1d(row)) for row in answers]
    return ["a vector"] * len(answers)


def tabulate_predictions(predictions: Predictions, id2label: Mapping[int, str]) -> list[Sequence[object]]:
    """A header and a row per text: label, score and exit_layer.

    The labels of a text, and their scores, stand in one cell with `;` between them, as they are read as labels, too;
    several scores have a column each, by their names.
    """
    header: list[object] = ["label", "score", "exit_layer"]
    first = predictions[0]
    if isinstance(first, ScorePrediction):
        several = isinstance(first.score, tuple)
        header = [f"score_{name}" for _, name in sorted(id2label.items())] if several else ["score"]
    return [header, *map(_tabulate, predictions)]


def _tabulate(prediction: Prediction | MultiLabelPrediction | ScorePrediction) -> Sequence[object]:
    if isinstance(prediction, ScorePrediction):
        return [f"{score:.6f}" for score in np.atleast_1d(prediction.score)]
    if isinstance(prediction, MultiLabelPrediction):
        scores = SEPARATOR.join(f"{score:.6f}" for score in prediction.scores)
        return [SEPARATOR.join(prediction.labels), scores, prediction.exit_layer]
    return [prediction.label, f"{prediction.score:.6f}", prediction.exit_layer]


def tabulate_vectors(vectors: np.ndarray) -> list[Sequence[object]]:
    """A header and a row per text: one column per dimension."""
    return [[f"vector_{i}" for i in range(vectors.shape[1])], *([f"{x:.7g}" for x in row] for row in vectors)]
