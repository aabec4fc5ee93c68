"""Reads the columns of CSV, JSON lines and Parquet files, and names the line of every defect.

Only the shape of a file is judged here (encoding, quoting, number of fields, keys); what a cell may hold is judged in
``mpcompile.compile.texts.examples``, once for files, lists and data sets alike.
"""

import csv
import importlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mpcompile.errors import DataError

COLUMNS = ("text", "text_pair", "label")

logger = logging.getLogger(__name__)

_CSV_FIELD_SIZE_LIMIT_CHARS = 2**31 - 1  # csv wants a C long, which has 32 bits on Windows
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SAVE_AS_UTF_8 = "is {0}, and UTF-8 is expected: convert it (`iconv -f {0} -t utf-8`)"
_UNPACK = "is compressed with {0}: unpack it first (`{1}`)"
_SIGNATURES = {
    b"\xff\xfe\0\0": _SAVE_AS_UTF_8.format("UTF-32"),
    b"\0\0\xfe\xff": _SAVE_AS_UTF_8.format("UTF-32"),
    b"\xff\xfe": _SAVE_AS_UTF_8.format("UTF-16"),
    b"\xfe\xff": _SAVE_AS_UTF_8.format("UTF-16"),
    b"\x1f\x8b": _UNPACK.format("gzip", "gunzip"),
    b"BZh": _UNPACK.format("bzip2", "bunzip2"),
    b"\xfd7zXZ\0": _UNPACK.format("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": _UNPACK.format("zstd", "unzstd"),
    b"PK\x03\x04": "is a zip archive, as xlsx files are, too: unpack it, or save the sheet as csv",
    b"PAR1": "is a Parquet file: give it the extension .parquet",
    b"\xd0\xcf\x11\xe0": "is an xls workbook: save the sheet as csv",
}
"""What files that are not text begin with, and what to do about them."""
_COMPRESSED = {".gz": "gunzip", ".bz2": "bunzip2", ".xz": "unxz", ".zst": "unzstd", ".zip": "unzip"}


@dataclass(frozen=True)
class Table:
    """The columns that mpcompile uses, as read.

    Attributes:
        columns: values by column name; only names in ``COLUMNS``, always with ``text``, all of one length.
        place: tells a reader where a row stands, e.g. ``reviews.csv, line 7``.
    """

    columns: Mapping[str, Sequence[object]]
    place: Callable[[int], str]


def read_table(path: Path) -> Table:
    """Reads the text, text_pair and label columns of a file; other columns are ignored with a warning.

    Args:
        path: a ``.csv``, ``.jsonl`` or ``.parquet`` file.

    Raises:
        DataError: the file is missing, empty, of another kind, or malformed.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file. Check the path.")
    if path.is_dir():
        raise DataError(f"{path}: is a directory. Give the path of one {_allowed_extensions()} file.")
    reader = _READERS.get(path.suffix.lower())
    if path.suffix.lower() in _COMPRESSED:
        raise DataError(f"{path}: is compressed: unpack it first (`{_COMPRESSED[path.suffix.lower()]}`).")
    if reader is None:
        raise DataError(
            f"{path}: unknown extension {path.suffix!r}, expected {_allowed_extensions()}. Convert the file to one."
        )
    return reader(path)


def check_columns(found: Sequence[str], place: str) -> None:
    """Requires a ``text`` column, and warns about the columns that are not used.

    Raises:
        DataError: there is no ``text`` column, or one that mpcompile uses is there twice.
    """
    listed = ", ".join(repr(column) for column in found) or "none"
    if "text" not in found:
        hint = ""
        if len(found) == 1 and any(separator in found[0] for separator in ";\t|"):
            hint = " The fields must be separated by commas."
        raise DataError(
            f"{place}: no column 'text'; columns found: {listed}. "
            f"Rename the column that holds the texts to 'text' (optional: 'text_pair', 'label').{hint}"
        )
    for column in COLUMNS:
        if found.count(column) > 1:
            raise DataError(
                f"{place}: column {column!r} stands {found.count(column)} times; columns found: {listed}. Keep one."
            )
    ignored = [column for column in found if column not in COLUMNS]
    if ignored:
        logger.warning("%s: columns %s are ignored; only text, text_pair and label are used", place, ignored)


def _read_csv(path: Path) -> Table:
    text = _decode(path)
    nul_at = text.find("\0")
    if nul_at >= 0:
        line = text.count("\n", 0, nul_at) + 1
        raise DataError(f"{path}, line {line}: a NUL byte, which text cannot hold. Remove it or export the file again.")
    lines, rows = _split_csv(path, text)
    header = rows[0]
    check_columns(header, f"{path}, line {lines[0]}")
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(header):
            raise DataError(
                f"{path}, line {line}: {len(row)} fields where the header has {len(header)} ({', '.join(header)}). "
                'Put a text that holds commas or line breaks in double quotes, and write a quote inside it as "".'
            )
    columns = {name: [row[header.index(name)] for row in rows[1:]] for name in COLUMNS if name in header}
    return Table(columns, lambda row: f"{path}, line {lines[row + 1]}")


def _split_csv(path: Path, text: str) -> tuple[list[int], list[list[str]]]:
    """Splits text that is not blank into rows, and says on which line each starts.

    Blank lines are skipped; between the rows of a single column they are rows themselves, of an empty field.
    """
    lines: list[int] = []
    rows: list[list[str]] = []
    start_line, filled = 1, 0
    with _large_csv_fields():
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            for row in reader:
                if row or (rows and len(rows[0]) == 1):
                    lines.append(start_line)
                    rows.append(row or [""])
                    filled = len(rows) if row else filled
                start_line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(_explain_csv_error(path, start_line, reader.line_num, str(error))) from error
    return lines[:filled], rows[:filled]


def _explain_csv_error(path: Path, start_line: int, line: int, reason: str) -> str:
    fix = 'Put the whole field in double quotes and write a quote inside it as "".'
    if "unexpected end of data" in reason:
        return f"{path}, line {start_line}: a quote is opened in this row and never closed. {fix}"
    row = "" if start_line == line else f" (in the row that starts on line {start_line}: is a quote left open there?)"
    if "expected after" in reason:
        return (
            f"{path}, line {line}: text after a closing quote{row}; only a comma or the end of line may follow. {fix}"
        )
    return f"{path}, line {line}: not valid CSV ({reason}){row}. {fix}"


@contextmanager
def _large_csv_fields() -> Iterator[None]:
    """Lifts the csv module's limit of 131,072 characters a field, which is global to the process, for a while."""
    previous = csv.field_size_limit(_CSV_FIELD_SIZE_LIMIT_CHARS)
    try:
        yield
    finally:
        csv.field_size_limit(previous)


def _read_jsonl(path: Path) -> Table:
    lines: list[int] = []
    rows: list[dict[str, object]] = []
    for line, content in enumerate(_decode(path).split("\n"), start=1):  # splitlines() would also cut at U+2028
        if not content.strip():
            continue
        row = _parse_json_object(content, f"{path}, line {line}")
        if not rows:
            check_columns(list(row), f"{path}, line {line}")
        for name in COLUMNS:
            if rows and (name in row) != (name in rows[0]):
                here, first = ("has", "has none") if name in row else ("has no", "has one")
                raise DataError(
                    f"{path}, line {line}: {here} {name!r} although line {lines[0]} {first}; keys found: "
                    f"{', '.join(map(repr, row)) or 'none'}. Give every line the same keys."
                )
        lines.append(line)
        rows.append(row)
    columns = {name: [row[name] for row in rows] for name in COLUMNS if name in rows[0]}
    return Table(columns, lambda row: f"{path}, line {lines[row]}")


def _parse_json_object(content: str, place: str) -> dict[str, object]:
    example = '{"text": "...", "label": "..."}'
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not valid JSON ({error}). Write one object a line, such as {example}.") from error
    if not isinstance(value, dict):
        raise DataError(f"{place}: a JSON {type(value).__name__}, expected an object such as {example}.")
    return value


def _read_parquet(path: Path) -> Table:
    try:
        pyarrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise DataError(
            f"{path}: reading Parquet needs the package pyarrow, which is not installed. "
            "Run `pip install mpcompile[parquet]`, or save the file as .csv or .jsonl."
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            found = list(file.schema_arrow.names)
            check_columns(found, str(path))
            table = file.read(columns=[name for name in COLUMNS if name in found])
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error}). Write it again.") from error
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    return Table(columns, lambda row: f"{path}, row {row}")


def _decode(path: Path) -> str:
    """Reads UTF-8, with or without a byte order mark."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.") from error
    for signature, meaning in _SIGNATURES.items():
        if content.startswith(signature):
            raise DataError(f"{path}: {meaning}.")
    if content[:100].count(b"\0") >= max(len(content[:100]) // 3, 1):
        raise DataError(f"{path}: {_SAVE_AS_UTF_8.format('UTF-16')}.")
    content = content.removeprefix(_BYTE_ORDER_MARK)
    if not content.strip():
        raise DataError(f"{path}: the file is empty. It needs texts{_csv_header_hint(path)}.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not valid UTF-8. "
            "Save the file as UTF-8 (for example `iconv -f latin1 -t utf-8`)."
        ) from error


def _csv_header_hint(path: Path) -> str:
    return " under a header `text[,text_pair][,label]`" if path.suffix.lower() == ".csv" else ""


def _allowed_extensions() -> str:
    return ", ".join(list(_READERS)[:-1]) + " or " + list(_READERS)[-1]


_READERS: Mapping[str, Callable[[Path], Table]] = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
