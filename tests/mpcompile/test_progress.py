"""Tests of the progress of long runs."""

import pytest

from mpcompile.progress import StageProgress


def test_line_per_stage_is_written_when_it_ends_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with StageProgress(True) as progress:
        with progress.stage("capture") as stage:
            stage(0.5)
            assert capfd.readouterr().err == ""
        out, err = capfd.readouterr()
        assert out == ""
        assert err.split() == ["capture", "0.0", "s"]


def test_nothing_is_written_when_it_is_off(capfd: pytest.CaptureFixture[str]) -> None:
    with StageProgress(False) as progress, progress.stage("capture"):
        pass
    assert capfd.readouterr() == ("", "")
