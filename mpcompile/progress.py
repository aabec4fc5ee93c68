"""Progress of a long run: a bar per stage on a terminal, a line per stage where it is written to a file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Stage(Protocol):
    """A running stage, which is told its progress."""

    def __call__(self, share: float) -> None:
        """Sets the share of the stage that is done, [0, 1]."""


class StageProgress:
    """A bar per stage on standard error, or a line when the stage ends where that is no terminal.

    Args:
        enabled: False draws nothing.
    """

    def __init__(self, enabled: bool) -> None:
        console = Console(stderr=True)
        self._console = console if enabled else None
        self._lines = console if enabled and not console.is_terminal else None
        self._progress = Progress(
            TextColumn("{task.description:<26}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not enabled or self._lines is not None,
        )

    def __enter__(self) -> StageProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Prints a line, above the bars."""
        if self._console is not None:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Draws a bar while a stage runs."""
        task, start = self._progress.add_task(name, total=1.0), time.monotonic()
        yield lambda share: self._progress.update(task, completed=share)
        self._progress.update(task, completed=1.0)
        if self._lines is not None:
            self._lines.print(f"{name:<40} {time.monotonic() - start:6.1f} s", highlight=False, markup=False)
