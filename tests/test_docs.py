"""Tests of README, docs/ and CONTRIBUTING: what they name exists, and the commands that they show can be typed."""

import argparse
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpcompile.commands import cli
from tests.paths import ROOT

README = ROOT / "README.md"
PAGES = (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^```.*?\n(.*?)^```", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
TOP_LEVEL = ("mpcompile", "passes", "bench", "scripts", "tests", "docs", ".ci")
MOST_LINES = 150
RESULTS = ROOT / "bench" / "results" / "tasks_amd-epyc-2-cores_2026-11-29.json"
SYSTEMS = ("OpenVINO int8 (NNCF), grouped by length", "TF-IDF, logistic regression", "mpcompile")


def each_page() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def without_fences(text: str) -> str:
    return FENCE.sub("", text)


def find_anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = HEADING.findall(without_fences(page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def find_commands(text: str) -> Iterator[list[str]]:
    """Arguments of each `mpcompile ...` line in the fenced blocks of a page."""
    for block in FENCE.findall(text):
        for line in block.splitlines():
            if line.startswith("mpcompile "):
                yield shlex.split(line, comments=True)[1:]


def test_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= MOST_LINES


def test_readme_links_to_every_page_of_docs() -> None:
    linked = set(LINK.findall(README.read_text()))
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= linked


@each_page()
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_file(), link
        assert not anchor or anchor in find_anchors(target), link


@each_page()
def test_paths_in_backticks_exist(page: Path) -> None:
    for code in CODE.findall(without_fences(page.read_text())):
        if "/" in code and " " not in code and code.split("/")[0] in TOP_LEVEL:
            assert list(ROOT.glob(code.rstrip("/"))), code


@each_page()
def test_pages_name_nothing_outside_the_repository(page: Path) -> None:
    assert "shared/" not in page.read_text()


@each_page()
def test_commands_can_be_typed(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser: argparse.ArgumentParser = cli._parser()
    for arguments in find_commands(page.read_text()):
        try:
            parser.parse_args(arguments)
        except SystemExit:
            pytest.fail(f"mpcompile {' '.join(arguments)}: {capsys.readouterr().err}")


def test_readme_shows_every_step_of_the_main_job() -> None:
    shown = {arguments[0] for arguments in find_commands(README.read_text())}
    assert {"optimize", "predict", "bench"} <= shown


def test_readme_names_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = {
        line.split()[1]
        for block in FENCE.findall(README.read_text())
        for line in block.splitlines()
        if line.startswith("make ")
    }
    assert shown == {"demo", "test"} and shown <= targets


def test_commands_page_shows_every_command() -> None:
    shown = {arguments[0] for arguments in find_commands((ROOT / "docs" / "commands.md").read_text())}
    assert shown == {module.__name__.rsplit(".", 1)[1] for module in cli.COMMANDS}


def test_results_table_of_readme_is_that_of_its_file() -> None:
    shown = {cells[0]: cells[1:] for cells in read_table(README.read_text(), "| task |")}
    assert shown == expected_results(json.loads(RESULTS.read_text()))


def read_table(text: str, start: str) -> list[list[str]]:
    """Cells of a table's rows, without its head and without emphasis."""
    lines = text[text.index(f"\n{start}") + 1 :].split("\n\n")[0].splitlines()
    return [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines[2:]]


def expected_results(results: dict[str, Any]) -> dict[str, list[str]]:
    """README's table, from the numbers that the benchmark wrote."""
    table = {}
    for task in results["tasks"]:
        rows = {(row["system"], row["batch_size"]): row for row in task["rows"]}
        table[task["name"]] = [cell for system in SYSTEMS for cell in _describe([rows[system, n] for n in (1, 32)])]
    means = {name: {**row, "drop": row["worst_drop"]} for name, row in results["summary"].items()}
    table["geometric mean; most lost"] = [
        cell for system in SYSTEMS for cell in _describe([means[f"{system}, batch {n}"] for n in (1, 32)])
    ]
    return table


def _describe(rows: list[dict[str, float]]) -> list[str]:
    return [" / ".join(f"{row['speedup']:.1f}x" for row in rows), f"{100 * rows[0]['drop']:.2f}"]
