"""What a model answers, and when two answers differ. Imports no torch.

Shapes: N texts, C outputs (classes, labels, scores or dimensions of a vector).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

KINDS = ("single_label", "multi_label", "regression", "embedding")
SCORE_TOLERANCE = 0.1
"""Standard deviations of the original's scores that a score may be off and still count as the same: a choice of
ours, half of what Cohen (1988) calls a small effect."""
SEPARATOR = ";"
"""Between the labels of a text where they stand in one string, as in a CSV cell."""
LEAST_COSINE = 0.98
"""Cosine from which a vector counts as the same: a choice of ours; the angle is 11.5 degrees."""


@dataclass(frozen=True)
class Task:
    """The task of a model: what its outputs mean.

    Search, certificate and report all compare answers by `differs`, a 0/1 loss per text.

    Attributes:
        kind: one of `KINDS`; a model of one logit is a regression whatever its config calls it.
        num_outputs: C.
        tolerance: of a regression, how far off each score may be, (C,); empty until `calibrated`.
    """

    kind: str
    num_outputs: int
    tolerance: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind

    @property
    def has_classes(self) -> bool:
        """Whether answers are classes, which labels can be right or wrong about; else the original is the measure."""
        return self.kind in ("single_label", "multi_label")

    @property
    def has_exits(self) -> bool:
        """Whether there is an entropy that says how sure an early answer is."""
        return self.has_classes

    def answers(self, logits: np.ndarray) -> np.ndarray:
        """Answers from logits (N, C).

        Returns:
            Class ids (N,); whether each label holds, (N, C) bool (its probability is over 0.5); scores (N,), or (N, C)
            where there are several; unit vectors (N, C).
        """
        if self.kind == "single_label":
            ids: np.ndarray = logits.argmax(1)
            return ids
        if self.kind == "multi_label":
            return logits > 0.0
        if self.kind == "regression":
            return logits[:, 0] if self.num_outputs == 1 else logits
        return _normalise(logits)

    def differs(self, answers: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Which answers are not the right ones, (N,) bool.

        A class is another one; any label of the set is (subset accuracy, as scikit-learn's `accuracy_score`); any
        score is off by more than the tolerance; the cosine with the right vector is below `LEAST_COSINE`.

        Args:
            answers: as `answers` gives them.
            truth: answers of the original, in the same form; classes and label sets may also be labels. A regression
                that was not calibrated takes its tolerance from these.
        """
        if self.kind == "single_label":
            wrong: np.ndarray = answers != truth
        elif self.kind == "multi_label":
            wrong = (answers != truth).any(1)
        elif self.kind == "regression":
            tolerance = self.tolerance or self.calibrated(truth).tolerance
            wrong = (np.abs(_columns(answers) - _columns(truth)) > np.array(tolerance)).any(1)
        else:
            wrong = cosines(answers, truth) < LEAST_COSINE
        return wrong

    def calibrated(self, scores: np.ndarray) -> Task:
        """The task with the tolerance that the original's scores on some texts give; other kinds need none.

        Args:
            scores: (N,) or (N, C), of the texts that points are chosen on, so that the loss on others does not
                depend on what was drawn.
        """
        if self.kind != "regression":
            return self
        columns = _columns(scores).astype(np.float64)
        rounding = 1e-5 * np.abs(columns).max(0)  # all scores may be alike
        tolerance = np.maximum(SCORE_TOLERANCE * columns.std(0), rounding)
        return dataclasses.replace(self, tolerance=tuple(float(value) for value in tolerance))

    def entropy(self, logits: np.ndarray) -> np.ndarray:
        """How unsure logits (N, C) are, (N,), 0 is certain and 1 knows nothing; as `passes.ops` has it in the graph.

        One class of several: H(p) / ln C. Independent labels: the largest binary entropy over ln 2, so that a text is
        as unsure as its least sure label. Without classes nothing is known: 1.
        """
        values = logits.astype(np.float64)
        if self.kind == "single_label":
            log_p = values - np.logaddexp.reduce(values, axis=1, keepdims=True)
            entropy: np.ndarray = -(np.exp(log_p) * log_p).sum(1) / math.log(values.shape[1])
            return entropy
        if self.kind == "multi_label":
            distance = np.abs(values)
            rarer = np.exp(-distance) / (1.0 + np.exp(-distance))
            binary: np.ndarray = (np.log1p(np.exp(-distance)) + distance * rarer).max(1) / math.log(2.0)
            return binary
        return np.ones(len(values))

    def describe_agreement(self) -> str:
        """Words for a share of texts that are answered as the original does, to follow the number."""
        if self.kind == "regression":
            return f"scored as the original (within {SCORE_TOLERANCE:g} of its standard deviation)"
        if self.kind == "embedding":
            return f"embedded as the original (cosine of at least {LEAST_COSINE:g})"
        return "answered as the original"

    def describe_kind(self) -> str:
        """The kind of model in words, such as "a classifier"."""
        names = {"single_label": "a classifier", "multi_label": "a classifier of several labels at once"}
        return {**names, "regression": "a regression", "embedding": "a model of vectors"}[self.kind]

    def explain_no_exits(self) -> str:
        """Why a report has no exits, for tasks without classes."""
        return f"exits were left out: {self.describe_kind()} has no classes"

    def describe_outputs(self) -> str:
        """Number and kind of the outputs, such as "4 classes"."""
        if self.kind == "embedding":
            return f"vectors of {self.num_outputs}"
        noun = {"single_label": "classes", "multi_label": "labels"}.get(self.kind, "scores")
        return f"{self.num_outputs} {noun if self.num_outputs != 1 else noun.removesuffix('s')}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "tolerance": list(self.tolerance)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Task:
        """The task that `to_json` described.

        Raises:
            ValueError: when its kind is not known.
        """
        if values["kind"] not in KINDS:
            raise ValueError(f"task {values['kind']!r}")
        return cls(values["kind"], int(values["num_outputs"]), tuple(values["tolerance"]))


def cosines(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Cosine of each vector (N, D) with the other one, (N,)."""
    cosine: np.ndarray = (_normalise(vectors) * _normalise(others)).sum(1)
    return cosine


def _normalise(vectors: np.ndarray) -> np.ndarray:
    unit: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def _columns(scores: np.ndarray) -> np.ndarray:
    return scores[:, None] if scores.ndim == 1 else scores
