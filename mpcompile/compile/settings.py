"""The options of `optimize`, checked before anything slow starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mpcompile.contract.front import check_target
from mpcompile.cost.forecast import Forecast
from mpcompile.errors import SettingError

ADAPTATIONS = ("none", "frozen", "finetune")
SELECTIONS = ("top", "threshold")
PRECISIONS = ("auto", "f32", "bf16", "f16", "int8")


@dataclass(frozen=True)
class Settings:
    """Options of `optimize`; see there for what each means.

    Raises:
        SettingError: when a value is not allowed.
    """

    target_speedup: float
    max_drop: float | None = None
    confidence: float = 0.95
    adapt: str = "frozen"
    batch_size: int = 1
    device: str = "auto"
    backend: str = "auto"
    precision: str = "auto"
    max_texts: int = 4000
    seed: int = 0
    progress: bool = True
    cache_dir: Path | None = None
    plan: Forecast | None = None
    show_texts: bool = True
    trials: int = 0
    storage: str | None = None
    train_epochs: int = 10
    train_minutes: float | None = None
    exits: bool = True
    pruning: bool = True
    selection: str = "top"
    builder: str = "auto"

    def __post_init__(self) -> None:
        check_target(self.target_speedup)
        if self.max_drop is not None:
            _check_number("max_drop", self.max_drop, 0.0, 1.0, "such as 0.005 for half a point of accuracy")
            if self.max_drop == 0.0:
                raise SettingError(
                    "max_drop: 0; no number of texts shows that nothing at all is lost: allow some, such as 0.005, or "
                    "leave max_drop out to take the point that loses least"
                )
        _check_number("confidence", self.confidence, 0.5, 0.9999, "such as 0.95")
        _check_choice("adapt", self.adapt, ADAPTATIONS)
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("selection", self.selection, SELECTIONS)
        if self.selection == "threshold":
            self._check_threshold()
        _check_count("batch_size", self.batch_size, 1, 4096)
        _check_count("max_texts", self.max_texts, 16, 10**7)
        if self.plan is not None and not isinstance(self.plan, Forecast):
            raise SettingError(f"plan: {self.plan!r}; what mpcompile.plan returned or a file of it is expected")
        _check_count("seed", self.seed, 0, 2**32 - 1)
        _check_count("trials", self.trials, 0, 10**6)
        if self.storage is not None and (not isinstance(self.storage, str) or not self.storage or not self.trials):
            raise SettingError(
                f"storage: {self.storage!r} with trials={self.trials}; a URL of an Optuna storage or a path of a "
                "SQLite file is expected, and at least one trial"
            )
        _check_count("train_epochs", self.train_epochs, 1, 1000)
        if self.train_minutes is not None:
            _check_number("train_minutes", self.train_minutes, 0.01, 1e5, "or None for no limit")

    def _check_threshold(self) -> None:
        """Refuses options that pruning by a threshold does not support yet."""
        for name, value, is_allowed, instead in (
            ("precision", self.precision, self.precision != "int8", "'auto', 'f32' or 'bf16'"),
            ("trials", self.trials, self.trials == 0, "0: the search tries keep ratios"),
            ("plan", self.plan, self.plan is None, "None: a plan is of keep ratios"),
            ("pruning", self.pruning, self.pruning, "True, or selection='top'"),
        ):
            if not is_allowed:
                shown = "a plan" if name == "plan" else repr(value)
                raise SettingError(f"{name}: {shown} with selection='threshold'; expected {instead}")


def _check_number(name: str, value: object, low: float, high: float, hint: str) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise SettingError(f"{name}: {value!r}; a number from {low:g} to {high:g} is expected, {hint}")


def _check_count(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise SettingError(f"{name}: {value!r}; a whole number from {low} to {high} is expected")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SettingError(f"{name}: {value!r}; expected one of {', '.join(map(repr, choices))}")
