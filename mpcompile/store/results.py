"""One content-addressed store for everything slow: a killed run finds what it had computed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

logger = logging.getLogger(__name__)

MAX_BYTES = 4 * 2**30
STALE_S = 3600.0


class Store:
    """Named arrays under the digest of what they were computed from.

    Entries appear whole or not at all, several processes may share a store, and the entries
    unused for longest go when it outgrows `max_bytes`.

    Args:
        directory: None for the user's cache directory.
        max_bytes: size that it is cut back to.
    """

    def __init__(self, directory: Path | None = None, max_bytes: int = MAX_BYTES) -> None:
        self.directory = directory if directory is not None else platformdirs.user_cache_path("mpcompile")
        self._max_bytes = max_bytes
        self._has_warned = False

    def fetch(self, key: Mapping[str, object], compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The arrays stored under a key; computed and stored when there are none.

        Args:
            key: everything that the arrays depend on, as JSON values.
            compute: gives the arrays.
        """
        arrays = self.find_maybe(key)
        if arrays is None:
            arrays = compute()
            self.keep(key, arrays)
        return arrays

    def fetch_json(self, key: Mapping[str, object], compute: Callable[[], Any]) -> Any:
        """JSON values stored under a key; computed and stored when there are none.

        Args:
            key: everything that the values depend on, as JSON values.
            compute: gives the values.
        """
        return _from_arrays(self.fetch(key, lambda: _to_arrays(compute())))

    def find_json_maybe(self, key: Mapping[str, object]) -> Any:
        """The JSON values stored under a key, or None."""
        arrays = self.find_maybe(key)
        return None if arrays is None else _from_arrays(arrays)

    def keep_json(self, key: Mapping[str, object], values: Any) -> None:
        """Stores JSON values under a key, in place of what was there."""
        self.keep(key, _to_arrays(values))

    def find_maybe(self, key: Mapping[str, object]) -> dict[str, np.ndarray] | None:
        """The arrays stored under a key, or None."""
        path = self._path(key)
        with contextlib.suppress(OSError, SafetensorError):  # missing, damaged, of another user, or no folder at all
            arrays: dict[str, np.ndarray] = load_file(path)
            with contextlib.suppress(OSError):
                os.utime(path)
            logger.info("%s: taken from %s", key.get("kind"), path)
            return arrays
        return None

    def _path(self, key: Mapping[str, object]) -> Path:
        return self.directory / f"{digest(key)}.safetensors"

    def keep(self, key: Mapping[str, object], arrays: dict[str, np.ndarray]) -> None:
        """Stores arrays under a key, in place of what was there."""
        path = self._path(key)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            replace_file(path, lambda name: save_file(arrays, name))
        except (OSError, SafetensorError) as error:  # which costs the next run time, not this one its result
            if not self._has_warned:
                logger.warning(
                    "%s: cannot store intermediate results (%s); they are computed again next time",
                    self.directory,
                    error,
                )
            self._has_warned = True
            return
        with contextlib.suppress(OSError):
            self._shrink()

    def _shrink(self) -> None:
        entries = []
        for path in self.directory.glob("writing-*"):  # what a killed process left
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_S:
                    path.unlink()
        for path in self.directory.glob("*.safetensors"):
            with contextlib.suppress(FileNotFoundError):
                entries.append((path.stat().st_mtime, path.stat().st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size


def _to_arrays(values: Any) -> dict[str, np.ndarray]:
    return {"json": np.frombuffer(json.dumps(values).encode(), np.uint8)}


def _from_arrays(arrays: Mapping[str, np.ndarray]) -> Any:
    return json.loads(arrays["json"].tobytes())


def replace_file(path: Path, write: Callable[[str], None]) -> None:
    """Lets `write` make a file beside `path`, which takes its place whole, with the permissions that new files get.

    Args:
        path: what is replaced.
        write: writes the file of a name, which is there and empty.
    """
    name = path.with_name(f"writing-{secrets.token_hex(8)}")
    try:
        name.touch(exist_ok=False)
        mode = stat.S_IMODE(name.stat().st_mode)
        write(str(name))
        name.chmod(mode)  # safetensors gives other users nothing
        os.replace(name, path)
    finally:
        with contextlib.suppress(OSError):
            name.unlink(missing_ok=True)


def digest(key: Mapping[str, object]) -> str:
    """SHA-256 of JSON values, in hexadecimal."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def digest_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of named arrays, in hexadecimal."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(f"{name} {array.dtype} {array.shape}".encode())
        sha.update(array.data if array.ndim else array.tobytes())
    return sha.hexdigest()
