"""Tests of examples, and of the readers of files they come from."""

import bz2
import csv
import gzip
import json
import lzma
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpcompile.compile.texts.examples import Examples, labels_to_ids, load_examples
from mpcompile.errors import DataError
from tests.paths import ROOT

SENTIMENT = {0: "negative", 1: "positive"}
GENERIC = {0: "LABEL_0", 1: "LABEL_1"}
STARS = {0: "1", 1: "2", 2: "3"}


class FakeDataset:
    """Has the two members of datasets.Dataset that are used."""

    def __init__(self, **columns: list[Any]) -> None:
        self._columns = columns

    @property
    def column_names(self) -> list[str]:
        return list(self._columns)

    def __getitem__(self, column: str) -> list[Any]:
        return self._columns[column]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def fail(source: object, **arguments: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_examples(source, **arguments)
    return str(caught.value)


def test_list_of_strings() -> None:
    assert load_examples(["a", ""]) == Examples(texts=("a", ""))


def test_list_of_pairs() -> None:
    assert load_examples([("a", "b"), ["c", "d"]]) == Examples(("a", "c"), ("b", "d"))


def test_tuple_of_two_strings_is_two_texts() -> None:
    assert load_examples(("a", "b")) == Examples(("a", "b"))


def test_examples_pass_through() -> None:
    examples = Examples(("a",), None, ("x",))
    assert load_examples(examples) is examples


def test_labels_replace_those_of_the_source() -> None:
    assert load_examples(Examples(("a", "b"), None, (0, 0)), labels=np.array([1, 2])).labels == (1, 2)


def test_take_keeps_the_order_of_the_indices() -> None:
    examples = Examples(("a", "b", "c"), ("d", "e", "f"), (1, 2, 3))
    assert examples.take([2, 0]) == Examples(("c", "a"), ("f", "d"), (3, 1))
    assert examples.take(np.array([1])) == Examples(("b",), ("e",), (2,))


def test_examples_of_unequal_lengths_are_refused() -> None:
    with pytest.raises(DataError, match=r"labels: 1 for 2 texts"):
        Examples(("a", "b"), None, (1,))


def test_dataset() -> None:
    source = FakeDataset(text=["a", "b"], text_pair=["c", "d"], label=[1, np.int64(0)])
    assert load_examples(source) == Examples(("a", "b"), ("c", "d"), (1, 0))


def test_dataset_without_text_lists_its_columns() -> None:
    assert "no column 'text'; columns found: 'sentence', 'label'" in fail(FakeDataset(sentence=["a"], label=[1]))


def test_dataset_of_splits_is_refused() -> None:
    class FakeDatasetDict(FakeDataset):
        @property
        def column_names(self) -> Any:
            return {"train": ["text"], "test": ["text"]}

    assert "splits train, test. Give one of them, as in dataset['train']" in fail(FakeDatasetDict())


def test_csv(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'label,text,text_pair\nx,"one, ""two""\nthree",\n\ny,é,z\n')
    expected = Examples(('one, "two"\nthree', "é"), ("", "z"), ("x", "y"))
    assert load_examples(path) == expected
    assert load_examples(str(path)) == expected


def test_csv_with_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    assert load_examples(write(tmp_path, "a.CSV", b"\xef\xbb\xbftext,label\r\na,x\r\n")).labels == ("x",)


def test_csv_field_longer_than_the_default_limit(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    assert len(load_examples(write(tmp_path, "a.csv", "text\n" + "a" * 200_000)).texts[0]) == 200_000
    assert csv.field_size_limit() == limit


def test_unused_columns_are_reported_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_examples(write(tmp_path, "a.csv", "text,labels\na,1\n")).labels is None
    assert "columns ['labels'] are ignored" in caplog.text


@given(rows=st.lists(st.tuples(st.text(), st.text(min_size=1)), min_size=1))
def test_what_the_csv_module_writes_is_read_back(rows: list[tuple[str, str]], tmp_path_factory: Any) -> None:
    rows = [(text.replace("\0", ""), "label " + label.replace("\0", "")) for text, label in rows]
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    assert load_examples(path) == Examples(tuple(t for t, _ in rows), None, tuple(label for _, label in rows))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "the file is empty"),
        ("\n \n", "the file is empty"),
        ("text,label\n", "no examples"),
        ("sentence,label\na,b\n", "line 1: no column 'text'; columns found: 'sentence', 'label'"),
        ("text;label\na;b\n", "The fields must be separated by commas"),
        ("text,text\na,b\n", "column 'text' stands 2 times"),
        ('text,label\n"a\nb",x\nc\n', "line 4: 1 fields where the header has 2 (text, label)"),
        ("text,label\na,x\nb,c,y\n", "line 3: 3 fields where the header has 2"),
        ('text,label\na,x\n"b,y\nc,z\n', "line 3: a quote is opened in this row and never closed"),
        ('text,label\n"a" b,x\n', "line 2: text after a closing quote; only a comma"),
        ('text,label\n"a,x\n"b",y\n', "line 3: text after a closing quote (in the row that starts on line 2"),
        (b"text,label\na,x\ncaf\xe9,y\n", "line 3: byte 0xe9 is not valid UTF-8"),
        ("text,label\na\0b,x\n", "line 2: a NUL byte"),
    ],
)
def test_csv_defect_is_named_with_its_line(tmp_path: Path, content: str | bytes, expected: str) -> None:
    path = write(tmp_path, "a.csv", content)
    message = fail(path)
    assert message.startswith(str(path))
    assert expected in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text\na\n".encode("utf-16"), "is UTF-16, and UTF-8 is expected"),
        ("text\na\n".encode("utf-16-be"), "is UTF-16, and UTF-8 is expected"),
        ("text\na\n".encode("utf-16-le"), "is UTF-16, and UTF-8 is expected"),
        ("text\na\n".encode("utf-32"), "is UTF-32, and UTF-8 is expected"),
        (gzip.compress(b"text\na\n"), "is compressed with gzip: unpack it first (`gunzip`)"),
        (bz2.compress(b"text\na\n"), "is compressed with bzip2"),
        (lzma.compress(b"text\na\n"), "is compressed with xz"),
        (b"PK\x03\x04" + bytes(20), "is a zip archive"),
        (b"PAR1" + bytes(20), "is a Parquet file: give it the extension .parquet"),
    ],
    ids=["utf-16", "utf-16-be", "utf-16-le", "utf-32", "gzip", "bzip2", "xz", "zip", "parquet"],
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_file_that_is_no_utf_8_text_is_named_as_what_it_is(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    assert expected in fail(write(tmp_path, name, content))


def test_compressed_file_is_named_by_its_extension(tmp_path: Path) -> None:
    assert "is compressed: unpack it first (`gunzip`)" in fail(write(tmp_path, "a.csv.gz", gzip.compress(b"text\na")))


def test_blank_line_of_a_single_column_is_a_row(tmp_path: Path) -> None:
    examples = load_examples(write(tmp_path, "a.csv", "text\na\n\nb\n\n\n"))
    assert examples.texts == ("a", "", "b")


def test_missing_file(tmp_path: Path) -> None:
    assert "no such file" in fail(tmp_path / "none.csv")
    assert "no such file" in fail(str(tmp_path / "none.jsonl"))


def test_directory(tmp_path: Path) -> None:
    assert "is a directory" in fail(tmp_path)


def test_unknown_extension(tmp_path: Path) -> None:
    message = fail(str(write(tmp_path, "a.tsv", "text\na\n")))
    assert "unknown extension '.tsv', expected .csv, .jsonl or .parquet" in message


def test_jsonl(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "a\u2028b", "label": 1}\r\n\n{"text": "", "label": "x"}\n')
    assert load_examples(path) == Examples(("a\u2028b", ""), None, (1, "x"))


@pytest.mark.parametrize(
    ("second_line", "expected"),
    [
        ('{"text": "b"', "line 2: not valid JSON"),
        ('["b", 1]', "line 2: a JSON list, expected an object"),
        ('{"label": 1}', "line 2: has no 'text' although line 1 has one; keys found: 'label'"),
        ('{"text": "b"}', "line 2: has no 'label' although line 1 has one"),
        ('{"text": "b", "label": 1, "text_pair": "c"}', "line 2: has 'text_pair' although line 1 has none"),
        ('{"text": 5, "label": 1}', "line 2: text is a int (5), expected a string"),
        ('{"text": "b", "label": null}', "line 2: the label is a NoneType"),
        ('{"text": "b", "label": true}', "line 2: the label is a bool"),
        ('{"text": "\\ud800", "label": 1}', "line 2: text holds half of a surrogate pair"),
    ],
)
def test_jsonl_defect_is_named_with_its_line(tmp_path: Path, second_line: str, expected: str) -> None:
    assert expected in fail(write(tmp_path, "a.jsonl", '{"text": "a", "label": 0}\n' + second_line))


def test_jsonl_without_text(tmp_path: Path) -> None:
    assert "line 1: no column 'text'; columns found: 'body'" in fail(write(tmp_path, "a.jsonl", '{"body": "a"}'))


def test_parquet(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    table = pyarrow.table({"text": ["a", "b"], "label": [1, 0], "other": [1.5, 2.5]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert load_examples(tmp_path / "a.parquet") == Examples(("a", "b"), None, (1, 0))
    assert load_examples(table) == Examples(("a", "b"), None, (1, 0))


def test_parquet_defects(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "null.parquet")
    assert "row 1: text is a NoneType" in fail(tmp_path / "null.parquet")
    assert "not a readable Parquet file" in fail(write(tmp_path, "bad.parquet", "text\na\n"))


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install mpcompile[parquet]" in fail(write(tmp_path, "a.parquet", "x"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ([], "texts: no examples"),
        ("a single text", "the string 'a single text' is neither a list of texts nor an existing file"),
        ("x" * 10_000, "neither a list of texts nor an existing file"),
        ("", "neither a list of texts nor an existing file"),
        (["a", 3], "texts[1]: a int (3), expected a string or two strings"),
        (["a", None], "texts[1]: a NoneType"),
        ([("a", "b", "c")], "texts[0]: a tuple of 3"),
        ([("a", "b"), ("c", 4)], "texts[1]: text_pair is a int (4)"),
        (["a", ("b", "c")], "texts[1]: a pair, but texts[0] is a single text"),
        ([("b", "c"), "a"], "texts[1]: a single text, but texts[0] is a pair"),
        ({"text": ["a"]}, "texts: a dict, expected a list of strings"),
        (5, "texts: a int, expected a list of strings"),
    ],
)
def test_defect_in_a_list_is_named_with_its_position(source: object, expected: str) -> None:
    assert expected in fail(source)


def test_error_uses_the_name_of_the_argument() -> None:
    assert fail([1], name="test_texts").startswith("test_texts[0]")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1], "labels: 1 labels for 2 texts"),
        ("ab", "labels: a str ('ab'), expected a list"),
        ([1, None], "labels[1]: the label is a NoneType"),
        ([1, [[2]]], "labels[1]: the label is a list of lists"),
        ([1, [None]], "labels[1]: the label is a NoneType"),
        (5, "labels: a int (5), expected a list"),
    ],
)
def test_defect_in_labels(labels: object, expected: str) -> None:
    assert expected in fail(["a", "b"], labels=labels)


