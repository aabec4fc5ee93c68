"""What an answer costs in training: its distance from the original's answer, and from the label where there is one.

Shapes: B examples, C outputs of the model (classes, for a classifier of one label).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Loss(Protocol):
    """What one output, an exit's or the model's own, costs.

    Implemented as a frozen dataclass: its repr tells one loss from another where results are stored.
    """

    def __call__(self, logits: Tensor, teacher_logits: Tensor, labels: Tensor | None) -> Tensor:
        """Cost of each example, (B,), 0 or more.

        Args:
            logits: of the output, (B, C).
            teacher_logits: of the original, (B, C).
            labels: as they were given, (B, ...); None where unknown.
        """


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
