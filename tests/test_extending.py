"""What CONTRIBUTING promises: a pass, a backend, an input, a device and an option take a few lines each, in a copy."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.paths import ROOT

KEEP_FIRST = '''
"""KeepFirst: keep the first tokens of each text."""

import torch
from torch.fx import GraphModule, Node

from passes.encoder import EncoderLayer
from passes.prune_tokens import PruneTokens, insert_input


def keep_first(hidden, mask, num_kept, slots, boost):
    kept = torch.where(slots < num_kept[:, None], 0.0, -1e30)[:, None, None, :]
    index = slots.expand(hidden.shape[0], -1)
    return boost * hidden[:, : slots.shape[0]], kept, index


class KeepFirst(PruneTokens):
    name = "KeepFirst"

    def _call_prune(self, gm: GraphModule, layer: EncoderLayer) -> Node:
        inputs = [insert_input(gm, f"{name}_{self.layer}") for name in ("num_kept", "slots", "boost")]
        site = layer.attention_output
        with gm.graph.inserting_after(site):
            prune = gm.graph.call_function(keep_first, (site, layer.mask, *inputs))
        prune.meta["nn_module_stack"] = site.meta["nn_module_stack"]
        return prune
'''
ECHO = '''
"""A backend that counts its calls."""

from mpcompile.backends.torch.eager import EagerBackend

CALLS = []


class EchoBackend(EagerBackend):
    name = "echo"

    def make_engine(self, plan, segment, config):
        engine = super().make_engine(plan, segment, config)
        return lambda inputs: (CALLS.append(inputs), engine(inputs))[1]
'''
PROGRAM = """
import inspect, json
import numpy as np, torch
from tests.models import build_head, family_model, random_batch
import mpcompile
from mpcompile.backends import find_backend
from mpcompile.backends.echo.backend import CALLS
from mpcompile.commands.cli import main
from mpcompile.compile.build import Blueprint, build_plans
from mpcompile.compile.settings import Settings
from mpcompile.contract.backend import Target
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.contract.profile import default_profile
from mpcompile.cost.devices import find_device
from mpcompile.backends.tensorrt.profiles import find_shapes
from mpcompile.graph.capture import capture
from mpcompile.graph.export import export_segment
from mpcompile.graph.segments import partition
from mpcompile.runtime.runner import make_runtime
from mpcompile.store.results import Store
from pathlib import Path

captured = capture(family_model("bert"))
batch = {name: value.numpy() for name, value in random_batch(family_model("bert"), [9, 5]).items()}
target = Target(find_backend("echo"), "f32")
found = {}
for selection in ("top", "first"):
    segments = partition(captured, {}, (0, 1), selection=selection)
    plans = build_plans(target, Blueprint(segments, default_profile(captured.max_length), "x"), Store(Path("store")))
    runtime = make_runtime(target, segments, plans, captured.num_labels, [np.inf])
    for ratio in (1.0, 0.5):
        point = OperatingPoint((captured.num_layers,), (), (0, 1), (ratio, ratio))
        result = runtime.run(batch, point)
        found[f"{selection} {ratio:g}"] = [result.logits.tolist(), result.tokens_kept.tolist()]
found["calls"] = len(CALLS)
found["boost"] = [CALLS[-1][f"boost_{layer}"].tolist() for layer in (0, 1)]
found["exported"] = "boost_1" in str(export_segment(segments[0]).graph_signature)
found["shape"] = find_shapes(segments[0], default_profile(captured.max_length))["boost_1"][0]
found["device"] = find_device("made-up-board").num_sms
found["signature"] = inspect.signature(mpcompile.optimize).parameters["greeting"].default
found["option"] = Settings(2.0, greeting="hello").greeting
try:
    main(["optimize", "--help"])
except SystemExit:
    pass
print(json.dumps(found))
"""


def insert(path: Path, before: str, line: str) -> None:
    """Puts a line before another one, which has to be there once."""
    text = path.read_text()
    assert text.count(before) == 1, before
    path.write_text(text.replace(before, f"{line}\n{before}"))


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What a copy of the tree with one of each added says, and its help."""
    copy = tmp_path_factory.mktemp("extended")
    for package in ("mpcompile", "passes", "tests"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "passes" / "keep_first.py").write_text(KEEP_FIRST)
    rewrite = copy / "mpcompile" / "graph" / "rewrite.py"
    insert(rewrite, "from passes.pass_base import Pass", "from passes.keep_first import KeepFirst")
    rewrite.write_text(rewrite.read_text().replace('PRUNES = {"top"', 'PRUNES = {"first": KeepFirst, "top"'))
    insert(
        copy / "mpcompile" / "contract" / "inputs.py",
        "    TOKEN_THRESHOLD,\n)",
        '    RuntimeInput("boost_", "float32", (1,), lambda setting: np.array([1.0], np.float32)),',
    )
    (copy / "mpcompile" / "backends" / "echo").mkdir()
    (copy / "mpcompile" / "backends" / "echo" / "backend.py").write_text(ECHO)
    backends = copy / "mpcompile" / "backends" / "__init__.py"
    insert(backends, '    "tensorrt": _Entry(', '    "echo": _Entry("echo.backend:EchoBackend", ("cpu",)),')
    devices = copy / "mpcompile" / "cost" / "devices.toml"
    start = devices.read_text().index("[jetson-orin-nano]")
    table = devices.read_text()[start : devices.read_text().index("[jetson-agx-thor]")]
    devices.write_text(devices.read_text() + "\n" + table.replace("jetson-orin-nano", "made-up-board"))
    settings = copy / "mpcompile" / "compile" / "settings.py"
    insert(settings, "    max_texts: int = option(", '    greeting: str = option("none", "what is said first")')
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=copy, env={"PYTHONPATH": str(copy), "PATH": "", "HOME": str(copy)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text, found = done.stdout.rsplit("\n", 2)[0], done.stdout.strip().rsplit("\n", 1)[-1]
    return json.loads(found), text


def test_pass_is_a_file_and_a_line(extended: tuple[dict[str, Any], str]) -> None:
    found, _ = extended
    everything, half = found["first 1"], found["first 0.5"]
    assert everything == found["top 1"], "nothing is dropped: both passes answer alike"
    assert half[0] != everything[0] and half[1] == found["top 0.5"][1], "as many tokens are kept, and others"


def test_backend_is_a_folder_and_a_line(extended: tuple[dict[str, Any], str]) -> None:
    assert extended[0]["calls"] == 4


def test_run_time_input_is_a_row(extended: tuple[dict[str, Any], str]) -> None:
    found, _ = extended
    assert found["boost"] == [[1.0], [1.0]]
    assert found["exported"] and found["shape"] == [1]


def test_device_is_a_table(extended: tuple[dict[str, Any], str]) -> None:
    assert extended[0]["device"] == 8


def test_option_is_a_field(extended: tuple[dict[str, Any], str]) -> None:
    found, text = extended
    assert (found["signature"], found["option"]) == ("none", "hello")
    assert "--greeting GREETING" in text and "what is said first (default: none)" in " ".join(text.split())
