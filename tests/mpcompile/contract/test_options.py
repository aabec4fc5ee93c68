"""Tests of options: one field gives the signature, the docstring, the command line and the checks."""

import argparse
import inspect
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import pytest

from mpcompile.contract.options import (
    Options,
    add_arguments,
    number,
    one_of,
    option,
    optional,
    read_arguments,
    takes,
    whole,
)
from mpcompile.errors import SettingError


@dataclass(frozen=True)
class Made(Options):
    size: int = option(MISSING, "examples that run together", whole(1, 8))
    share: float | None = option(None, "share that is kept", optional(number(0.0, 1.0, "such as 0.5")))
    kind: str = option("round", "shape", one_of("round", "square"))
    folder: Path | None = option(None, "where it is kept", convert=lambda value: value and Path(value))
    bars: bool = option(True, "whether bars are drawn", flag="--no-bars", flag_help="draw no bars")
    hidden: str = option("", "not for the command line", flag="")


@takes(Made)
def make(texts: Any, *, size: int, **options: Any) -> Made:
    """Makes it.

    Args:
        texts: any.
        size: of it.
        **options: see `Made`.

    Raises:
        SettingError: when a value is not allowed.
    """
    return Made.read("make", {"size": size, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 9}, "size: 9; a whole number from 1 to 8 is expected"),
        ({"size": True}, "size: True; a whole number from 1 to 8 is expected"),
        ({"size": 1, "share": 2}, "share: 2; a number from 0 to 1 is expected, such as 0.5"),
        ({"size": 1, "share": float("nan")}, "share: nan; a number from 0 to 1 is expected, such as 0.5"),
        ({"size": 1, "kind": "oval"}, "kind: 'oval'; expected one of 'round', 'square'"),
    ],
    ids=str,
)
def test_bad_value_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as error:
        make([], **options)
    assert str(error.value) == message


def test_value_is_converted_before_it_is_kept() -> None:
    assert make([], size=1, folder="here").folder == Path("here")


def test_unknown_option_names_the_one_that_was_meant() -> None:
    with pytest.raises(TypeError, match=r"make\(\) got an unexpected keyword argument 'shar'; did you mean 'share'\?"):
        make([], size=1, shar=0.5)


def test_signature_lists_every_option_once_with_its_default() -> None:
    parameters = inspect.signature(make).parameters
    assert list(parameters) == ["texts", "size", "share", "kind", "folder", "bars", "hidden"]
    assert parameters["kind"].default == "round"


def test_docstring_describes_every_option_where_the_mark_was() -> None:
    lines = [line.strip() for line in (make.__doc__ or "").split("\n")]
    assert lines.index("share: share that is kept.") == lines.index("size: of it.") + 1
    assert not [line for line in lines if line.startswith("**options")]


def parse(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_arguments(parser, Made)
    return read_arguments(parser.parse_args(words), Made)


def test_command_line_reads_words_by_the_types_of_the_fields() -> None:
    given = parse("--size", "3", "--share", "0.25", "--folder", "a")
    assert given == {"size": 3, "share": 0.25, "kind": "round", "folder": Path("a"), "bars": True}


def test_flag_of_a_boolean_turns_it_off() -> None:
    assert parse("--size", "1", "--no-bars")["bars"] is False


def test_option_without_a_default_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse()
    assert "the following arguments are required: --size" in capsys.readouterr().err


def test_help_of_the_command_line_says_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    assert "shape (default: round)" in capsys.readouterr().out
