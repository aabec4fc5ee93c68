"""Tables of rich as plain text, for reports that are printed, piped and kept in files."""

from __future__ import annotations

import io
import sys

from rich.console import Console, RenderableType


def render(*parts: RenderableType, width: int = 110) -> str:
    """Renders tables and lines of text one below the other; lines are taken as they are, markup and all.

    Tables are drawn with what standard output can show: with ASCII where it is no Unicode one.

    Args:
        width: in characters; longer lines wrap.
    """
    console = Console(file=_Like(sys.stdout), width=width, record=True)
    for part in parts:
        console.print(part, highlight=False, markup=False)
    return console.export_text().rstrip()


class _Like(io.StringIO):
    """A file in memory that tells rich the encoding of another one."""

    def __init__(self, other: object) -> None:
        super().__init__()
        self._encoding = getattr(other, "encoding", None)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding or "utf-8"
