"""Tests of tables as text: they are drawn with what standard output can show."""

import io
import sys

import pytest
from rich.table import Table

from mpcompile.report.tables import render


def draw() -> str:
    table = Table(title="points")
    table.add_column("speed")
    table.add_row("8.00x")
    return render(table)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_table_is_ascii_where_the_console_is_no_unicode_one(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert draw().isascii() and "8.00x" in draw()


def test_table_has_lines_where_the_console_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert "┃ speed ┃" in draw()


def test_table_is_drawn_where_there_is_no_console(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert "8.00x" in draw()
