"""Tests of opening a storage: nothing beside it changes."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

pytest.importorskip("optuna")


def test_loggers_of_a_program_without_handlers_stay_on(tmp_path: Path) -> None:
    program = (
        "import logging, sys\n"
        "logger = logging.getLogger('mine')\n"
        "assert not logging.getLogger().handlers\n"
        "from mpcompile.store.studies.storage import open_storage\n"
        "open_storage(sys.argv[1])\n"
        "print(logger.disabled, logging.getLogger().handlers)\n"
    )
    command = [sys.executable, "-c", program, f"sqlite:///{tmp_path / 'new.db'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False []\n"
