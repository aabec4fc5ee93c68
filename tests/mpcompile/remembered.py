"""Capture, remembered: torch.export takes most of the time of `optimize` on a tiny model."""

import copy

from transformers import PreTrainedModel

from mpcompile.compile.original import Original
from mpcompile.graph.capture import CapturedModel, capture


class Remembered:
    """`capture` as `optimize` calls it, done once for models that are alike."""

    def __init__(self) -> None:
        self._captured: dict[tuple[object, ...], CapturedModel] = {}

    def capture(self, model: PreTrainedModel, *options: object) -> CapturedModel:
        """A copy of what `capture` makes of a model with these weights and this config."""
        key = (Original(model, None, "").digest(), model.dtype, *options)
        if key not in self._captured:
            self._captured[key] = copy.deepcopy(capture(model, *options))  # what it makes shares the model's weights
        return copy.deepcopy(self._captured[key])