def test_class_names_ids_and_digits_are_class_ids() -> None:
    labels: list[Any] = ["positive", 0, "1", np.int64(0)]
    ids = labels_to_ids(labels, SENTIMENT)
    assert ids.dtype == np.int64
    assert ids.tolist() == [1, 0, 1, 0]


def test_generic_names_and_their_numbers_are_class_ids() -> None:
    assert labels_to_ids(["LABEL_1", "1", 1, "LABEL_0"], GENERIC).tolist() == [1, 1, 1, 0]


def test_names_that_are_numbers_win_over_ids() -> None:
    assert labels_to_ids(["1", "2", 3], STARS).tolist() == [0, 1, 2]
    assert labels_to_ids([1, 2], STARS).tolist() == [0, 1]


def test_ids_of_classes_named_by_numbers_when_all_labels_are_ids() -> None:
    assert labels_to_ids([0, 1, 2], STARS).tolist() == [0, 1, 2]


def test_ids_that_pandas_wrote_as_floats_are_ids() -> None:
    assert labels_to_ids(["1.0", "0.0", 1.0], SENTIMENT).tolist() == [1, 0, 1]
    assert labels_to_ids(["1.0", "2.0"], {0: "1.0", 1: "2.0"}).tolist() == [0, 1]


@pytest.mark.parametrize("label", ["1.5", "1.", ".0", "-1.0", "2.0", "nan"])
def test_fraction_is_no_id(label: str) -> None:
    with pytest.raises(DataError, match="is not a class of the model"):
        labels_to_ids(["0.0", label], SENTIMENT)


