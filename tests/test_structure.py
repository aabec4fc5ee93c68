"""Tests of the structure: rooms, the one direction of imports between them, and sizes."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpcompile.backends import BACKENDS
from mpcompile.contract.inputs import INPUTS
from tests.paths import ROOT

PACKAGE = ROOT / "mpcompile"
FLOORS = (
    ("errors", "logs", "progress"),
    ("store",),
    ("contract",),
    ("report",),
    ("graph",),
    ("backends",),
    ("runtime",),
    ("cost",),
    ("compile",),
    ("planning",),
    ("tuning",),
    ("commands",),
)
"""Rooms from the ground up; a room imports rooms below it alone."""
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MAX_ENTRIES, MAX_LINES, MAX_PARAMETERS, MAX_FUNCTION_LINES = 16, 300, 6, 80
FACE = {
    ("mpcompile/compile/optimize.py", "optimize"),
    ("mpcompile/planning/plan.py", "plan"),
}
"""Functions that users call, which may take more parameters."""
DEPLOYED = ("contract", "runtime")
FORBIDDEN = {"torch", "transformers", "mpcompile.compile", "mpcompile.cost", "mpcompile.graph", "passes"}
"""What a deployed model must do without; named for types alone, they may be."""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names that are imported, at the head of a module or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def without_types(path: Path) -> ast.Module:
    """A module without what stands under `if TYPE_CHECKING:`."""
    tree = ast.parse(path.read_text())
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    return tree


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_few_entries_stand_in_the_hall() -> None:
    entries = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MAX_ENTRIES, sorted(entries)


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in modules()} - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize("room", FLOOR)
def test_arrows_go_down(room: str) -> None:
    allowed = {other for other, floor in FLOOR.items() if floor < FLOOR[room]} | {room}
    wrong = []
    for path in modules():
        if room_of(path) == room:
            for name in imported(ast.parse(path.read_text())):
                parts = name.split(".")
                if parts[0] == "mpcompile" and len(parts) > 1 and parts[1] in FLOOR and parts[1] not in allowed:
                    wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert not wrong


def test_only_commands_use_the_public_face() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for path in modules()
        if room_of(path) not in ("commands", "__init__") and "mpcompile" in set(imported(ast.parse(path.read_text())))
    ]
    assert not wrong


@pytest.mark.parametrize("room", DEPLOYED)
def test_what_is_deployed_imports_nothing_that_compiles(room: str) -> None:
    wrong = []
    for path in sorted((PACKAGE / room).rglob("*.py")):
        for name in imported(without_types(path)):
            if any(name == other or name.startswith(f"{other}.") for other in FORBIDDEN):
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert not wrong


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_functions_take_few_parameters() -> None:
    many = []
    for path in (*modules(), *sorted((ROOT / "passes").rglob("*.py"))):
        for node in functions(path):
            arguments = node.args
            names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
            count = len([name for name in names if name not in ("self", "cls")])
            if count > MAX_PARAMETERS and (str(path.relative_to(ROOT)), node.name) not in FACE:
                many.append(f"{path.relative_to(ROOT)}: {node.name} takes {count}")
    assert not many


def test_backends_are_told_apart_by_name_in_their_own_room_alone() -> None:
    names = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value!r}"
        for path in modules()
        if room_of(path) != "backends"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in BACKENDS
    ]
    assert not names


def test_inputs_are_known_by_name_in_their_table_alone() -> None:
    own = [row.name for row in INPUTS if row.fill is not None]
    names = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value!r}"
        for path in modules()
        if path != PACKAGE / "contract" / "inputs.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and any(name in node.value for name in own)
    ]
    assert own
    assert not names


def test_functions_fit_a_screen() -> None:
    long = []
    for path in modules():
        for node in functions(path):
            if node.end_lineno is not None and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES:
                long.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert not long
