"""Tests of what an artifact remembers of the texts that its heads were trained on."""

from pathlib import Path

from mpcompile.compile.texts.examples import Examples
from mpcompile.compile.texts.known import leave_out_known, write_known
from mpcompile.runtime.artifact import KNOWN_TEXTS


def test_known_texts_are_left_out_and_others_are_not(tmp_path: Path) -> None:
    write_known(tmp_path, Examples(("a", "b", "a")))
    given = Examples(("c", "a", "b", "d", "c"), labels=(1, 2, 3, 4, 5))
    assert leave_out_known(tmp_path, given) == Examples(("c", "d", "c"), labels=(1, 4, 5))


def test_pairs_are_known_by_both_texts(tmp_path: Path) -> None:
    write_known(tmp_path, Examples(("a", "b"), ("x", "y")))
    assert leave_out_known(tmp_path, Examples(("a", "a", "ax"), ("x", "y", ""))).texts == ("a", "ax")


def test_artifact_that_does_not_say_knows_none(tmp_path: Path) -> None:
    assert leave_out_known(tmp_path, Examples(("a",))).texts == ("a",)


def test_texts_are_not_in_the_file(tmp_path: Path) -> None:
    write_known(tmp_path, Examples(("a secret",)))
    assert b"secret" not in (tmp_path / KNOWN_TEXTS).read_bytes()
