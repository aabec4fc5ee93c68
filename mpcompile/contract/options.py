"""Options: each is one field of a settings dataclass, and signature, command line, docstring and checks come from it.

@dataclass(frozen=True)
class Settings(Options):
    batch_size: int = option(1, "examples that run together", whole(1, 4096))

@takes(Settings)
def optimize(model, *, texts=None, **options):
    settings = Settings.read("optimize", options)
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import math
import textwrap
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mpcompile.errors import SettingError

Check = Callable[[str, Any], object]
"""Raises SettingError when the value of the option of a name is not allowed."""
F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S", bound="Options")
_ARGS = "        **options: "


@dataclass(frozen=True)
class Option:
    """An option, beside its name, type and default.

    Attributes:
        help: one sentence, for docstring and command line.
        check: refuses values.
        convert: makes the value that is kept of the one that is given.
        parse: reads the word on the command line; None takes the field's type.
        flag: on the command line, where it is not `--name`; a boolean needs one that turns its default over. ""
            for none.
        flag_help: what the flag of a boolean does.
    """

    help: str
    check: Check | None = None
    convert: Callable[[Any], Any] | None = None
    parse: Callable[[str], Any] | None = None
    flag: str | None = None
    flag_help: str = ""


def option(default: Any, help: str, check: Check | None = None, **more: Any) -> Any:  # noqa: A002
    """A field of a settings class.

    Args:
        default: `dataclasses.MISSING` for none.
        help: see `Option`.
        check: see `Option`.
        more: see `Option`.
    """
    return dataclasses.field(default=default, metadata={"option": Option(help, check, **more)})


def number(low: float, high: float, hint: str = "") -> Check:
    """A check for numbers from `low` to `high`."""

    def check(name: str, value: Any) -> None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
        if not is_number or not low <= value <= high:
            more = f", {hint}" if hint else ""
            raise SettingError(f"{name}: {value!r}; a number from {low:g} to {high:g} is expected{more}")

    return check


def whole(low: int, high: int) -> Check:
    """A check for whole numbers from `low` to `high`."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise SettingError(f"{name}: {value!r}; a whole number from {low} to {high} is expected")

    return check


def one_of(*choices: str) -> Check:
    """A check for one of some words."""

    def check(name: str, value: Any) -> None:
        if value not in choices:
            raise SettingError(f"{name}: {value!r}; expected one of {', '.join(map(repr, choices))}")

    return check


def optional(check: Check) -> Check:
    """A check that lets None pass."""
    return lambda name, value: None if value is None else check(name, value)


def to_path(value: Any) -> Any:
    """A conversion that makes a path of a string, `~` expanded, and leaves anything else as it is."""
    return Path(value).expanduser() if isinstance(value, str | Path) else value


@dataclass(frozen=True)
class Options:
    """Base of settings classes: converts and checks every field when it is made.

    Raises:
        SettingError: when a value is not allowed.
    """

    def __post_init__(self) -> None:
        for name, spec in list_options(type(self)).items():
            if spec.convert is not None:
                object.__setattr__(self, name, spec.convert(getattr(self, name)))
            if spec.check is not None:
                spec.check(name, getattr(self, name))

    @classmethod
    def read(cls: type[S], caller: str, given: Mapping[str, Any]) -> S:
        """The settings of a call with keyword arguments.

        Raises:
            TypeError: as Python does where there is no such option, with the one that was probably meant.
            SettingError: when a value is not allowed.
        """
        known = list_options(cls)
        for name in given:
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise TypeError(f"{caller}() got an unexpected keyword argument {name!r}{hint}")
        return cls(**given)


def list_options(settings: type[Options]) -> dict[str, Option]:
    """The options of a settings class, by name."""
    return {field.name: field.metadata["option"] for field in dataclasses.fields(settings)}


def takes(settings: type[Options]) -> Callable[[F], F]:
    """Gives a function that takes `**options` the signature and the docstring of a settings class.

    The line of the docstring that begins with `**options:` is replaced by one entry per option.
    """

    def decorate(function: F) -> F:
        own = inspect.signature(function).parameters.values()
        named = [p for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD]
        taken = {p.name for p in named}
        more = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
            for f in dataclasses.fields(settings)
            if f.name not in taken
        ]
        function.__signature__ = inspect.Signature([*named, *more])  # type: ignore[attr-defined]
        lines = []
        for line in (function.__doc__ or "").split("\n"):
            described = [_describe(p.name, list_options(settings)[p.name]) for p in more]
            lines += described if line.startswith(_ARGS) else [line]
        function.__doc__ = "\n".join(lines)
        return function

    return decorate


def _describe(name: str, spec: Option) -> str:
    """An entry of a docstring."""
    return textwrap.fill(f"{name}: {spec.help}.", 120, initial_indent=" " * 8, subsequent_indent=" " * 12)


def add_arguments(parser: argparse.ArgumentParser, settings: type[Options]) -> None:
    """Declares the options of a settings class on a command line."""
    hints = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        spec: Option = field.metadata["option"]
        if spec.flag == "":
            continue
        flag = spec.flag or "--" + field.name.replace("_", "-")
        text = spec.help.replace("%", "%%")
        if hints[field.name] is bool:
            action = "store_false" if field.default else "store_true"
            parser.add_argument(flag, dest=field.name, action=action, help=spec.flag_help)
            continue
        required = field.default is dataclasses.MISSING
        default = None if required else field.default
        text += "" if required or default is None else f" (default: {default})"
        kind = spec.parse or _find_type(hints[field.name])
        parser.add_argument(flag, dest=field.name, type=kind, default=default, required=required, help=text)


def read_arguments(parsed: argparse.Namespace, settings: type[Options]) -> dict[str, Any]:
    """The options of a settings class as a command line gave them."""
    return {name: getattr(parsed, name) for name, spec in list_options(settings).items() if spec.flag != ""}


def _find_type(hint: Any) -> Callable[[str], Any]:
    """The function that reads a word of the command line: the one type of `T` or `T | None`."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    found: Callable[[str], Any] = next(kind for kind in kinds if kind in (int, float, str, Path))
    return found
