"""The options of `tune`, checked before anything slow starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from mpcompile.errors import SettingError


@dataclass(frozen=True)
class TuneSettings:
    """Options of `tune`; see there for what each means.

    Raises:
        SettingError: when a value is not allowed.
    """

    batch_size: int | None = None
    max_drop: float | None = None
    budget_s: float = 300.0
    max_trials: int | None = None
    storage: str | None = None
    study: str | None = None
    ray: str | None = None
    trial_timeout_s: float = 60.0
    min_agreement: float = 0.995
    seed: int = 0
    progress: bool = True
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        _check("batch_size", self.batch_size, 1, 4096, whole=True)
        _check("max_drop", self.max_drop, 0.0, 1.0)
        _check("budget_s", self.budget_s, 0.0, 1e7)
        _check("max_trials", self.max_trials, 0, 10**6, whole=True)
        _check("trial_timeout_s", self.trial_timeout_s, 0.1, 1e6)
        _check("min_agreement", self.min_agreement, 0.0, 1.0)
        _check("seed", self.seed, 0, 2**31, whole=True)


def _check(name: str, value: object, low: float, high: float, whole: bool = False) -> None:
    if value is None and name in ("batch_size", "max_drop", "max_trials"):
        return
    kind = int if whole else int | float
    if not isinstance(value, kind) or isinstance(value, bool) or math.isnan(value) or not low <= value <= high:
        number = "whole number" if whole else "number"
        raise SettingError(f"{name}: {value!r}; a {number} from {low:g} to {high:g} is expected")
