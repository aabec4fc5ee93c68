"""Digest of the source code that computes what the store keeps, for its keys. Imports no torch."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable
from pathlib import Path

ROOMS = ("contract", "graph", "backends", "runtime", "cost", "compile")
"""Rooms of `mpcompile/` that stored results are computed with, beside `passes/`."""
PACKAGES = ("torch", "transformers")
"""Packages whose version decides what is captured; backends name theirs in their fingerprints."""


@functools.cache
def digest_source() -> str:
    """SHA-256 of `passes/`, of `ROOMS` and of the versions of `PACKAGES`, in hexadecimal.

    With it in a key, what an edited pass or another version of mpcompile computes never comes from an entry that the
    code of before had stored. It is read once in a process: a few milliseconds.
    """
    package = Path(__file__).resolve().parents[1]
    found = importlib.util.find_spec("passes")
    passes = [] if found is None else [Path(folder) for folder in found.submodule_search_locations or ()]
    return digest_files([*passes, *(package / room for room in ROOMS)], map(_find_version, PACKAGES))


def digest_files(folders: Iterable[Path], versions: Iterable[str] = ()) -> str:
    """SHA-256 of the names and contents of all Python and TOML files in folders, and of versions, in hexadecimal."""
    sha = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".py", ".toml"):
                sha.update(f"{folder.name}/{path.relative_to(folder).as_posix()}\0".encode())
                sha.update(hashlib.sha256(path.read_bytes()).digest())
    for version in versions:
        sha.update(f"{version}\0".encode())
    return sha.hexdigest()


def _find_version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} is not installed"
