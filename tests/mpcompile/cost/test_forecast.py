"""Tests of a plan as a file and as a text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpcompile.cost.forecast import Forecast
from mpcompile.errors import SettingError


def write(plan: Forecast, path: Path, change: Callable[[dict[str, Any]], Any] = lambda values: values) -> Path:
    """A file of a plan; `change` may change the values in place."""
    values = plan.to_json()
    change(values)
    path.write_text(json.dumps(values))
    return path


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda values: values.pop(name)


def given(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda values: values.update(changes)


def test_plan_is_read_as_it_was_written(made_up: Forecast, tmp_path: Path) -> None:
    assert Forecast.load(write(made_up, tmp_path / "plan.json")) == made_up


def test_plan_is_read_from_a_path_given_as_text(made_up: Forecast, tmp_path: Path) -> None:
    assert Forecast.load(str(write(made_up, tmp_path / "plan.json"))) == made_up


def test_file_of_a_plan_is_strict_json(made_up: Forecast) -> None:
    values = json.loads(json.dumps(made_up.to_json(), allow_nan=False))
    assert (values["format"], values["format_version"]) == ("mpcompile-plan", 1)
    assert (values["predicted_s"], values["memory"]["total"]) == (0.002, 8e8)


def test_time_of_a_plan_is_that_of_its_engines(made_up: Forecast) -> None:
    assert made_up.predicted_s == pytest.approx(sum(segment.predicted_s for segment in made_up.segments))


# ---------------------------------------------------------------------------------- files that are not plans


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"[1, 2]", "not a plan of mpcompile"),
        (b"8", "not a plan of mpcompile"),
        (b"null", "not a plan of mpcompile"),
        (b'{"keep_ratios": [0.5]}', "not a plan of mpcompile"),
        (b'{"format": "onnx", "format_version": 1}', "not a plan of mpcompile"),
    ],
    ids=["empty", "half", "binary", "deep", "list", "number", "null", "other", "foreign"],
)
def test_file_that_is_no_plan_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(SettingError) as error:
        Forecast.load(path)
    assert str(error.value).startswith(f"plan {path}: {message}")
    assert str(error.value).endswith("make one with mpcompile plan --out")


@pytest.mark.parametrize("name", ["nowhere.json", ".", "nul\0"])
def test_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingError, match=r"cannot be read.*make one with mpcompile plan --out") as error:
        Forecast.load(tmp_path / name)
    assert str(error.value).startswith(f"plan {tmp_path / name}: ")


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_other_format_version_is_refused(made_up: Forecast, tmp_path: Path, version: Any) -> None:
    path = write(made_up, tmp_path / "plan.json", given(format_version=version))
    with pytest.raises(SettingError) as error:
        Forecast.load(path)
    assert str(error.value) == f"plan {path}: format {version}, this version reads 1; plan again"


@pytest.mark.parametrize(
    "change",
    [
        *map(without, ("model", "unpruned_s", "point", "segments", "memory", "notes", "format_version")),
        lambda values: values["memory"].pop("weights"),
        lambda values: values["segments"][1].pop("survival"),
        lambda values: values["segments"][1].update(colour="red"),
        lambda values: values["point"].pop("exit_layers"),
        lambda values: values["point"].update(keep_ratios=[0.5, 7.0]),
        lambda values: values["point"].update(exit_layers=[1.5, 6]),
        lambda values: values["point"].update(prune_layers=["one", "three"]),
        *(given(**{name: []}) for name in ("model", "batch_size", "speedup", "point", "memory")),
        given(segments=3),
        given(segments=[[0, 2]]),
        given(notes=5),
        given(point=None),
        given(unpruned_s="8 ms"),
        given(batch_size=True),
    ],
)
def test_plan_that_lacks_something_is_refused(
    made_up: Forecast, tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    path = write(made_up, tmp_path / "plan.json", change)
    with pytest.raises(SettingError, match="plan again") as error:
        Forecast.load(path)
    assert str(error.value).startswith(f"plan {path}: ")


# ---------------------------------------------------------------------------------- the text


def test_text_says_what_the_plan_is(made_up: Forecast) -> None:
    text = " ".join(str(made_up).split())
    for part in (
        "l4, batch of 8, 22 tokens on average, f16",
        "8 ms in one engine",
        "1 ms with all tokens but [CLS] deleted: pruning alone ends at 8.0x",
        "25% of the unpruned time does not depend on the number of tokens",
        "2 ms, 4.0x (asked: 4x)",
        "layer 1: 0.5",
        "after layers 2: 70% of the examples that come by must leave at each",
        "800 MB of 24000 MB: weights 200, activations 100, driver and libraries 500",
        "note: the first [bold] note",
        "note: the second",
    ):
        assert part in text


def test_layer_that_keeps_all_tokens_is_not_shown(made_up: Forecast) -> None:
    assert "layer 3" not in str(made_up)


def test_reachable_speedup_is_not_rounded_up(made_up: Forecast) -> None:
    assert "reachable 5.9x with exits" in " ".join(str(made_up).split())


def test_shares_of_the_engines_add_up(made_up: Forecast) -> None:
    rows = [line for line in str(made_up).splitlines() if line.startswith("│")]
    assert [row.split("│")[6].strip() for row in rows] == ["75%", "25%"]
