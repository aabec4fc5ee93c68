"""Tests of the options: a bad value is refused with the value, what is allowed and its name."""

import math
from typing import Any

import pytest

from mpcompile.compile.settings import Settings
from mpcompile.errors import SettingError


def test_defaults_are_allowed() -> None:
    settings = Settings(8)
    assert (settings.confidence, settings.adapt, settings.batch_size, settings.max_drop) == (0.95, "frozen", 1, None)


def test_texts_are_shown_and_nothing_is_planned_by_default() -> None:
    assert Settings(8).plan is None
    assert Settings(8).show_texts


@pytest.mark.parametrize(
    "options",
    [
        {"max_drop": 1e-6},
        {"max_drop": 1.0},
        {"confidence": 0.5},
        {"adapt": "none"},
        {"precision": "bf16"},
        {"batch_size": 4096},
        {"seed": 2**32 - 1},
        {"max_texts": 16},
        {"trials": 0},
        {"trials": 30, "storage": "search.db"},
    ],
    ids=str,
)
def test_values_at_the_edge_are_allowed(options: dict[str, Any]) -> None:
    Settings(8, **options)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("max_drop", 0, "no number of texts shows that nothing at all is lost"),
        ("max_drop", -0.01, "a number from 0 to 1 is expected, such as 0.005"),
        ("max_drop", 1.5, "a number from 0 to 1"),
        ("max_drop", math.nan, "a number from 0 to 1"),
        ("max_drop", "0.5", "a number from 0 to 1"),
        ("max_drop", True, "a number from 0 to 1"),
        ("confidence", 0.4, "a number from 0.5 to 0.9999 is expected, such as 0.95"),
        ("confidence", 1.0, "a number from 0.5 to 0.9999"),
        ("confidence", 95, "a number from 0.5 to 0.9999"),
        ("confidence", None, "a number from 0.5 to 0.9999"),
        ("adapt", "finetuned", "expected one of 'none', 'frozen'"),
        ("adapt", None, "expected one of 'none', 'frozen'"),
        ("precision", "fp16", "expected one of 'auto', 'f32', 'bf16'"),
        ("batch_size", 0, "a whole number from 1 to 4096 is expected"),
        ("batch_size", 4097, "a whole number from 1 to 4096"),
        ("batch_size", 1.0, "a whole number from 1 to 4096"),
        ("batch_size", True, "a whole number from 1 to 4096"),
        ("max_texts", 15, "a whole number from 16"),
        ("max_texts", None, "a whole number from 16"),
        ("seed", -1, "a whole number from 0"),
        ("seed", "0", "a whole number from 0"),
        ("trials", -1, "a whole number from 0"),
        ("trials", 2.0, "a whole number from 0"),
    ],
)
def test_bad_value_is_refused(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(SettingError) as error:
        Settings(8, **{name: value})
    assert str(error.value).startswith(f"{name}: {value!r}; ")
    assert allowed in str(error.value)


def test_bad_target_is_refused() -> None:
    with pytest.raises(SettingError, match="target_speedup: 0; a number from 1 to 100 is expected"):
        Settings(0)


@pytest.mark.parametrize("options", [{"storage": "s.db"}, {"storage": "", "trials": 3}, {"storage": 5, "trials": 3}])
def test_storage_without_a_search_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=r"storage: .* with trials=\d; a URL of an Optuna storage or a path"):
        Settings(8, **options)
