"""Tests of labels as each kind of task reads them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpcompile.compile.texts.examples import Examples, load_examples
from mpcompile.compile.texts.labels import check_labels, check_names, read_labels
from mpcompile.contract.task import Task
from mpcompile.errors import CaptureError, DataError

NAMES = {0: "sport", 1: "war", 2: "art"}
SINGLE, MULTI, SCORE = Task("single_label", 3), Task("multi_label", 3), Task("regression", 1)


def read(task: Task, labels: Any, names: dict[int, str] = NAMES) -> np.ndarray:
    examples = load_examples([f"text {i}" for i in range(len(labels))], labels)
    found = read_labels(examples, task, names, "labels of texts")
    assert found is not None
    return found


def test_texts_without_labels_have_none() -> None:
    assert read_labels(Examples(("a",)), MULTI, NAMES, "labels of texts") is None


def test_classes_are_ids() -> None:
    assert read(SINGLE, ["war", 2, "0"]).tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("sport;art", [1, 0, 1]),
        (" art ; sport ;", [1, 0, 1]),
        ("war", [0, 1, 0]),
        ("", [0, 0, 0]),
        ([], [0, 0, 0]),
        (["art"], [0, 0, 1]),
        ([2, 1], [0, 1, 1]),
        (2, [0, 0, 1]),
        ("0;2", [1, 0, 1]),
        ([1.0, 0.0, 1.0], [1, 0, 1]),
        ([False, True, True], [0, 1, 1]),
        (np.array([0.0, 0.0, 1.0]), [0, 0, 1]),
    ],
    ids=str,
)
def test_set_of_labels_is_read(label: Any, expected: list[int]) -> None:
    found = read(MULTI, [label, "war"])
    assert found.dtype == bool
    assert found.astype(int).tolist() == [expected, [0, 1, 0]]


def test_name_with_a_separator_is_one_label() -> None:
    assert read(MULTI, ["a;b"], {0: "a", 1: "b", 2: "a;b"}).tolist() == [[False, False, True]]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("text,label\na,sport;art\nb,\n", "a.csv"),
        ('{"text": "a", "label": ["sport", "art"]}\n{"text": "b", "label": []}\n', "a.jsonl"),
    ],
)
def test_sets_of_labels_are_read_from_files(tmp_path: Path, content: str, name: str) -> None:
    (tmp_path / name).write_text(content)
    found = read_labels(load_examples(tmp_path / name), MULTI, NAMES, "labels of texts")
    assert found is not None and found.astype(int).tolist() == [[1, 0, 1], [0, 0, 0]]


def test_scores_are_numbers_or_digits() -> None:
    assert read(SCORE, [0.5, 2, "-1.25"]).tolist() == [0.5, 2.0, -1.25]
    assert read(Task("regression", 2), [[0.5, 2], (1, 3)]).tolist() == [[0.5, 2.0], [1.0, 3.0]]


@pytest.mark.parametrize(
    ("task", "label", "message"),
    [
        (SINGLE, 0.5, r"labels\[1\]: 0\.5 is not a class of the model. The model has 3 classes"),
        (SINGLE, ["war"], r"labels\[1\]: \('war',\) is not a class of the model"),
        (SINGLE, "", r"labels\[1\]: the label is empty"),
        (MULTI, "sport;peace", r"labels\[1\]: 'peace' is not a class of the model. The model has 3 classes: 'sport'"),
        (MULTI, ["sport", 7], r"labels\[1\]: 7 is not a class of the model"),
        (MULTI, [0, 1, 1], r"labels\[1\]: \(0, 1, 1\) names a label twice.*booleans or floats"),
        (MULTI, [1.0, 0.0], r"labels\[1\]: \(1\.0, 0\.0\); 3 values of 0\.0 or 1\.0 are expected"),
        (MULTI, [1.0, 0.0, 0.5], r"labels\[1\]: .*3 values of 0\.0 or 1\.0 are expected"),
        (SCORE, "positive", r"labels\[1\]: 'positive' is no score; the model is a regression: a number is expected"),
        (SCORE, "", r"labels\[1\]: the label is empty"),
        (SCORE, float("nan"), r"labels\[1\]: nan; a number is expected, none of them infinite or NaN"),
        (SCORE, [1.0, 2.0], r"labels\[1\]: \(1\.0, 2\.0\); a number is expected"),
        (Task("regression", 2), 1.0, r"labels\[1\]: 1\.0; a list of 2 numbers is expected"),
    ],
    ids=str,
)
def test_label_that_the_task_has_not_is_named_with_what_is_allowed(task: Task, label: Any, message: str) -> None:
    first = {"single_label": "war", "multi_label": "war", "regression": [1.0] * task.num_outputs}[task.kind]
    with pytest.raises(DataError, match=message):
        read(task, [first, label])


def test_labels_of_vectors_are_refused() -> None:
    with pytest.raises(DataError, match="labels of texts: 2 given; a model of vectors has nothing to compare"):
        read(Task("embedding", 8), [1, 2])


def test_label_in_a_file_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,war\n\nb, \n")
    taken = load_examples(tmp_path / "a.csv").take([1])
    with pytest.raises(DataError, match=r"a\.csv, line 4: the label is empty"):
        read_labels(taken, SINGLE, NAMES, "labels of texts")


@pytest.mark.parametrize(("task", "label"), [(SINGLE, "war"), (MULTI, "war;art"), (MULTI, ""), (SCORE, 2.5)], ids=str)
def test_labels_that_are_all_alike_are_refused(task: Task, label: Any) -> None:
    examples = load_examples(["a"] * 16, [label] * 16)
    with pytest.raises(DataError, match=r"labels of test: all 16 are .*; at least two different ones are needed"):
        check_labels(examples, task, NAMES, "labels of test")


def test_few_labels_may_be_alike() -> None:
    check_labels(load_examples(["a"] * 3, ["war"] * 3), SINGLE, NAMES, "labels of test")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            {1: "a", 2: "b", 3: "c"},
            r"ids \[1, 2, 3\]; the model has 3 outputs, 0 to 2.*= \{0: 'a', 1: 'b', 2: 'c'\}",
        ),
        ({0: "a", 2: "c", 5: "b"}, r"ids \[0, 2, 5\]"),
        ({0: "a", 1: "b"}, r"ids \[0, 1\]; the model has 3 outputs"),
        ({0: "a", 1: "b", 2: "a"}, r"classes 0 and 2 are both called 'a'"),
    ],
)
def test_names_that_do_not_tell_classes_apart_are_refused(names: dict[int, str], message: str) -> None:
    check_names(NAMES, 3)
    with pytest.raises(CaptureError, match=message):
        check_names(names, 3)


@pytest.mark.parametrize("label", ["sport;art", ["sport", "art"]])
def test_several_labels_of_a_model_that_does_not_say_so_are_refused_with_what_to_set(label: Any) -> None:
    with pytest.raises(DataError, match=r"several labels.*problem_type = 'multi_label_classification'"):
        read(SINGLE, ["war", label])
