"""Fixtures of the tuner's tests."""

import functools
from collections.abc import Iterator

import pytest

from mpcompile.compile.rebuild import load_sources

optuna = pytest.importorskip("optuna")

from tests.mpcompile.tuning.fakes import SHORT_S, InProcess  # noqa: E402


@pytest.fixture(autouse=True)
def quiet_optuna() -> Iterator[None]:
    """Optuna tells every trial on standard error otherwise."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round is a few batches, not `BLOCK_S` seconds of a tiny model."""
    monkeypatch.setattr("mpcompile.tuning.batches.BLOCK_S", SHORT_S)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures in the process of the test, which has torch loaded, and captures each artifact once."""
    monkeypatch.setattr("mpcompile.tuning.tuner.ProcessChannel", InProcess)
    monkeypatch.setattr("mpcompile.tuning.builder.load_sources", load_once)


load_once = functools.cache(load_sources)