def test_names_and_ids_are_not_mixed_when_names_are_numbers() -> None:
    with pytest.raises(DataError, match=r"labels\[0\]: 0 is not a class of the model"):
        labels_to_ids([0, 3], STARS)


@pytest.mark.parametrize(
    ("label", "id2label", "expected"),
    [
        (
            "neutral",
            SENTIMENT,
            r"labels\[1\]: 'neutral' .* The model has 2 classes: 'negative', 'positive'\. Use these",
        ),
        ("Positive", SENTIMENT, r"Did you mean 'positive'\?"),
        ("positive", GENERIC, r"placeholders: use the class ids 0 to 1, or set model\.config\.id2label"),
        (1.5, SENTIMENT, r"labels\[1\]: 1\.5 is not a class"),
        (2, SENTIMENT, r"labels\[1\]: 2 is not a class"),
        (-1, SENTIMENT, r"labels\[1\]: -1 is not a class"),
        ("x", {i: f"c{i}" for i in range(150)}, r"The model has 150 classes: 'c0', .*'c9', \.\.\."),
    ],
)
def test_unknown_label_is_named_with_its_row(label: str | int, id2label: dict[int, str], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        labels_to_ids([0, label], id2label)


def test_string_keys_of_a_raw_config_are_accepted() -> None:
    id2label = json.loads('{"0": "negative", "1": "positive"}')
    assert labels_to_ids(["positive", 0], id2label).tolist() == [1, 0]


def test_import_is_light() -> None:
    code = (
        "import sys, numpy, mpcompile; before = set(sys.modules); import mpcompile.compile.texts.examples;"
        "print({'torch', 'transformers', 'pandas', 'pyarrow', 'datasets'} & (set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
