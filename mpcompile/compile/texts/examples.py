"""Reads texts and labels from files, lists and data sets, and checks them before any slow work starts.

Shapes: N is the number of examples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeGuard, runtime_checkable

import numpy as np
import numpy.typing as npt

from mpcompile.compile.texts.files import COLUMNS, Table, check_columns, read_table
from mpcompile.errors import DataError

Label = str | int | float | tuple[str | int | float, ...]
"""The name or id of a class, a score, or several of one of them."""

_SOURCES = (
    "a list of strings, a list of (string, string) pairs, a datasets.Dataset, "
    "or the path of a .csv, .jsonl or .parquet file"
)
_EXTENSIONS = (".csv", ".jsonl", ".parquet")
_MAX_CLASSES_SHOWN = 10
_MAX_VALUE_CHARS = 60


@dataclass(frozen=True)
class Examples:
    """Texts with, if known, their labels.

    Attributes:
        texts: (N,) the only or first text of each example.
        text_pairs: (N,) the second text of each example, or None when the examples are single texts.
        labels: (N,) as read, before ``mpcompile.compile.texts.labels.read_labels``; None when unknown.
        place: tells a reader where a row's label stands, e.g. ``reviews.csv, line 7``; None when it is not known.
    """

    texts: tuple[str, ...]
    text_pairs: tuple[str, ...] | None = None
    labels: tuple[Label, ...] | None = None
    place: Callable[[int], str] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name, values in (("text_pairs", self.text_pairs), ("labels", self.labels)):
            if values is not None and len(values) != len(self.texts):
                raise DataError(f"{name}: {len(values)} for {len(self.texts)} texts. Give one for each text.")

    def __len__(self) -> int:
        return len(self.texts)

    def join(self, other: "Examples") -> "Examples":
        """Returns these examples and other ones behind them, both with pairs and labels or both without."""
        pairs = None
        if self.text_pairs is not None and other.text_pairs is not None:
            pairs = (*self.text_pairs, *other.text_pairs)
        labels = None
        if self.labels is not None and other.labels is not None:
            labels = (*self.labels, *other.labels)
        return Examples((*self.texts, *other.texts), pairs, labels)

    def take(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> "Examples":
        """Returns the examples at these positions, in this order."""
        place = self.place
        return Examples(
            texts=tuple(self.texts[i] for i in indices),
            text_pairs=None if self.text_pairs is None else tuple(self.text_pairs[i] for i in indices),
            labels=None if self.labels is None else tuple(self.labels[i] for i in indices),
            place=None if place is None else lambda row: place(int(indices[row])),
        )


@runtime_checkable
class _Dataset(Protocol):
    """The part of ``datasets.Dataset`` that is used, so that the package need not be installed."""

    @property
    def column_names(self) -> list[str]: ...

    def __getitem__(self, column: str, /) -> object: ...


def load_examples(source: object, labels: object = None, name: str = "texts") -> Examples:
    """Reads texts, text pairs and labels.

    Args:
        source: a list of strings, a list of (string, string) pairs, an ``Examples``, a ``datasets.Dataset``, or the
            path of a ``.csv``, ``.jsonl`` or ``.parquet`` file, with columns ``text``, ``text_pair`` and ``label``.
        labels: one label an example; replaces those of ``source``.
        name: what error messages call ``source``.

    Raises:
        DataError: ``source`` is malformed, holds no example, or does not fit ``labels``.
    """
    examples = source if isinstance(source, Examples) else _from_table(_to_table(source, name))
    if len(examples) == 0:
        raise DataError(f"{_describe(source, name)}: no examples. Give at least one text.")
    if labels is None:
        return examples
    given = _to_sequence(labels, "labels")
    if len(given) != len(examples):
        raise DataError(f"labels: {len(given)} labels for {len(examples)} {name}. Give one label for each text.")
    checked = tuple(_check_label(label, f"labels[{row}]") for row, label in enumerate(given))
    return Examples(examples.texts, examples.text_pairs, checked, lambda row: f"labels[{row}]")


def labels_to_ids(
    labels: Sequence[Label] | npt.NDArray[np.int64],
    id2label: Mapping[int, str],
    name: str | Callable[[int], str] = "labels",
) -> npt.NDArray[np.int64]:
    """Maps labels to the class ids of a model.

    A label is the name of a class or its id; a name wins over an id. Where the names of the classes are numbers
    themselves (``{0: "1", 1: "2"}``), numbers are names if all the labels are names, and ids if all of them are ids.

    Args:
        labels: (N,) class names, or class ids as numbers or digits; "1.0" is the id 1, as pandas writes ids where
            one of them is missing.
        id2label: the model's ``config.id2label``.
        name: what error messages call ``labels``, or each of them.

    Returns:
        (N,) class ids.

    Raises:
        DataError: a label is not a class of the model.
    """
    by_name = {str(class_name): int(class_id) for class_id, class_name in id2label.items()}
    keys = [_name_or_id(str(label), by_name) for label in labels]
    by_id = {str(int(class_id)): int(class_id) for class_id in id2label}
    if any(_is_number(class_name) for class_name in by_name):
        tables = (by_name, by_id)
        known = next((table for table in tables if all(key in table for key in keys)), by_name)
    else:
        known = {**by_id, **by_name}
    for row, (key, label) in enumerate(zip(keys, labels, strict=True)):
        if key not in known or isinstance(label, bool):
            place = name(row) if callable(name) else f"{name}[{row}]"
            raise DataError(f"{place}: {shorten(label)} is not a class of the model. {explain_classes(key, by_name)}")
    return np.array([known[key] for key in keys], dtype=np.int64)


def explain_classes(key: str, by_name: Mapping[str, int]) -> str:
    """Says which labels the model has, and what to do about one that it has not."""
    shown = ", ".join(repr(class_name) for class_name in list(by_name)[:_MAX_CLASSES_SHOWN])
    more = ", ..." if len(by_name) > _MAX_CLASSES_SHOWN else ""
    fix = f"Use these names, or the class ids 0 to {len(by_name) - 1}."
    similar = [class_name for class_name in by_name if class_name.casefold() == key.strip().casefold()]
    if similar:
        fix = f"Did you mean {similar[0]!r}?"
    elif all(class_name == f"LABEL_{class_id}" for class_name, class_id in by_name.items()):
        fix = f"These names are placeholders: use the class ids 0 to {len(by_name) - 1}, or set model.config.id2label."
    return f"The model has {len(by_name)} classes: {shown}{more}. {fix}"


def _name_or_id(label: str, by_name: Mapping[str, int]) -> str:
    """A label as the name or the digits that it is looked up by."""
    whole, point, rest = label.strip().partition(".")
    is_id = label not in by_name and point and _is_number(whole) and rest.strip("0") == "" and rest
    return str(int(whole)) if is_id else label


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _to_table(source: object, name: str) -> Table:
    if isinstance(source, Path) or (isinstance(source, str) and _is_path(source)):
        return read_table(Path(source))
    if isinstance(source, str):
        raise DataError(
            f"{name}: the string {shorten(source)} is neither a list of texts nor an existing file. Give {_SOURCES}; "
            f"a single text goes in a list."
        )
    if isinstance(source, list | tuple):
        return _table_from_list(source, name)
    if isinstance(source, _Dataset):
        return _table_from_dataset(source, name)
    raise DataError(f"{name}: a {type(source).__name__}, expected {_SOURCES}.")


def _is_path(source: str) -> bool:
    """Tells a path from a text that was passed without a list around it."""
    if source.lower().endswith(_EXTENSIONS):
        return True
    try:
        return Path(source).exists() and source != ""
    except (OSError, ValueError):  # too long for a file name, or holds a NUL
        return False


def _table_from_list(source: Sequence[object], name: str) -> Table:
    def place(row: int) -> str:
        return f"{name}[{row}]"

    pairs = [item for item in source if _is_pair(item)]
    for row, item in enumerate(source):
        if not isinstance(item, str) and not _is_pair(item):
            size = f" of {len(item)}" if isinstance(item, list | tuple) else ""
            raise DataError(
                f"{place(row)}: a {type(item).__name__}{size} ({shorten(item)}), expected a string or two strings."
            )
        if pairs and isinstance(item, str) == _is_pair(source[0]):
            kind, first_kind = ("single text", "pair") if isinstance(item, str) else ("pair", "single text")
            raise DataError(f"{place(row)}: a {kind}, but {place(0)} is a {first_kind}. Give only texts or only pairs.")
    if not pairs:
        return Table({"text": source}, place)
    return Table({"text": [first for first, _ in pairs], "text_pair": [second for _, second in pairs]}, place)


def _is_pair(item: object) -> TypeGuard[Sequence[object]]:
    return isinstance(item, list | tuple) and len(item) == 2


def _table_from_dataset(source: _Dataset, name: str) -> Table:
    found = source.column_names
    if isinstance(found, Mapping):
        splits = ", ".join(map(str, found))
        raise DataError(f"{name}: a data set with the splits {splits}. Give one of them, as in dataset['train'].")
    check_columns(list(found), name)
    columns = {column: _to_sequence(source[column], name) for column in COLUMNS if column in found}
    return Table(columns, lambda row: f"{name}, row {row}")


def _to_sequence(values: object, name: str) -> Sequence[object]:
    """Lists the values of a list, an array, a tensor or a data set's column."""
    for method in ("to_pylist", "tolist"):
        if hasattr(values, method):
            values = getattr(values, method)()
    if isinstance(values, list | tuple):
        return values
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        return list(values)
    raise DataError(f"{name}: a {type(values).__name__} ({shorten(values)}), expected a list.")


