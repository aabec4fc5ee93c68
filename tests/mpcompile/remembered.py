"""Capture and the count of work, remembered: they take most of the time of `optimize` on a tiny model."""

import copy

from transformers import PreTrainedModel

from mpcompile.compile.original import Original
from mpcompile.cost.work import GraphWork, estimate_work
from mpcompile.graph.capture import CapturedModel, capture


class Remembered:
    """`capture` and `estimate_work` as `optimize` calls them, each done once for models that are alike."""

    def __init__(self) -> None:
        self._captured: dict[tuple[object, ...], CapturedModel] = {}
        self._works: dict[tuple[object, ...], GraphWork] = {}

    def capture(self, model: PreTrainedModel, *options: object) -> CapturedModel:
        """A copy of what `capture` makes of a model with these weights and this config."""
        key = (Original(model, None, "").digest(), model.dtype, *options)
        if key not in self._captured:
            self._captured[key] = capture(model, *options)
        return copy.deepcopy(self._captured[key])

    def estimate_work(self, captured: CapturedModel, backend: str) -> GraphWork:
        """What `estimate_work` counts in a graph of this code and these shapes."""
        shapes = [(name, value.shape) for name, value in captured.graph_module.state_dict().items()]
        key = (backend, captured.graph_module.code, str(shapes), captured.num_labels, captured.max_length)
        if key not in self._works:
            self._works[key] = estimate_work(captured, backend)
        return self._works[key]
