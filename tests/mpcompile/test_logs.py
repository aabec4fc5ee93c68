"""Tests of keeping the root logger."""

import logging

import pytest

from mpcompile.logs import kept_root_logger


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """The root logger with a level and a handler of its own."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [logging.NullHandler()])
    monkeypatch.setattr(root, "level", logging.INFO)
    return root


def change_and_fail(root: logging.Logger) -> None:
    root.setLevel(logging.ERROR)
    root.addFilter(lambda _: False)
    root.handlers = []
    raise RuntimeError


def test_what_a_library_changes_is_undone(root: logging.Logger) -> None:
    handlers = root.handlers[:]
    with pytest.raises(RuntimeError), kept_root_logger():
        change_and_fail(root)
    assert (root.level, root.filters, root.handlers) == (logging.INFO, [], handlers)


def test_root_has_a_handler_within(root: logging.Logger) -> None:
    root.handlers = []
    with kept_root_logger():
        assert len(root.handlers) == 1
    assert root.handlers == []
