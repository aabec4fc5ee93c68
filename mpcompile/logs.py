"""The root logger, which belongs to the user's program and not to the libraries that we call."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def kept_root_logger() -> Iterator[None]:
    """Leaves the root logger, at the end of the block, as it was before it.

    OpenVINO's converter sets its level, and leaves it at ERROR where a conversion fails. alembic, which makes Optuna's
    tables, switches all other loggers off where the root has no handler: within the block it has one.
    """
    root, handler = logging.getLogger(), logging.NullHandler()
    level, filters, handlers = root.level, root.filters[:], root.handlers[:]
    root.addHandler(handler)
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters[:], root.handlers[:] = filters, handlers
