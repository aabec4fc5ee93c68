"""What training is given: where it starts, the texts that it learns from, and its settings.

Shapes: N texts, C outputs of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpcompile.graph.capture import CapturedModel
from mpcompile.runtime.tokens import TokenIds, Tokenizer
from passes import ExitHead


@dataclass(frozen=True)
class ElasticSettings:
    """Settings of training.

    The defaults are those that training was tried with; they were not compared with others.

    Attributes:
        max_epochs: passes over the texts.
        max_seconds: time that training may take; None for no limit. The learning rate has decayed when it is up.
        batch_size: texts of a step.
        learning_rate: highest learning rate of the backbone.
        head_learning_rate: highest learning rate of the exit heads.
        weight_decay: weight decay of matrices.
        warmup_share: share of the run in which learning rates rise from 0; after it they fall to 0, both linearly.
        unpruned_share: share of the steps that keep every token.
        min_kept: lowest share of tokens left after the last pruning layer.
        exit_weight_power: an exit after n layers has the weight (n + 1) to this power in the loss; 0 weighs all alike.
        steps_per_evaluation: steps between two looks at the validation texts.
        patience: evaluations without improvement after which training stops.
        seconds_per_checkpoint: at most this much work is lost when a run is killed.
        seed: of everything random.
    """

    max_epochs: int = 10
    max_seconds: float | None = None
    batch_size: int = 32
    learning_rate: float = 5e-5
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_share: float = 0.06
    unpruned_share: float = 0.25
    min_kept: float = 0.05
    exit_weight_power: float = 1.0
    steps_per_evaluation: int = 100
    patience: int = 4
    seconds_per_checkpoint: float = 120.0
    seed: int = 0


@dataclass(frozen=True)
class TaughtTexts:
    """Texts, and what the original answers on them.

    Attributes:
        encoded: tokens of each.
        teacher_logits: (N, C).
        labels: as the loss takes them, (N, ...); None when unknown.
    """

    encoded: Sequence[TokenIds]
    teacher_logits: np.ndarray
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.encoded)


@dataclass(frozen=True)
class Start:
    """What training starts from; left as it is.

    Attributes:
        captured: the model.
        heads: exit heads by exit layer; best trained on frozen features first.
        prune_layers: layers that prune.
    """

    captured: CapturedModel
    heads: Mapping[int, ExitHead]
    prune_layers: tuple[int, ...]


@dataclass(frozen=True)
class Lesson:
    """Texts to learn from and to stop by.

    Attributes:
        training: texts to learn from; labels are used when given.
        validation: texts that are never learned from, for early stopping.
        tokenizer: pads the texts.
    """

    training: TaughtTexts
    validation: TaughtTexts
    tokenizer: Tokenizer
