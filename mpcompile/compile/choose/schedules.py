"""Schedules of keep ratios and off-ramps to try. Imports no torch.

Shapes: N texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpcompile.cost.forecast import Forecast
from mpcompile.errors import SettingError


@dataclass(frozen=True)
class KeepSchedule:
    """Keep ratios of the layers that may prune.

    Attributes:
        prune_layers: layers that may prune.
        keep_ratios: share of tokens that each layer keeps; with thresholds, the share that they were measured to keep.
        token_thresholds: threshold of each layer, where tokens are kept by the attention that they receive; else empty.
    """

    prune_layers: tuple[int, ...]
    keep_ratios: tuple[float, ...]
    token_thresholds: tuple[float, ...] = ()

    def pruned_layers(self) -> tuple[int, ...]:
        """Layers that do not keep everything."""
        rows = zip(self.prune_layers, self.keep_ratios, strict=True)
        return tuple(layer for layer, ratio in rows if ratio < 1.0)

    def measured(self, kept: Mapping[int, np.ndarray], lengths: np.ndarray) -> KeepSchedule:
        """This schedule with the keep ratios that its thresholds came to on texts of some lengths (N,)."""
        if not self.token_thresholds:
            return self
        before, ratios = lengths, []
        for layer in self.prune_layers:
            ratios.append(float(kept[layer].sum() / before.sum()))
            before = kept[layer]
        return dataclasses.replace(self, keep_ratios=tuple(ratios))


def keep_schedules(num_layers: int) -> tuple[tuple[int, ...], tuple[KeepSchedule, ...]]:
    """Layers that may prune, and schedules of keep ratios to try: none, uniform, and late ones.

    Up to six layers prune, evenly spread, never the first: importance is worth little there.
    """
    step = -(-num_layers // 6)
    layers = tuple(range(1, num_layers, step)) or (0,)
    uniform = [(ratio,) * len(layers) for ratio in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)]
    late = [tuple(0.5 if layer >= num_layers // 3 else 1.0 for layer in layers)]
    return layers, tuple(KeepSchedule(layers, ratios) for ratios in dict.fromkeys((*uniform, *late)))


def exit_candidates(num_layers: int) -> tuple[int, ...]:
    """Off-ramps to train heads for: every layer of the first third, then every second one."""
    dense = max(2, num_layers // 3)
    return tuple(layer for layer in range(num_layers) if layer <= dense or (layer - dense) % 2 == 0)


def list_schedules(
    num_layers: int, pruning: bool, forecast: Forecast | None, steep: Sequence[float] = ()
) -> tuple[KeepSchedule, ...]:
    """Schedules of keep ratios to try, the one that keeps everything first.

    Args:
        num_layers: of the model.
        pruning: whether any may prune.
        forecast: the user's plan, whose keep ratios are tried, too.
        steep: keep ratios of further uniform schedules.
    """
    layers, usual = keep_schedules(num_layers)
    if not pruning:
        return usual[:1]
    ratios = [(ratio,) * len(layers) for ratio in steep]
    if forecast is not None:
        ratios.append(tuple(forecast.point.keep_ratio_at(layer) for layer in layers))
    return tuple(dict.fromkeys((*usual, *(KeepSchedule(layers, row) for row in ratios))))


def check_plan(forecast: Forecast, num_layers: int) -> None:
    """Refuses a plan of a model with other layers.

    Raises:
        SettingError: when it is.
    """
    layers, _ = keep_schedules(num_layers)
    if forecast.point.exit_layers[-1] != num_layers or not set(forecast.point.prune_layers) <= set(layers):
        raise SettingError(
            f"plan: made for {forecast.model} with {forecast.point.exit_layers[-1]} encoder layers; this model has "
            f"{num_layers}: plan again for it"
        )
