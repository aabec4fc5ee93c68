"""Tests of checkpoints: whole or absent, and of one run only."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mpcompile.compile.adapt.checkpoint import ABANDONED_S, Checkpoint, State
from tests.paths import ROOT

KEY = {"run": 1}


def state(step: int) -> State:
    return State(
        {"a": torch.full((3,), float(step)), "b": torch.tensor(step)}, {"step": step, "losses": [[0, 0.1 + 0.2]]}
    )


def loaded_step(checkpoint: Checkpoint) -> int | None:
    found = checkpoint.load_maybe()
    return None if found is None else int(found.progress["step"])


def test_state_comes_back_as_it_was(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "a", KEY).save(state(5))
    found = Checkpoint(tmp_path / "a", KEY).load_maybe()
    assert found is not None
    assert found.progress == {"step": 5, "losses": [[0, 0.1 + 0.2]]}
    assert torch.equal(found.tensors["a"], torch.full((3,), 5.0)) and found.tensors["b"].shape == ()


def test_nothing_is_found_where_nothing_was_saved(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path, KEY).load_maybe() is None


def test_last_state_counts(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, KEY)
    checkpoint.save(state(1))
    checkpoint.save(state(2))
    assert loaded_step(checkpoint) == 2 and len(list(tmp_path.iterdir())) == 1


def test_another_run_finds_nothing(tmp_path: Path) -> None:
    Checkpoint(tmp_path, KEY).save(state(1))
    other = Checkpoint(tmp_path, {"run": 2})
    assert other.load_maybe() is None and loaded_step(Checkpoint(tmp_path, KEY)) == 1


def test_state_of_another_run_under_this_name_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other, ours = Checkpoint(tmp_path, {"run": 2}), Checkpoint(tmp_path, KEY)
    other.save(state(1))
    os.replace(other.path, ours.path)
    assert ours.load_maybe() is None and "it is of run" in caplog.text
    assert ours.path.with_suffix(".damaged").exists()


def test_interrupted_write_keeps_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(tmp_path, KEY)
    checkpoint.save(state(1))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(state(2))
    assert loaded_step(checkpoint) == 1 and len(list(tmp_path.iterdir())) == 1


def test_full_disk_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    Checkpoint(tmp_path, KEY).save(state(1))
    assert "No space left on device" in caplog.text and list(tmp_path.iterdir()) == []


def test_abandoned_checkpoints_go(tmp_path: Path) -> None:
    old, young = Checkpoint(tmp_path, {"run": 2}), Checkpoint(tmp_path, {"run": 3})
    for checkpoint in (old, young):
        checkpoint.save(state(1))
    os.utime(old.path, (1, young.path.stat().st_mtime - ABANDONED_S - 60))
    Checkpoint(tmp_path, KEY).save(state(1))
    assert not old.path.exists() and young.path.exists()


@pytest.mark.slow
def test_two_processes_share_a_checkpoint(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, torch\n"
        "from mpcompile.compile.adapt.checkpoint import Checkpoint, State\n"
        "checkpoint = Checkpoint(pathlib.Path(sys.argv[1]), {'run': 1})\n"
        "for step in range(60):\n"
        "    checkpoint.save(State({'a': torch.full((20_000,), float(step))}, {'step': step}))\n"
        "    found = checkpoint.load_maybe()\n"
        "    assert found is not None and (found.tensors['a'] == found.progress['step']).all(), step\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
