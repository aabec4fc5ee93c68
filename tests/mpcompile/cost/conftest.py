"""Fixtures of the cost model's tests."""

import pytest

from mpcompile.capture import CapturedModel
from mpcompile.cost.work import GraphWork, estimate_work


@pytest.fixture(scope="session")
def tiny_work(captured: CapturedModel) -> GraphWork:
    """The work of the tiny BERT as OpenVINO runs it."""
    return estimate_work(captured, "openvino")
