"""What commands share: the one place that prints, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Sequence
from pathlib import Path

from mpcompile.errors import SettingError


def show(text: str) -> None:
    """Prints to standard output."""
    print(text)  # noqa: T201


def write_csv(target: Path, rows: Sequence[Sequence[object]]) -> None:
    """Writes rows to a csv file.

    Raises:
        SettingError: when the file cannot be written; nothing is left behind.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
        os.replace(temporary, target)
    except OSError as error:
        raise SettingError(f"--out {target}: cannot be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
