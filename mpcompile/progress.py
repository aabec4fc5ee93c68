"""Progress bars, one per stage of a long run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Stage(Protocol):
    """A running stage, which is told its progress."""

    def __call__(self, share: float) -> None:
        """Sets the share of the stage that is done, [0, 1]."""


class StageProgress:
    """A bar per stage on standard error.

    Args:
        enabled: False draws nothing.
    """

    def __init__(self, enabled: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<26}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not enabled,
        )

    def __enter__(self) -> StageProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Draws a bar while a stage runs."""
        task = self._progress.add_task(name, total=1.0)
        yield lambda share: self._progress.update(task, completed=share)
        self._progress.update(task, completed=1.0)
