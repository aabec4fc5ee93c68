"""Output of commands: the one place that prints, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from mpcompile.errors import SettingError


def show(text: str) -> None:
    """Prints to standard output."""
    print(text)  # noqa: T201


def show_what_the_console_can() -> None:
    """Lets a console that is no Unicode one, or a text that is none, end no command: what cannot be shown is a `?`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def silence_transformers() -> None:
    """Turns its progress bars off: one set of them is enough."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # which it reads when it is imported: seconds that may be spared
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()


def write_csv(target: Path, rows: Sequence[Sequence[object]]) -> None:
    """Writes rows to a csv file.

    Raises:
        SettingError: when the file cannot be written; nothing is left behind.
    """
    with _replacing(target) as file:
        csv.writer(file).writerows(rows)


def write_text(target: Path, text: str) -> None:
    """Writes a text file.

    Raises:
        SettingError: when the file cannot be written; nothing is left behind.
    """
    with _replacing(target) as file:
        file.write(text)


def check_target_file(target: Path) -> None:
    """Refuses a folder and a device, which a file would replace, before anything slow.

    Raises:
        SettingError: when `target` is there and is no file.
    """
    with contextlib.suppress(OSError):  # writing will say what is wrong
        if target.exists() and not target.is_file():
            raise SettingError(f"--out {target}: cannot be written: it is no file; give the name of one")


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[TextIO]:
    """A file beside `target` that takes its place when the block ends without an error."""
    check_target_file(target)
    temporary = target.with_name(f".writing-{secrets.token_hex(8)}")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            yield file
        os.replace(temporary, target)
    except OSError as error:
        raise SettingError(f"--out {target}: cannot be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
