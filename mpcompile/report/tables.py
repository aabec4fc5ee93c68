"""Tables of rich as plain text, for reports that are printed, piped and kept in files."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType


def render(*parts: RenderableType, width: int = 110) -> str:
    """Renders tables and lines of text one below the other; lines are taken as they are, markup and all.

    Args:
        width: in characters; longer lines wrap.
    """
    console = Console(file=io.StringIO(), width=width, record=True)
    for part in parts:
        console.print(part, highlight=False, markup=False)
    return console.export_text().rstrip()
