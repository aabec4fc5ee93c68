"""Temporary folders: a disk that is full or read-only is one message that says where and what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from mpcompile.errors import SettingError

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """A temporary folder that goes when the block ends.

    Raises:
        SettingError: when it cannot be made, or the block finds no room in it.
    """
    directory = make_scratch_directory()
    try:
        with explaining_scratch():
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def make_scratch_directory() -> Path:
    """A temporary folder that the caller removes.

    Raises:
        SettingError: when it cannot be made.
    """
    try:
        return Path(tempfile.mkdtemp(prefix="mpcompile-"))
    except OSError as error:
        raise SettingError(_describe(error)) from error


@contextlib.contextmanager
def explaining_scratch() -> Iterator[None]:
    """Turns the errors of a disk that takes no more into one that says so, for a block that writes there.

    Raises:
        SettingError: when the disk says no.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not is_of_disk(error):
            raise
        raise SettingError(_describe(error)) from error


def is_of_disk(error: Exception) -> bool:
    """Whether a disk that is full or read-only raised it; safetensors has an exception of its own for that."""
    if isinstance(error, SafetensorError):
        return "I/O error" in str(error)
    return isinstance(error, OSError) and error.errno in _DISK


def _describe(error: Exception) -> str:
    folder = tempfile.tempdir or os.environ.get("TMPDIR", "/tmp")
    return (
        f"temporary folder {folder}: cannot be written: {error}; make room there, or set TMPDIR to a folder that has it"
    )
