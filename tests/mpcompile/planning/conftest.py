"""Fixtures of the planner's tests: one plan that was made up, and a planner of the tiny BERT that captures it once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

import mpcompile
from mpcompile.cost.forecast import Forecast
from mpcompile.cost.regions import GraphWork
from mpcompile.cost.work import estimate_work
from mpcompile.graph.capture import CapturedModel


@pytest.fixture(scope="session")
def works(captured: CapturedModel) -> dict[str, GraphWork]:
    """The work of the tiny BERT by backend; counting it is what takes long."""
    return {backend: estimate_work(captured, backend) for backend in ("TensorRT", "OpenVINO")}


@pytest.fixture
def plan_tiny(
    tiny_bert: PreTrainedModel,
    captured: CapturedModel,
    works: dict[str, GraphWork],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Forecast]:
    """`plan` of the tiny BERT, for an L4 at 1x unless told otherwise; nothing was measured before."""
    monkeypatch.setattr("mpcompile.graph.capture.capture", lambda *_: captured)
    monkeypatch.setattr("mpcompile.cost.work.estimate_work", lambda _, backend, __: works[backend])

    def plan(device: Any = "l4", target_speedup: Any = 1.0, **options: Any) -> Forecast:
        defaults = {"progress": False, "cache_dir": tmp_path / "cache"}
        return mpcompile.plan(tiny_bert, device, target_speedup, **{**defaults, **options})

    return plan
