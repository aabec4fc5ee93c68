"""Folders of artifacts that appear whole or not at all. Imports no torch."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from mpcompile.errors import ArtifactError
from mpcompile.runtime.artifact import MANIFEST, list_files

_STALE_S = 3600.0
_LOOKS = 20
_FOREIGN = "exists and is not an artifact of mpcompile; choose another folder or remove it"


def check_target_directory(target: Path) -> None:
    """Refuses to write over something that is not an artifact; to be called before slow work starts.

    Raises:
        ArtifactError: when `target` is a file, a folder with something else in it, or cannot be made.
    """
    if target.is_dir():
        # Looked for again: another process may be replacing its artifact right now.
        if _holds_files(target) and not _holds_artifact(target):
            raise ArtifactError(f"{target}: {_FOREIGN}")
    elif target.exists() and not _holds_artifact(target):
        raise ArtifactError(f"{target}: {_FOREIGN}")
    parent = next((path for path in target.absolute().parents if path.exists()), Path("/"))
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ArtifactError(f"{target}: cannot be written: {parent} is not a folder that you may write to")


def _holds_files(target: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return any(target.iterdir())
    return False


def _holds_artifact(target: Path) -> bool:
    for _ in range(_LOOKS):
        if (target / MANIFEST).is_file() or not target.exists():
            return True
        time.sleep(0.01)
    return False


@contextlib.contextmanager
def replace_directory(target: Path) -> Iterator[Path]:
    """A temporary directory beside `target` that takes its place when the block ends without an error.

    Raises:
        ArtifactError: when `target` is there and no artifact, or cannot be written.
    """
    check_target_directory(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.writing-"))
    except OSError as error:
        raise ArtifactError(f"{target}: cannot be written: {error}") from error
    try:
        yield temporary
        _apply_umask(temporary)
        _swap(temporary, target)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{target}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _apply_umask(directory: Path) -> None:
    """Gives a directory and all in it what new files get here: safetensors and tempfile give other users nothing."""
    probe = directory / ".probe"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in (directory, *directory.rglob("*")):
        if path.is_dir():
            path.chmod(mode | 0o700 | (mode & 0o044) >> 2)
        elif not path.is_symlink():
            path.chmod(stat.S_IMODE(path.stat().st_mode) | mode)


def _remove_stale(target: Path) -> None:
    """Removes what a killed process left beside `target`; a write takes seconds, so an hour is long ago."""
    for kind in ("writing", "old"):
        for path in target.parent.glob(f".{target.name}.{kind}-*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _STALE_S:
                    shutil.rmtree(path, ignore_errors=True)


def _swap(temporary: Path, target: Path) -> None:
    """Puts a directory in the place of another; of several processes, the last one to come wins."""
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old-"))
    try:
        with contextlib.suppress(FileNotFoundError):
            os.rename(target, old / "artifact")
        os.rename(temporary, target)
    except OSError as error:
        # Another process put its artifact there in between: as if it had come right after this one.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not _holds_artifact(target):
            raise
    finally:
        with contextlib.suppress(OSError):
            if not target.exists():
                os.rename(old / "artifact", target)
        _carry_over(old / "artifact", target)
        shutil.rmtree(old, ignore_errors=True)


def _carry_over(old: Path, new: Path) -> None:
    """Moves what lay beside the files of an artifact, such as a README.md or .git, to the one in its place."""
    own = {name.split("/")[0] for name in list_files(old)}
    with contextlib.suppress(OSError):
        for path in old.iterdir():
            if own and path.name not in own and not (new / path.name).exists():
                os.rename(path, new / path.name)
