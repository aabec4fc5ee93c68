"""Answers to held-out texts at every exit: all that a search needs to know of a model.

Shapes: N texts, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpcompile.compile.choose.schedules import KeepSchedule
from mpcompile.contract.task import Task


@dataclass(frozen=True)
class HeldOut:
    """Answers to held-out texts at every exit under one schedule.

    Attributes:
        schedule: its keep ratios.
        entropy: by exit layer, normalised, (N,).
        answer: by exit layer, see `Task.answers`, (N, ...).
    """

    schedule: KeepSchedule
    entropy: Mapping[int, np.ndarray]
    answer: Mapping[int, np.ndarray]

    @classmethod
    def from_logits(cls, schedule: KeepSchedule, logits: Mapping[int, np.ndarray], task: Task) -> HeldOut:
        """Entropies and answers of logits (N, C) by exit layer."""
        return cls(
            schedule,
            {layer: task.entropy(values) for layer, values in logits.items()},
            {layer: task.answers(values) for layer, values in logits.items()},
        )

    def take(self, index: np.ndarray) -> HeldOut:
        """The texts at some positions."""
        entropy = {layer: values[index] for layer, values in self.entropy.items()}
        return HeldOut(self.schedule, entropy, {layer: values[index] for layer, values in self.answer.items()})

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Named arrays, for the store."""
        entropy = {f"entropy_{layer}": values for layer, values in self.entropy.items()}
        return {**entropy, **{f"answer_{layer}": values for layer, values in self.answer.items()}}

    @classmethod
    def from_arrays(cls, schedule: KeepSchedule, arrays: Mapping[str, np.ndarray]) -> HeldOut:
        """The answers that `to_arrays` named."""

        def by_layer(prefix: str) -> dict[int, np.ndarray]:
            return {int(k.removeprefix(prefix)): v for k, v in arrays.items() if k.startswith(prefix)}

        return cls(schedule, by_layer("entropy_"), by_layer("answer_"))


def join_held_out(parts: Sequence[HeldOut]) -> HeldOut:
    """Answers of several parts of the texts, one after another; all under one schedule."""
    layers = parts[0].entropy
    return HeldOut(
        parts[0].schedule,
        {layer: np.concatenate([part.entropy[layer] for part in parts]) for layer in layers},
        {layer: np.concatenate([part.answer[layer] for part in parts]) for layer in layers},
    )