def _from_table(table: Table) -> Examples:
    columns = {
        name: tuple(_check_text(value, name, table.place(row)) for row, value in enumerate(table.columns[name]))
        for name in ("text", "text_pair")
        if name in table.columns
    }
    labels = None
    if "label" in table.columns:
        labels = tuple(_check_label(value, table.place(row)) for row, value in enumerate(table.columns["label"]))
    return Examples(columns["text"], columns.get("text_pair"), labels, table.place)


def _check_text(value: object, column: str, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place}: {column} is a {type(value).__name__} ({shorten(value)}), expected a string.")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place}: {column} holds half of a surrogate pair ({value[error.start]!r}), which is no character. "
                "Remove it, or decode the text again."
            ) from error
    return str(value)


def _check_label(value: object, place: str) -> Label:
    """A label of whatever kind; what the model makes of it is judged in ``mpcompile.compile.texts.labels``."""
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(_check_flag_or_label(item, place) for item in value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value)
    raise DataError(
        f"{place}: the label is a {type(value).__name__} ({shorten(value)}), expected the name or id of a class, a "
        "score, or a list of them."
    )


def _check_flag_or_label(value: object, place: str) -> str | int | float:
    """One of several labels; a boolean says whether the label at its position holds."""
    if isinstance(value, bool | np.bool_):
        return float(value)
    label = _check_label(value, place)
    if isinstance(label, tuple):
        raise DataError(f"{place}: the label is a list of lists ({shorten(value)}), expected names, ids or scores.")
    return label


def _describe(source: object, name: str) -> str:
    return str(source) if isinstance(source, str | Path) else name


def shorten(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _MAX_VALUE_CHARS else shown[: _MAX_VALUE_CHARS - 3] + "..."
