"""Tests of tasks: what logits mean, when answers differ, how unsure they are."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from mpcompile.compile.adapt.frozen import train_exit_heads
from mpcompile.compile.certify.similarity import correlate, measure_similarity
from mpcompile.contract.task import LEAST_COSINE, SCORE_TOLERANCE, Task
from passes import ExitHead
from passes.ops import label_entropy, normalised_entropy

SINGLE, MULTI, SCORE = Task("single_label", 3), Task("multi_label", 3), Task("regression", 1)
LOGITS = np.array([[2.0, -1.0, 0.5], [-3.0, -0.1, -4.0], [0.1, 0.2, 9.0]], np.float32)


def test_answer_of_one_label_is_the_likeliest() -> None:
    assert SINGLE.answers(LOGITS).tolist() == [0, 1, 2]


def test_labels_hold_from_a_probability_of_one_half() -> None:
    probability = 1.0 / (1.0 + np.exp(-LOGITS))
    assert MULTI.answers(LOGITS).tolist() == (probability > 0.5).tolist()


def test_label_set_differs_when_any_label_does() -> None:
    truth = np.array([[True, False, True], [False, True, False], [True, False, True]])
    assert MULTI.differs(MULTI.answers(LOGITS), truth).tolist() == [False, True, True]


def test_answer_of_a_regression_is_its_score() -> None:
    assert SCORE.answers(LOGITS[:, :1]).shape == (3,)
    assert Task("regression", 3).answers(LOGITS).shape == (3, 3)


def test_score_differs_beyond_the_tolerance_of_the_texts_it_was_calibrated_on() -> None:
    scores = np.array([0.0, 10.0, 20.0, 30.0])
    task = SCORE.calibrated(scores)
    assert task.tolerance == (pytest.approx(SCORE_TOLERANCE * scores.std()),)
    off = np.array([0.0, 0.99, -0.99, 1.01]) * task.tolerance[0]
    others = np.array([100.0, -3.0, 5.0, 7.0])  # of other texts: their deviation is not asked
    assert task.differs(others + off, others).tolist() == [False, False, False, True]


def test_score_without_calibration_is_measured_by_the_truth_s_own_deviation() -> None:
    truth = np.array([0.0, 10.0])
    assert SCORE.differs(truth + np.array([0.4, 0.6]), truth).tolist() == [False, True]


def test_one_of_several_scores_makes_the_difference() -> None:
    truth = np.array([[0.0, 0.0], [10.0, 1000.0]])
    answers = truth + np.array([[0.4, 40.0], [0.6, 0.0]])
    assert Task("regression", 2).differs(answers, truth).tolist() == [False, True]


def test_rounding_of_scores_that_are_all_alike_is_no_difference() -> None:
    truth = np.full(4, 3.0, np.float32)
    assert not SCORE.differs(truth + np.float32(1e-6), truth).any()


def test_vectors_differ_by_their_angle_alone() -> None:
    task, angle = Task("embedding", 2), math.acos(LEAST_COSINE)
    logits = np.array([[math.cos(a), math.sin(a)] for a in (0.9 * angle, 1.1 * angle)]) * 7.0
    answers = task.answers(logits)
    np.testing.assert_allclose(np.linalg.norm(answers, axis=1), 1.0)
    assert task.differs(answers, np.array([[1.0, 0.0], [1.0, 0.0]])).tolist() == [False, True]


def test_entropy_of_labels_is_that_of_the_least_sure_one() -> None:
    p = 1.0 / (1.0 + np.exp(-LOGITS.astype(np.float64)))
    binary = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    np.testing.assert_allclose(MULTI.entropy(LOGITS), binary.max(1))


@pytest.mark.parametrize("num_labels", [2, 3, 150])
@pytest.mark.parametrize(("kind", "op"), [("single_label", normalised_entropy), ("multi_label", label_entropy)])
def test_entropy_agrees_with_that_of_the_graph(kind: str, op: object, num_labels: int) -> None:
    scale = np.array([[0.0], [0.1], [3.0], [50.0], [1e4]])
    logits = (np.random.default_rng(0).standard_normal((5, num_labels)) * scale).astype(np.float32)
    ours = Task(kind, num_labels).entropy(logits)
    np.testing.assert_allclose(ours, op(torch.from_numpy(logits)).numpy(), atol=1e-5)  # type: ignore[operator]
    assert ours[0] == pytest.approx(1.0) and ours.min() >= 0.0


@pytest.mark.parametrize("kind", ["regression", "embedding"])
def test_task_without_classes_has_no_exits(kind: str) -> None:
    task = Task(kind, 4)
    assert not task.has_exits and not task.has_classes
    assert (task.entropy(np.zeros((2, 4))) == 1.0).all()


@pytest.mark.parametrize("task", [SINGLE, MULTI, Task("regression", 2, (0.5, 0.25)), Task("embedding", 8)], ids=str)
def test_task_survives_json(task: Task) -> None:
    assert Task.from_json(task.to_json()) == task


def test_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="generation"):
        Task.from_json({"kind": "generation", "num_outputs": 1, "tolerance": []})


# ---------------------------------------------------------------------------------- similarity


def test_correlations_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal(50).round(1)
    others = scores + rng.standard_normal(50)
    found = correlate(scores, others)
    assert found["pearson"] == pytest.approx(pearsonr(scores, others).statistic)
    assert found["spearman"] == pytest.approx(spearmanr(scores, others).statistic)


def test_correlation_of_scores_that_are_all_alike_is_left_out() -> None:
    assert correlate(np.ones(5), np.arange(5.0)) == correlate(np.arange(5.0), np.ones(5)) == {}


def test_scores_are_compared_with_labels_beside_the_original() -> None:
    labels = np.arange(5.0)
    found = measure_similarity(SCORE, labels[::-1], labels, labels)
    assert {name: values["spearman"] for name, values in found.items()} == {
        "with_original": pytest.approx(-1.0),
        "with_labels": pytest.approx(-1.0),
        "original_with_labels": pytest.approx(1.0),
    }


# ---------------------------------------------------------------------------------- exits of several labels


def test_exit_head_of_several_labels_gives_their_entropy() -> None:
    head = ExitHead(4, 3, multi_label=True)
    with torch.no_grad():
        logits, entropy = head(torch.randn(2, 5, 4), torch.zeros(2, 1, 1, 5))
        torch.testing.assert_close(entropy, label_entropy(logits))


def test_heads_learn_labels_that_hold_together() -> None:
    rng = np.random.default_rng(0)
    features = {1: rng.standard_normal((300, 8)).astype(np.float32)}
    teacher = 12.0 * features[1][:, :3]  # each label by itself; often none or all of them hold
    trained = train_exit_heads(features, teacher, task=MULTI)
    assert trained.heads[1].multi_label
    wrong = MULTI.differs(trained.predict_held_out(features)[1] > 0, teacher > 0)
    assert wrong.mean() < 0.2
