"""Measures the tests: changes one place of the code at a time, and says which changes no test notices.

    python bench/bench_tests.py passes mpcompile/runtime mpcompile/compile/certify --sample 300

Each mutant runs, in a copy of the last commit and in a fork of a process that has torch imported, the tests that
`SUITES` names for its file, those of a file of the same name first, until one fails. What was tried already is kept in
`--work` and not tried again; Ctrl-C ends a run with what was tried, the same command goes on.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from result_files import describe_machine, slug, write_result

ROOT = Path(__file__).resolve().parents[1]
SUITES = {
    "passes": ("tests/passes", "tests/mpcompile/graph/test_segments.py", "tests/mpcompile/compile/test_selection.py"),
    "mpcompile/runtime": (
        "tests/mpcompile/runtime",
        "tests/mpcompile/commands/test_cli.py",
        "tests/mpcompile/compile/test_bundle.py",
        "tests/mpcompile/compile/test_optimize.py",
    ),
    "mpcompile/compile/certify": ("tests/mpcompile/compile/certify",),
}
"""Tests of the files of a folder."""
LAST = ("tests/mpcompile/compile/test_optimize_taught.py",)
"""What survives the tests of its folder goes through the main job."""
PRELOADED = (
    "numpy", "scipy.stats", "torch", "torch.export", "torch._dynamo", "torch.fx", "transformers",
    "transformers.models.bert.modeling_bert", "safetensors.torch", "hypothesis", "pytest", "plotly", "rich.progress",
)  # fmt: skip
WORKERS, TIMEOUT_S = 2, 400.0
Outcome = str
KILLED, SURVIVED, TIMED_OUT = "killed", "survived", "timed out"

_COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
_ANNOTATIONS = {"annotation", "returns", "decorator_list", "type_params"}


@dataclass(frozen=True)
class Mutant:
    """One change: where it is, and the code before and after it."""

    file: str
    number: int
    line: int
    before: str
    after: str


def main() -> None:
    """Tries the mutants, writes and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", default=list(SUITES), help="folders of the project, all by default")
    parser.add_argument("--sample", type=int, help="mutants to try, drawn at random; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "mutants", help="copies, logs and what was tried")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    options = parser.parse_args()
    machine = describe_machine()
    mutants = draw(options.folders, options.sample, options.seed)
    tried = Tried(options.work / f"{machine['commit']}.jsonl")
    left = [mutant for mutant in mutants if mutant not in tried.outcomes]
    print(f"{len(mutants)} mutants, {len(mutants) - len(left)} of them tried before", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        if left:
            try_all(left, make_copies(options.work, options.folders), tried)
    mutants = sorted((mutant for mutant in mutants if mutant in tried.outcomes), key=lambda m: (m.file, m.number))
    result = {
        **machine,
        "command": " ".join(["python", "bench/bench_tests.py", *sys.argv[1:]]),
        "mutants": [asdict(mutant) | {"outcome": tried.outcomes[mutant]} for mutant in mutants],
        "possible": len(draw(options.folders, None, 0)),
    }
    write_result(options.out / f"tests_{slug()}.json", result, format_table(result))


def draw(folders: list[str], sample: int | None, seed: int) -> list[Mutant]:
    """The mutants of all files below the folders, or some of them drawn at random, in the order of the draw."""
    files = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    mutants = [mutant for path in files for mutant in list_mutants(path)]
    if sample is None or sample >= len(mutants):
        return mutants
    return random.Random(seed).sample(mutants, sample)


def list_mutants(path: Path) -> Iterator[Mutant]:
    """Every change of a file."""
    tree = ast.parse(path.read_text())
    for number, (node, changed) in enumerate(changes(tree)):
        yield Mutant(path.relative_to(ROOT).as_posix(), number, node.lineno, ast.unparse(node), ast.unparse(changed))


def changes(tree: ast.AST) -> Iterator[tuple[Any, ast.AST]]:
    """Nodes and what may stand in their place; annotations, decorators and texts stay as they are."""
    for name, value in ast.iter_fields(tree):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name not in _ANNOTATIONS:
                yield from ((child, changed) for changed in replacements(child))
                yield from changes(child)


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of a node."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARISONS:
        yield _with(node, ops=[_COMPARISONS[type(node.ops[0])](), *node.ops[1:]])
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in _ARITHMETIC:
        yield _with(node, op=_ARITHMETIC[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield _with(node, value=not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield _with(node, value=node.value + 1)
    elif isinstance(node, ast.IfExp):
        yield _with(node, body=node.orelse, orelse=node.body)
    elif isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield ast.copy_location(ast.Pass(), node)


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


class _Swap(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else super().visit(node)


def mutate(source: str, number: int) -> str:
    """The source with a change, by its number."""
    tree = ast.parse(source)
    old, new = list(changes(tree))[number]
    return ast.unparse(ast.fix_missing_locations(_Swap(old, new).visit(tree)))


def make_copies(work: Path, folders: list[str]) -> list[Path]:
    """Copies of the last commit, in which the tests have passed once, so that Python has compiled them."""
    first, *others = (work / f"copy{i}" for i in range(WORKERS))
    for folder in (first, *others):
        shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(first)], check=True)
    tests = dict.fromkeys(test for folder in folders for test in (*find_suites(folder + "/"), *LAST))
    environment = os.environ | {"PYTHONPATH": str(first)}
    done = subprocess.run([sys.executable, "-m", "pytest", "-x", *tests], cwd=first, env=environment, check=False)
    if done.returncode:
        raise SystemExit("the tests fail without a change")
    for folder in others:
        subprocess.run(["cp", "--archive", str(first), str(folder)], check=True)
    return [first, *others]


class Tried:
    """Outcomes by mutant, kept in a file as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[Mutant, Outcome] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            for line in path.read_text().splitlines():
                values = json.loads(line)
                outcome = values.pop("outcome")
                self.outcomes[Mutant(**values)] = outcome

    def add(self, mutant: Mutant, outcome: Outcome) -> None:
        """Keeps an outcome."""
        self.outcomes[mutant] = outcome
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(mutant) | {"outcome": outcome}) + "\n")


def list_tests(file: str) -> list[str]:
    """Tests of a file, nearest first."""
    own = f"test_{Path(file).stem}.py"
    suites = find_suites(file)
    nearest = sorted(str(path.relative_to(ROOT)) for name in suites for path in (ROOT / name).rglob(own))
    return [*nearest, *suites, *LAST]


def find_suites(path: str) -> tuple[str, ...]:
    """Tests of the folder that a file is in."""
    found = [names for folder, names in SUITES.items() if path.startswith(folder + "/")]
    if not found:
        raise SystemExit(f"{path}: no tests are named for it; folders that have some: {', '.join(SUITES)}")
    return found[0]


def try_all(mutants: list[Mutant], copies: list[Path], tried: Tried) -> None:
    """Tries mutants side by side, one in each copy."""
    for name in PRELOADED:
        importlib.import_module(name)
    waiting, running = list(reversed(mutants)), {}
    free, start = list(copies), time.monotonic()
    try:
        while waiting or running:
            while waiting and free:
                mutant, folder = waiting.pop(), free.pop()
                running[fork_tests(mutant, folder)] = (mutant, folder, time.monotonic())
            time.sleep(0.05)
            for pid, (mutant, folder, begun) in list(running.items()):
                if time.monotonic() - begun > TIMEOUT_S:
                    os.killpg(pid, signal.SIGKILL)
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    (folder / mutant.file).write_text((ROOT / mutant.file).read_text())
                    outcome = TIMED_OUT if os.WIFSIGNALED(status) else SURVIVED if status == 0 else KILLED
                    tried.add(mutant, outcome)
                    del running[pid]
                    free.append(folder)
                    print(f"{len(tried.outcomes)} {time.monotonic() - start:.0f} s: {outcome}: {mutant}", flush=True)
    finally:
        for pid in running:
            os.killpg(pid, signal.SIGKILL)


def fork_tests(mutant: Mutant, folder: Path) -> int:
    """Starts the tests of a mutant in a process group of its own; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.dont_write_bytecode = True
        for name in [name for name in sys.modules if name.split(".")[0] in ("mpcompile", "passes")]:
            del sys.modules[name]
        sys.path[:] = [str(folder), *(path for path in sys.path if Path(path) not in (ROOT, ROOT / "bench"))]
        os.environ["PYTHONPATH"] = str(folder)
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        (folder / mutant.file).write_text(mutate((ROOT / mutant.file).read_text(), mutant.number))
        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={folder.with_suffix('.tmp')}"]
        code = int(pytest.main([*options, *dict.fromkeys(list_tests(mutant.file))]))
        if code == pytest.ExitCode.NO_TESTS_COLLECTED:
            raise RuntimeError(f"no tests for {mutant.file}")
    finally:
        os._exit(code)


def format_table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    counts: dict[str, Counter[str]] = {}
    for mutant in result["mutants"]:
        counts.setdefault(mutant["file"], Counter())[mutant["outcome"]] += 1
    rows = [
        f"| {file} | {found[KILLED] + found[TIMED_OUT]} | {found[SURVIVED]} |" for file, found in sorted(counts.items())
    ]
    survivors = [
        f"- `{mutant['file']}:{mutant['line']}`: `{' '.join(mutant['before'].split())}` -> "
        f"`{' '.join(mutant['after'].split())}`"
        for mutant in result["mutants"]
        if mutant["outcome"] == SURVIVED
    ]
    total = len(result["mutants"])
    return "\n".join(
        [
            "# Changes of one place that the tests notice",
            "",
            f"`{result['command']}`, commit {result['commit']}: of {result['possible']} possible changes {total} were",
            f"tried and {total - len(survivors)} noticed.",
            "",
            "| file | noticed | survived |",
            "|---|---|---|",
            *rows,
            "",
            "Survivors:",
            "",
            *survivors,
            "",
        ]
    )


if __name__ == "__main__":
    main()
