"""Tests of building plans: one is found again where nothing changed that decides it, and only there."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch.fx import GraphModule

from mpcompile.backends.torch.eager import EagerBackend
from mpcompile.compile.build import Blueprint, build_plans
from mpcompile.contract.backend import Target
from mpcompile.contract.profile import default_profile
from mpcompile.contract.segment import Segment
from mpcompile.graph.capture import CapturedModel
from mpcompile.graph.segments import partition
from mpcompile.store.results import Store


class CountingBackend(EagerBackend):
    """Eager, with plans that tell how many were built before."""

    count = 0

    def build(self, *_: object) -> bytes:
        self.count += 1
        return b"plan %d" % self.count


Build = Callable[[tuple[Segment, ...]], list[bytes]]


@pytest.fixture
def build(captured: CapturedModel, tmp_path: Path) -> Build:
    """Builds with one backend, of one digest, into one store."""
    backend, store, profile = CountingBackend(), Store(tmp_path), default_profile(captured.max_length)
    return lambda segments: build_plans(Target(backend, "f32"), Blueprint(segments, profile, "weights"), store)


def test_plan_is_found_again(captured: CapturedModel, build: Build) -> None:
    assert build(partition(captured, {})) == build(partition(captured, {})) == [b"plan 1"]


def test_edited_graph_is_built_anew(captured: CapturedModel, build: Build) -> None:
    build(partition(captured, {}))
    segments = partition(captured, {})
    graph_module = segments[0].graph_module
    assert isinstance(graph_module, GraphModule)
    node = next(node for node in graph_module.graph.nodes if "gelu" in str(node.target))
    with graph_module.graph.inserting_after(node):
        node.replace_all_uses_with(doubled := graph_module.graph.call_function(double, (node,)))
        doubled.replace_input_with(doubled, node)
    graph_module.recompile()
    assert build(segments) == [b"plan 2"]


def double(value: object) -> object:
    """Twice a value."""
    return value * 2  # type: ignore[operator]


def test_edited_source_is_built_anew(captured: CapturedModel, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    build(partition(captured, {}))
    monkeypatch.setattr("mpcompile.compile.build.digest_source", lambda: "edited")
    assert build(partition(captured, {})) == [b"plan 2"]
