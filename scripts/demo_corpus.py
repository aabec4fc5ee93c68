"""Builds a text classification task out of what is installed: which package does this docstring come from?

    python scripts/demo_corpus.py --out demo

It is English written by many hands, the same on every machine with the same packages, and needs no download. The
sources are parsed, never imported.
"""

import argparse
import ast
import csv
import importlib.util
import inspect
import os
import random
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from mpcompile.errors import DataError, MpcompileError, SettingError

PACKAGES = ("networkx", "numpy", "sympy", "torch", "transformers")
ALIASES = ("pytorch", "huggingface", "hugging face", "np", "nx")
MIN_CHARS = 40
MAX_CHARS = 400
KEY_WORDS = 8

_UNDERLINED = re.compile(r"^\s*([-=~^*])\1{2,}\s*$")
_SECTION = re.compile(
    r"^\s*(args?|arguments|parameters|params|returns?|yields?|raises|examples?|notes?|references|see also|attributes|"
    r"shape|inputs?|outputs?|usage|keyword arguments|kwargs|warnings?|inference|explanation)\s*:{0,2}\s*$",
    re.IGNORECASE,
)
_MARKUP = re.compile(r":[a-z:]+:|[`*]+|\[\[|\]\]|</?[a-zA-Z][^>]*>|https?://\S+")
_NOT_PROSE = re.compile(r"^\s*(>>>|\.\.\.? |[@:|#\\]|\.\. |copyright|licensed|license)", re.IGNORECASE)


def build_demo_corpus(limit: int, packages: Sequence[str] = PACKAGES, seed: int = 0) -> list[tuple[str, str]]:
    """Collects docstrings, the same number of each package, shuffled.

    Args:
        limit: number of texts; rounded down to a multiple of the number of packages.
        packages: installed packages, which are the labels.
        seed: decides which docstrings are taken, and their order.

    Returns:
        (text, label) of each docstring. No two texts begin with the same eight words, and none names a package.

    Raises:
        DataError: a package is not installed, or has too few docstrings.
    """
    names = re.compile(rf"\b({'|'.join([*packages, *ALIASES])})\b[.']?", re.IGNORECASE)
    per_package = limit // len(packages)
    seen: set[str] = set()
    corpus: list[tuple[str, str]] = []
    for package in sorted(packages):
        texts: list[str] = []
        for docstring in _iterate_docstrings(package, seed):
            if len(texts) == per_package:
                break
            text = clean(docstring, names)
            key = " ".join(re.findall(r"[a-z]+", text.lower())[:KEY_WORDS])
            if len(text) >= MIN_CHARS and key not in seen:
                seen.add(key)
                texts.append(text)
        if len(texts) < per_package:
            raise DataError(
                f"{package}: {len(texts)} different docstrings, {per_package} needed. "
                f"Ask for {len(texts) * len(packages)} texts or fewer."
            )
        corpus += [(text, package) for text in texts]
    random.Random(seed).shuffle(corpus)
    return corpus


def clean(docstring: str, names: re.Pattern[str]) -> str:
    """Keeps the prose before the first section, doctest or list, without markup and without these names."""
    paragraphs: list[str] = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        lines = paragraph.splitlines()
        if any(_SECTION.match(line) or _NOT_PROSE.match(line) for line in lines):
            break
        if sum(map(len, paragraphs)) + len(paragraph) > MAX_CHARS and paragraphs:
            break
        paragraphs += [line for line in lines if not _UNDERLINED.match(line)]
    text = names.sub("", _MARKUP.sub("", " ".join(paragraphs)))
    return " ".join(text.split())[:MAX_CHARS].strip()


def _iterate_docstrings(package: str, seed: int) -> Iterator[str]:
    """Yields the docstrings of all modules, classes and functions, file by file in an order that the seed decides."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"{package}: no such package is installed. Install it, or choose other packages.")
    root = Path(spec.submodule_search_locations[0])
    files = sorted(path for path in root.rglob("*.py") if "tests" not in path.relative_to(root).parts)
    random.Random(f"{seed} {package}").shuffle(files)
    for file in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in other people's strings
                tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):  # templates and test files that are not Python
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node, clean=False)
                if docstring and docstring.isascii():
                    yield docstring


def split(corpus: Sequence[tuple[str, str]], per_class: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Puts the first ``per_class`` texts of each class into one part and the others into a second, in their order."""
    parts: tuple[list[tuple[str, str]], list[tuple[str, str]]] = ([], [])
    counts: Counter[str] = Counter()
    for text, label in corpus:
        parts[counts[label] >= per_class].append((text, label))
        counts[label] += 1
    return parts


def write_csv(rows: Sequence[tuple[str, str]], path: Path) -> None:
    """Writes a CSV with the columns text and label, whole or not at all."""
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("text", "label"), *rows])
    os.replace(unfinished, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes train.csv and test.csv; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write train.csv and test.csv: docstrings labelled by package.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--train", type=int, default=3000, help="number of texts to train on (default: %(default)s)")
    parser.add_argument("--test", type=int, default=1000, help="number of texts to test on (default: %(default)s)")
    parser.add_argument("--packages", nargs="+", default=PACKAGES, help="the classes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="write 40 and 20 texts")
    options = parser.parse_args(arguments)
    num_train, num_test = (40, 20) if options.smoke else (options.train, options.test)
    try:
        packages = list(dict.fromkeys(options.packages))
        if len(packages) < 2:
            raise SettingError(f"--packages {' '.join(packages)}: a classifier needs two classes or more.")
        for option, number in (("--train", num_train), ("--test", num_test)):
            if number < len(packages):
                raise SettingError(f"{option} {number}: must be {len(packages)} or more, one for each package.")
        sizes = [number // len(packages) * len(packages) for number in (num_train, num_test)]
        train, test = split(build_demo_corpus(sum(sizes), packages, options.seed), sizes[0] // len(packages))
        options.out.mkdir(parents=True, exist_ok=True)
        write_csv(train, options.out / "train.csv")
        write_csv(test, options.out / "test.csv")
    except MpcompileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {len(train)} texts in train.csv, {len(test)} in test.csv, from {', '.join(packages)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
