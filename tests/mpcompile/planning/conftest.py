"""Fixtures of the planner's tests: one plan that was made up, and a planner of the tiny BERT that captures it once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

import mpcompile
from mpcompile.contract.operating_point import OperatingPoint
from mpcompile.cost.forecast import Forecast, Memory, SegmentTime
from mpcompile.cost.work import GraphWork, estimate_work
from mpcompile.graph.capture import CapturedModel


@pytest.fixture
def made_up() -> Forecast:
    """A plan with every field filled: 8 ms unpruned, 2 ms in two engines."""
    return Forecast(
        model="tiny",
        device="l4",
        precision="f16",
        batch_size=8,
        mean_length=21.5,
        target_speedup=4,
        unpruned_s=0.008,
        floor_s=0.001,
        reachable_speedup=5.97,
        speedup=4.0,
        point=OperatingPoint((2, 6), (0.0,), (1, 3), (0.5, 1.0)),
        exit_share=0.7,
        segments=(SegmentTime(0, 2, 1.0, 21.5, 11.0, 0.0015), SegmentTime(2, 6, 0.3, 11.0, 11.0, 0.0005)),
        memory=Memory(weights=2e8, activations=1e8, context=5e8, device=24e9),
        fixed_share=0.25,
        notes=("the first [bold] note", "the second"),
    )


@pytest.fixture(scope="session")
def works(captured: CapturedModel) -> dict[str, GraphWork]:
    """The work of the tiny BERT by backend; counting it is what takes long."""
    return {backend: estimate_work(captured, backend) for backend in ("tensorrt", "openvino")}


@pytest.fixture
def plan_tiny(
    tiny_bert: PreTrainedModel,
    captured: CapturedModel,
    works: dict[str, GraphWork],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Forecast]:
    """`plan` of the tiny BERT, for an L4 at 1x unless told otherwise; nothing was measured before."""
    monkeypatch.setattr("mpcompile.planning.plan.capture", lambda *_: captured)
    monkeypatch.setattr("mpcompile.planning.plan.estimate_work", lambda _, backend: works[backend])

    def plan(device: Any = "l4", target_speedup: Any = 1.0, **options: Any) -> Forecast:
        defaults = {"progress": False, "cache_dir": tmp_path / "cache"}
        return mpcompile.plan(tiny_bert, device, target_speedup, **{**defaults, **options})

    return plan
