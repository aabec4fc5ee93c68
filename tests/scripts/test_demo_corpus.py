"""Tests of scripts/demo_corpus.py on two small packages that are always installed with torch."""

import importlib.util
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from mpcompile.compile.texts.examples import load_examples
from mpcompile.errors import DataError

PACKAGES = ("jinja2", "networkx")


def load_script() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "demo_corpus.py"
    spec = importlib.util.spec_from_file_location("demo_corpus_script", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


demo_corpus = load_script()
NO_NAMES = re.compile(r"\bnone of these\b")


def test_classes_are_balanced() -> None:
    corpus = demo_corpus.build_demo_corpus(60, PACKAGES)
    assert Counter(label for _, label in corpus) == {"jinja2": 30, "networkx": 30}


def test_texts_differ_are_long_enough_and_do_not_name_a_package() -> None:
    texts = [text for text, _ in demo_corpus.build_demo_corpus(60, PACKAGES)]
    assert len({text.lower() for text in texts}) == 60
    assert all(demo_corpus.MIN_CHARS <= len(text) <= demo_corpus.MAX_CHARS for text in texts)
    assert not re.search(r"\b(jinja2|networkx)\b", " ".join(texts), re.IGNORECASE)


def test_seed_decides() -> None:
    first, again, other = (demo_corpus.build_demo_corpus(40, PACKAGES, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_packages_are_not_imported() -> None:
    already = "networkx.drawing.nx_agraph" in sys.modules
    demo_corpus.build_demo_corpus(20, PACKAGES)
    assert ("networkx.drawing.nx_agraph" in sys.modules) == already


def test_default_packages_are_installed() -> None:
    assert all(importlib.util.find_spec(package) for package in demo_corpus.PACKAGES)


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        (
            "Adds :func:`one` to ``x``.\n\n    And more.\n\n    Args:\n        x: a number.\n",
            "Adds one to x. And more.",
        ),
        ("Adds one.\n\nParameters\n----------\nx : int\n", "Adds one."),
        ("Title\n=====\n\nAdds one.\n\n>>> add(1)\n2\n\nMore.", "Title Adds one."),
        ("Adds one.\n\n.. versionadded:: 1.0\n\nMore.", "Adds one."),
        ("Copyright 2020 Somebody.\n\nLicensed under the licence.", ""),
        ("First. " * 40 + "\n\n" + "Second. " * 40, ("First. " * 40).strip()),
    ],
)
def test_only_prose_is_kept(docstring: str, expected: str) -> None:
    assert demo_corpus.clean(docstring, NO_NAMES) == expected


def test_names_are_removed() -> None:
    names = re.compile(r"\b(torch|np)\b[.']?", re.IGNORECASE)
    assert demo_corpus.clean("Like torch.Tensor and np.array, in Torch.", names) == "Like Tensor and array, in"


def test_package_that_is_not_installed() -> None:
    with pytest.raises(DataError, match="no_such_package: no such package is installed"):
        demo_corpus.build_demo_corpus(10, ("no_such_package", "jinja2"))


def test_package_with_too_few_docstrings() -> None:
    with pytest.raises(DataError, match=r"jinja2: \d+ different docstrings, 50000 needed\. Ask for \d+ texts or fewer"):
        demo_corpus.build_demo_corpus(100_000, PACKAGES)


def test_command_line_writes_two_balanced_files_without_common_texts(tmp_path: Path) -> None:
    options = ["--out", str(tmp_path), "--train", "31", "--test", "20", "--packages", *PACKAGES]
    assert demo_corpus.main(options) == 0
    train, test = load_examples(tmp_path / "train.csv"), load_examples(tmp_path / "test.csv")
    assert Counter(train.labels) == {"jinja2": 15, "networkx": 15}
    assert Counter(test.labels) == {"jinja2": 10, "networkx": 10}
    assert not set(train.texts) & set(test.texts)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--packages", "jinja2", "jinja2"], "--packages jinja2: a classifier needs two classes"),
        (["--train", "1"], "--train 1: must be 5 or more"),
    ],
)
def test_command_line_says_what_was_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], expected: str
) -> None:
    assert demo_corpus.main(["--out", str(tmp_path / "out"), *options]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
