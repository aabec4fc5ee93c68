"""Tests of the choice of a precision, on numbers that were made up, and of what it refuses."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from mpcompile.backends.openvino.quantise import find_quantiser
from mpcompile.compile.choose.precision import Expected, check_precision, list_precisions, pick_offer
from mpcompile.compile.settings import Settings
from mpcompile.contract.backend import Target
from mpcompile.errors import BackendError, SettingError

EXACT = [Expected(1.0, 0.0), Expected(5.0, 0.004), Expected(9.0, 0.03)]
FAST = [Expected(2.0, 0.003), Expected(8.0, 0.006), Expected(12.0, 0.05)]


@pytest.mark.parametrize(
    ("target", "max_drop", "picked"),
    [(1.0, 0.01, 0), (2.0, 0.01, 1), (4.0, 0.01, 0), (6.0, 0.01, 1), (8.5, 0.005, 0), (8.5, 0.01, 1), (8.5, None, 0)],
)
def test_offer_of_the_least_lossy_point_at_the_target_is_picked(
    target: float, max_drop: float | None, picked: int
) -> None:
    assert pick_offer([EXACT, FAST], target, max_drop) == picked


@pytest.mark.parametrize(("max_drop", "picked"), [(0.002, 0), (0.006, 1), (0.03, 0), (0.1, 1)])
def test_target_out_of_reach_takes_the_fastest_within_the_bound(max_drop: float, picked: int) -> None:
    assert pick_offer([EXACT, FAST], 50.0, max_drop) == picked


def test_with_max_drop_out_of_reach_the_least_lossy_is_picked() -> None:
    assert pick_offer([[Expected(1.0, 0.02)], [Expected(1.0, 0.01)]], 4.0, 0.005) == 1


def test_of_equals_the_more_exact_is_picked() -> None:
    assert pick_offer([EXACT, EXACT], 4.0, None) == 0
    assert pick_offer([EXACT, EXACT], 4.0, 0.01) == 0


def test_int8_without_texts_is_refused() -> None:
    with pytest.raises(SettingError, match=r"precision: 'int8' is calibrated on texts; pass texts=\.\.\."):
        check_precision(Settings(2.0, precision="int8"), has_texts=False)


def test_int8_without_nncf_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(
        BackendError, match=r"nncf, which quantises, is not installed: pip install \"mpcompile\[int8\]\""
    ):
        check_precision(Settings(2.0, precision="int8"), has_texts=True)
    check_precision(Settings(2.0, precision="auto"), has_texts=True)


def listed(precisions: tuple[str, ...], asked: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is tried, and said, on a backend that runs some precisions."""
    backend: Any = SimpleNamespace(precisions=lambda: precisions, find_quantiser=find_quantiser)
    target = Target(backend, "f32" if asked == "auto" else asked)
    return list_precisions(Settings(2.0, precision=asked), target)


@pytest.mark.parametrize("asked", ["f32", "int8"])
def test_precision_asked_for_is_the_only_one_tried(asked: str) -> None:
    assert listed(("f32", "bf16", "int8"), asked) == ((asked,), ())


def test_auto_tries_the_fastest_float_and_int8() -> None:
    pytest.importorskip("nncf")
    assert listed(("f32", "bf16", "int8"), "auto") == (("bf16", "int8"), ())


def test_auto_does_not_try_int8_where_the_backend_has_none() -> None:
    assert listed(("f32",), "auto") == (("f32",), ())


def test_auto_says_when_int8_was_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    precisions, (note,) = listed(("f32", "int8"), "auto")
    assert precisions == ("f32",)
    assert note.startswith("int8 was not tried") and "pip install" in note
