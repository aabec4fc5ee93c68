"""Tests of temporary folders: a disk that takes no more is one message that says what to do."""

import tempfile
from pathlib import Path

import pytest
from safetensors import SafetensorError

from mpcompile.errors import SettingError
from mpcompile.store.scratch import scratch_directory

FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


def test_folder_goes_with_the_block() -> None:
    with scratch_directory() as folder:
        (folder / "a").touch()
    assert not folder.exists()


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), OSError(30, "Read-only"), SafetensorError(FULL)]
)
def test_disk_that_takes_no_more_is_named_with_what_to_do(error: Exception) -> None:
    message = r"temporary folder .* cannot be written: .*; make room there, or set TMPDIR"
    with pytest.raises(SettingError, match=message), scratch_directory() as folder:
        raise error
    assert not folder.exists()


@pytest.mark.parametrize("error", [FileNotFoundError(2, "a"), SafetensorError("header too large"), ValueError("a")])
def test_other_errors_are_left_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error.args[-1])), scratch_directory():
        raise error


def test_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with (
        pytest.raises(SettingError, match=f"temporary folder {tmp_path / 'none'}: cannot be written"),
        scratch_directory(),
    ):
        pass
