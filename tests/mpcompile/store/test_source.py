"""Tests of the digest of source code: any edit of what computes, and nothing else, changes it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mpcompile.store.source import digest_files, digest_source

Edit = Callable[[Path], object]
EDITS: dict[str, Edit] = {
    "edited": lambda folder: (folder / "a.py").write_text("x = 2\n"),
    "added": lambda folder: (folder / "c.py").write_text(""),
    "removed": lambda folder: (folder / "a.py").unlink(),
    "renamed": lambda folder: (folder / "a.py").rename(folder / "c.py"),
    "edited below": lambda folder: (folder / "below" / "b.py").write_text("y = 2\n"),
    "numbers edited": lambda folder: (folder / "devices.toml").write_text("z = 2\n"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Source code."""
    (tmp_path / "below").mkdir()
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "below" / "b.py").write_text("y = 1\n")
    (tmp_path / "devices.toml").write_text("z = 1\n")
    return tmp_path


@pytest.mark.parametrize("edit", EDITS)
def test_edit_changes_the_digest(folder: Path, edit: str) -> None:
    before = digest_files([folder])
    EDITS[edit](folder)
    assert digest_files([folder]) != before


def test_what_python_leaves_behind_does_not(folder: Path) -> None:
    before = digest_files([folder])
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"compiled")
    assert digest_files([folder]) == before


def test_versions_change_the_digest(folder: Path) -> None:
    assert digest_files([folder], ["torch 2.13.0"]) != digest_files([folder], ["torch 2.14.0"])


def test_passes_are_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest_source()
    read = Path.read_bytes

    def edited(path: Path) -> bytes:
        return read(path) + (b"\n" if path.name == "prune_tokens.py" else b"")

    monkeypatch.setattr(Path, "read_bytes", edited)
    assert digest_source.__wrapped__() != before
