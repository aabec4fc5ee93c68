"""Operating points: the settings that change what a compiled model answers. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mpcompile.errors import SettingError

BEFORE = -1
"""The exit before the model: of `exit_layers` the one at which nothing of it has run, not even its embeddings."""
MIN_KEPT = 4
"""Tokens that a text keeps at least, where it has so many: [CLS] and the separators of a pair (RoBERTa's has three)."""


@dataclass(frozen=True)
class OperatingPoint:
    """How much to prune, when to leave, and in which precision.

    Attributes:
        exit_layers: off-ramps in use, by the layers run before them, ascending, `BEFORE` for the one before the model;
            the last is unconditional.
        exit_thresholds: one per exit but the last: leave when the normalised entropy is below, [0, 1].
        prune_layers: layers that prune, ascending.
        keep_ratios: share of an example's tokens kept at each of them, (0, 1].
        precision: "f32", "bf16", "f16" or "int8".
        token_thresholds: one per layer that prunes: tokens that receive less attention are dropped there, and
            `keep_ratios` says which share that leaves on average. Empty where so many tokens are kept as
            `keep_ratios` says.

    Raises:
        SettingError: when a value is out of range or the numbers of values do not match.
    """

    exit_layers: tuple[int, ...]
    exit_thresholds: tuple[float, ...] = ()
    prune_layers: tuple[int, ...] = ()
    keep_ratios: tuple[float, ...] = ()
    precision: str = "f32"
    token_thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_ascending("exit_layers", self.exit_layers)
        _check_ascending("prune_layers", self.prune_layers)
        if len(self.exit_thresholds) != len(self.exit_layers) - 1:
            raise SettingError(
                f"exit_thresholds: {len(self.exit_thresholds)} given for exits {self.exit_layers}; expected "
                f"{len(self.exit_layers) - 1}, one for each exit but the last, which is unconditional"
            )
        if len(self.keep_ratios) != len(self.prune_layers):
            raise SettingError(
                f"keep_ratios: {len(self.keep_ratios)} given for prune_layers {self.prune_layers}; expected one each"
            )
        for i, threshold in enumerate(self.exit_thresholds):
            if not 0.0 <= threshold <= 1.0:
                raise SettingError(f"exit_thresholds[{i}]: {threshold}; a normalised entropy in [0, 1] is expected")
        for i, ratio in enumerate(self.keep_ratios):
            if not 0.0 < ratio <= 1.0:
                raise SettingError(f"keep_ratios[{i}]: {ratio}; a share of tokens in (0, 1] is expected")
        if self.token_thresholds and len(self.token_thresholds) != len(self.prune_layers):
            raise SettingError(
                f"token_thresholds: {len(self.token_thresholds)} given for prune_layers {self.prune_layers}; expected "
                "one each, or none where keep_ratios alone says what is kept"
            )
        for i, threshold in enumerate(self.token_thresholds):
            if not 0.0 <= threshold <= 1.0:
                raise SettingError(f"token_thresholds[{i}]: {threshold}; a share of attention in [0, 1] is expected")

    def threshold_at(self, exit_layer: int) -> float:
        """Entropy below which an example leaves there: 0 is never, infinity is always."""
        if exit_layer == self.exit_layers[-1]:
            return math.inf
        return dict(zip(self.exit_layers, self.exit_thresholds, strict=False)).get(exit_layer, 0.0)

    def describe_exits(self) -> str:
        """Exits in use, by the layers run before them, such as "before 0 2 12"."""
        return " ".join("before" if layer == BEFORE else str(layer) for layer in self.exit_layers)

    @property
    def ran_ratios(self) -> tuple[float, ...]:
        """Keep ratios of the layers that run before the last exit."""
        pairs = zip(self.prune_layers, self.keep_ratios, strict=True)
        return tuple(ratio for layer, ratio in pairs if layer < self.exit_layers[-1])

    @property
    def prunes(self) -> bool:
        """Whether any token is dropped before the last exit."""
        return any(ratio < 1.0 for ratio in self.ran_ratios)

    def keep_ratio_at(self, layer: int) -> float:
        """Share of tokens that a layer keeps, 1 where it does not prune."""
        return dict(zip(self.prune_layers, self.keep_ratios, strict=True)).get(layer, 1.0)

    def token_threshold_at(self, layer: int) -> float:
        """Attention below which a layer drops tokens, 0 where it drops none."""
        return dict(zip(self.prune_layers, self.token_thresholds, strict=False)).get(layer, 0.0)

    def to_json(self) -> dict[str, Any]:
        """The point as plain JSON values."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        if not self.token_thresholds:
            del values["token_thresholds"]  # earlier versions know no such field
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> OperatingPoint:
        """The point that `to_json` described."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)


def count_kept(keep_ratio: float, length: np.ndarray | np.float64) -> np.ndarray:
    """Tokens kept of `length` tokens, ceil(keep_ratio * length), at least `MIN_KEPT` of those there are."""
    length = np.asarray(length)
    # 0.07 * 100 is 7.000000000000001 in floating point; the slack keeps it 7.
    kept = np.ceil(keep_ratio * length - 1e-9).astype(np.int64)
    smallest: np.ndarray = np.maximum(kept, np.minimum(length, MIN_KEPT).astype(np.int64))
    return smallest


def mean_layers(exit_layer: np.ndarray) -> float:
    """Encoder layers that examples run on average, of where each leaves, (N,); none are run before the model."""
    return float(np.maximum(exit_layer, 0).mean())


def count_left(point: OperatingPoint, first: int, last: int, length: np.ndarray) -> np.ndarray:
    """Tokens left of `length` tokens after layers `first` to `last` (exclusive)."""
    for layer in range(first, last):
        if layer in point.prune_layers:
            length = count_kept(point.keep_ratio_at(layer), length)
    return length


def _check_ascending(name: str, layers: Sequence[int]) -> None:
    if (
        list(layers) != sorted(set(layers))
        or any(layer < (BEFORE if name == "exit_layers" else 0) for layer in layers)
        or (name == "exit_layers" and not layers)
    ):
        raise SettingError(f"{name}: {tuple(layers)}; expected layers in ascending order, none twice")
