"""Tests of reading logits as predictions."""

import numpy as np
import pytest

from mpcompile.contract.task import Task
from mpcompile.runtime.predictions import MultiLabelPrediction, Prediction, read_predictions

NAMES = {0: "sport", 1: "war", 2: "art", 3: "trade"}


def test_class_with_the_highest_probability_is_predicted() -> None:
    logits = np.log(np.array([[0.1, 0.2, 0.6, 0.1]], np.float32))
    (found,) = read_predictions(Task("single_label", 4), NAMES, logits, np.array([3]))
    assert found == Prediction("art", pytest.approx(0.6), 3)  # type: ignore[arg-type]


def test_labels_that_hold_are_predicted_surest_first() -> None:
    logits = np.array([[1.0, -1.0, 3.0, 2.0], [-1.0, -2.0, -0.1, -3.0]], np.float32)
    first, second = read_predictions(Task("multi_label", 4), NAMES, logits, np.array([1, 2]))
    assert isinstance(first, MultiLabelPrediction)
    assert first.labels == ("art", "trade", "sport") and first.exit_layer == 1
    assert first.scores == pytest.approx([1 / (1 + np.exp(-logit)) for logit in (3.0, 2.0, 1.0)])
    assert second == MultiLabelPrediction((), (), 2)
