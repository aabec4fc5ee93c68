"""Losses of training: distance from the original's answer, and from the label where there is one.

Shapes: B examples, C outputs of the model (classes, for a classifier of one label).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from mpcompile.contract.task import SCORE_TOLERANCE, Task


class Loss(Protocol):
    """The loss of one output, an exit's or the model's own.

    Implemented as a frozen dataclass: its repr tells one loss from another where results are stored.
    """

    def __call__(self, logits: Tensor, teacher_logits: Tensor, labels: Tensor | None) -> Tensor:
        """Cost of each example, (B,), 0 or more.

        Args:
            logits: of the output, (B, C).
            teacher_logits: of the original, (B, C).
            labels: as they were given, (B, ...); None where unknown.
        """


def find_loss(task: Task) -> Loss:
    """The loss of a kind of task."""
    if task.kind == "multi_label":
        return MultiLabelLoss()
    if task.kind == "regression":
        return ScoreLoss(task.tolerance)
    return SingleLabelLoss() if task.kind == "single_label" else VectorLoss()


@dataclass(frozen=True)
class SingleLabelLoss:
    """Distillation of classes that exclude each other (Hinton et al. 2015), and cross-entropy where labels are known.

    Attributes:
        temperature: both distributions are softened by it; the loss is scaled by its square, so that
            gradients stay as large.
        label_share: weight of the labels' cross-entropy, [0, 1]; the rest is distillation.
    """

    temperature: float = 1.0
    label_share: float = 0.3

    def __call__(self, logits: Tensor, teacher_logits: Tensor, labels: Tensor | None) -> Tensor:
        """KL divergence from the original's distribution, mixed with the labels' cross-entropy: (B,)."""
        ours = torch.log_softmax(logits / self.temperature, dim=-1)
        theirs = torch.log_softmax(teacher_logits / self.temperature, dim=-1)
        distilled = (theirs.exp() * (theirs - ours)).sum(-1) * self.temperature**2
        if labels is None:
            return distilled
        hard = functional.cross_entropy(logits, labels, reduction="none")
        return self.label_share * hard + (1.0 - self.label_share) * distilled


@dataclass(frozen=True)
class MultiLabelLoss:
    """Binary cross-entropy per label against the original's probabilities, and against the labels where known.

    Attributes:
        label_share: weight of the labels, [0, 1]; the rest is distillation.
    """

    label_share: float = 0.3

    def __call__(self, logits: Tensor, teacher_logits: Tensor, labels: Tensor | None) -> Tensor:
        """Mean over labels: (B,)."""
        targets = torch.sigmoid(teacher_logits)
        if labels is not None:
            targets = self.label_share * labels.to(targets.dtype) + (1.0 - self.label_share) * targets
        return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)


@dataclass(frozen=True)
class ScoreLoss:
    """Squared distance from the original's scores, in its standard deviations; labels are not needed.

    Attributes:
        tolerance: of the task, which is `SCORE_TOLERANCE` standard deviations of each score.
    """

    tolerance: tuple[float, ...]

    def __call__(self, logits: Tensor, teacher_logits: Tensor, labels: Tensor | None) -> Tensor:
        """Mean over scores: (B,)."""
        scale = logits.new_tensor(self.tolerance) / SCORE_TOLERANCE
        return ((logits - teacher_logits) / scale).square().mean(1)


@dataclass(frozen=True)
class VectorLoss:
    """One minus the cosine with the original's vector."""

    def __call__(self, logits: Tensor, teacher_logits: Tensor, labels: Tensor | None) -> Tensor:
        """In [0, 2]: (B,)."""
        return 1.0 - functional.cosine_similarity(logits, teacher_logits, dim=-1)
