"""Labels as a task reads them, checked before any slow work starts.

Shapes: N texts, C outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mpcompile.compile.texts.examples import Examples, Label, explain_classes, labels_to_ids, shorten
from mpcompile.contract.task import SEPARATOR, Task
from mpcompile.errors import CaptureError, DataError

_LEAST_TEXTS = 16
"""From this many labels on, all being alike is taken for a mistake."""


def read_labels(examples: Examples, task: Task, id2label: Mapping[int, str], name: str) -> np.ndarray | None:
    """The labels of some texts, None where there are none.

    Args:
        examples: with labels as they were given.
        task: of the model.
        id2label: the model's `config.id2label`.
        name: what error messages call the labels.

    Returns:
        Class ids (N,); whether each label holds, (N, C) bool; scores (N,), or (N, C) where there are several.

    Raises:
        DataError: when a label is not one that the task has.
    """
    if examples.labels is None:
        return None
    if task.kind == "embedding":
        raise DataError(
            f"{name}: {len(examples)} given; a model of vectors has nothing to compare labels with, it is measured "
            "against its own vectors: leave them out"
        )
    for row, label in enumerate(examples.labels):
        if task.kind != "multi_label" and isinstance(label, str) and not label.strip():
            raise DataError(
                f"{_place(examples, name, row)}: the label is empty. Fill it in, or remove the row or the whole label "
                "column."
            )
    if task.kind == "single_label":
        _refuse_sets(examples, id2label, name)
        return labels_to_ids(examples.labels, id2label, lambda row: _place(examples, name, row))
    places = [_place(examples, name, row) for row in range(len(examples))]
    if task.kind == "multi_label":
        return _read_sets(examples.labels, id2label, places)
    rows = [_read_scores(label, task, place) for label, place in zip(examples.labels, places, strict=True)]
    scores = np.array(rows, np.float64)
    return scores[:, 0] if task.num_outputs == 1 else scores


def check_labels(examples: Examples, task: Task, id2label: Mapping[int, str], name: str) -> None:
    """Refuses labels that the task cannot use, or that are all alike, before anything slow.

    Raises:
        DataError: see `read_labels`; or when there are `_LEAST_TEXTS` or more, all alike.
    """
    labels = read_labels(examples, task, id2label, name)
    if labels is None or len(labels) < _LEAST_TEXTS or (labels != labels[:1]).any():
        return
    assert examples.labels is not None
    raise DataError(
        f"{name}: all {len(labels)} are {shorten(examples.labels[0])}; at least two different ones are needed to "
        "measure anything: give texts of every kind (is the file sorted by label?), or leave the labels out"
    )


def check_names(id2label: Mapping[int, str], num_outputs: int) -> None:
    """Refuses names that do not tell the classes of a model apart.

    Raises:
        CaptureError: when ids are not 0 to `num_outputs` - 1, or two classes have one name.
    """
    if sorted(id2label) != list(range(num_outputs)):
        renamed = dict(enumerate(id2label[i] for i in sorted(id2label)))
        raise CaptureError(
            f"id2label: ids {shorten(sorted(id2label))}; the model has {num_outputs} outputs, 0 to {num_outputs - 1}, "
            f"and each needs a name. If they stand in order: model.config.id2label = {shorten(renamed)}"
        )
    for i, name in id2label.items():
        first = next(j for j, other in id2label.items() if other == name)
        if first != i:
            raise CaptureError(
                f"id2label: classes {first} and {i} are both called {name!r}, so that answers and labels do not say "
                "which one is meant; give each a name of its own in model.config.id2label (and label2id)"
            )


def _refuse_sets(examples: Examples, id2label: Mapping[int, str], name: str) -> None:
    """Refuses sets of labels of a model that does not say that it knows several at once."""
    names = {str(class_name): i for i, class_name in id2label.items()}
    for row, label in enumerate(examples.labels or ()):
        parts = _split(label, names)
        if len(parts) > 1 and all(str(part) in names for part in parts):
            raise DataError(
                f"{_place(examples, name, row)}: {shorten(label)} are several labels, and the model's config says "
                "nothing of several at once: set model.config.problem_type = 'multi_label_classification' and save the "
                "model again, or give one label for each text"
            )


def _place(examples: Examples, name: str, row: int) -> str:
    return f"{name}[{row}]" if examples.place is None else examples.place(row)


def _read_sets(labels: Sequence[Label], id2label: Mapping[int, str], places: Sequence[str]) -> np.ndarray:
    """Whether each label holds, (N, C), from names or ids, or from 0.0 and 1.0 for each label."""
    names = {str(name): int(i) for i, name in id2label.items()}
    holds = np.zeros((len(labels), len(names)), bool)
    values: list[str | int | float] = []
    rows: list[int] = []
    for row, label in enumerate(labels):
        if isinstance(label, tuple) and label and all(isinstance(value, float) for value in label):
            holds[row] = _read_flags(label, len(names), places[row])
            continue
        given = _split(label, names)
        values.extend(given)
        rows.extend([row] * len(given))
    ids = labels_to_ids(values, id2label, lambda i: places[rows[i]])
    for row, i in zip(rows, ids, strict=True):
        if holds[row, i]:
            raise DataError(
                f"{places[row]}: {shorten(labels[row])} names a label twice. Name each once; 0 and 1 for each label "
                f"are given as booleans or floats. {explain_classes('', names)}"
            )
        holds[row, i] = True
    return holds


def _split(label: Label, names: Mapping[str, int]) -> tuple[str | int | float, ...]:
    if isinstance(label, tuple):
        return label
    if isinstance(label, str) and label not in names:
        return tuple(part.strip() for part in label.split(SEPARATOR) if part.strip())
    return (label,)


def _read_flags(flags: Sequence[object], num_labels: int, place: str) -> np.ndarray:
    if len(flags) != num_labels or not all(flag in (0.0, 1.0) for flag in flags):
        raise DataError(
            f"{place}: {shorten(flags)}; {num_labels} values of 0.0 or 1.0 are expected, one for each label of the "
            "model, or the names of those that hold"
        )
    return np.array([flag == 1.0 for flag in flags])


def _read_scores(label: Label, task: Task, place: str) -> list[float]:
    """The scores of one text, (C,)."""
    values = label if isinstance(label, tuple) else (label,)
    expected = "a number is" if task.num_outputs == 1 else f"a list of {task.num_outputs} numbers is"
    try:
        scores = [float(value) for value in values]
    except ValueError as error:
        raise DataError(
            f"{place}: {shorten(label)} is no score; the model is a regression: {expected} expected, or no labels"
        ) from error
    if len(scores) != task.num_outputs or not all(math.isfinite(score) for score in scores):
        raise DataError(f"{place}: {shorten(label)}; {expected} expected, none of them infinite or NaN")
    return scores
