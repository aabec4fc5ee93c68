"""Tests of the direction of dependency: scripts, bench, tests -> mpcompile -> passes -> torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

OWN = {"passes", "mpcompile", "bench", "scripts", "tests"}
HEAVY = ("torch", "openvino", "tensorrt", "transformers", "optuna", "ray")


def imports_of(source: str) -> set[str]:
    """Top-level names that a module imports, at its head, in functions or for types alone."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # A relative import stays inside its package.
            found |= {node.module.split(".")[0]} if node.level == 0 and node.module else set()
    return found


def modules(package: str) -> Iterator[pytest.param]:
    for path in sorted((ROOT / package).rglob("*.py")):
        yield pytest.param(path, id=str(path.relative_to(ROOT)))


def test_imports_are_read_wherever_they_stand() -> None:
    source = (
        "import a.b\nfrom c.d import e\nfrom . import f\nif TYPE_CHECKING:\n    import g\ndef h():\n    import i as j\n"
    )
    assert imports_of(source) == {"a", "c", "g", "i"}


@pytest.mark.parametrize("path", modules("passes"))
def test_passes_import_torch_and_the_standard_library_alone(path: Path) -> None:
    assert imports_of(path.read_text()) <= {"passes", "torch"} | sys.stdlib_module_names


@pytest.mark.parametrize("path", modules("mpcompile"))
def test_mpcompile_imports_of_this_repository_only_passes(path: Path) -> None:
    assert imports_of(path.read_text()) & OWN <= {"mpcompile", "passes"}


@pytest.mark.parametrize("package", ["bench", "scripts"])
def test_bench_and_scripts_do_not_import_tests(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        assert "tests" not in imports_of(path.read_text()), path


def loaded_by(statement: str) -> set[str]:
    """Heavy packages that a fresh interpreter holds after a statement."""
    program = f"import sys\n{statement}\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "mpcompile",
        "mpcompile.errors",
        "mpcompile.contract.segment",
        "mpcompile.contract.operating_point",
        "mpcompile.runtime.runtime",
        "mpcompile.tuning",
    ],
)
def test_import_is_light(module: str) -> None:
    assert loaded_by(f"import {module}") == set()


def test_import_of_mpcompile_leaves_cuda_alone() -> None:
    program = "import mpcompile, sys\nassert not [name for name in sys.modules if name.startswith('torch.cuda')]"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
