"""The time that teaching may take."""

from __future__ import annotations

import time
from collections.abc import Iterator

from mpcompile.progress import Stage

CHUNK = 1024
"""Texts between two looks at the clock."""


def chunks_in_time(first: int, count: int, seconds: float, stage: Stage) -> Iterator[range]:
    """Positions of texts, chunk by chunk, until there are no more or time is over.

    Args:
        first: position of the first text.
        count: texts, those before it included.
        seconds: that may go into them.
        stage: told the share done, of the texts or of the time.
    """
    started = time.monotonic()
    for start in range(first, count, CHUNK):
        chunk = range(start, min(start + CHUNK, count))
        yield chunk
        elapsed = time.monotonic() - started
        stage(max(chunk.stop / count, min(elapsed / seconds, 1.0)))
        if elapsed >= seconds:
            return
