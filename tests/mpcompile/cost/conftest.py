"""Fixtures of the cost model's tests."""

import pytest

from mpcompile.cost.regions import GraphWork
from mpcompile.cost.work import estimate_work
from mpcompile.graph.capture import CapturedModel


@pytest.fixture(scope="session")
def tiny_work(captured: CapturedModel) -> GraphWork:
    """The work of the tiny BERT as OpenVINO runs it."""
    return estimate_work(captured, "OpenVINO")
