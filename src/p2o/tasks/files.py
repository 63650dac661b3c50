"""Reads JSON and CSV files with every value as written, and recognizes files that are not data.

The loaders of `datasets` guess types: a text "007" next to a number becomes 7, a text that looks like a date becomes a
date. Gold answers are texts, so nothing is guessed here. Files are read into memory; Parquet has typed columns and is
read by `datasets`.
"""

import csv
import io
import json
import math
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
from datasets import Dataset, Features, Json

FILE_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
SHOWN = 5
MOST_PLAIN_DIGITS = 40
SPLITS = ("train", "validation", "valid", "dev", "eval", "test")

Row = dict[str, Any]


class FileFault(ValueError):
    """A file that cannot be read; the message names the file and the faulty rows, if any, one per line."""


def suffix_of(path: Path) -> str:
    """The suffix of the format, without that of compression; lower case."""
    return (path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix).lower()


def check_is_data_file(path: Path) -> None:
    """
    Raises:
        FileFault: an empty file, a Git LFS pointer, a web page, or a format that does not match the suffix.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(512)
        file.seek(-min(size, 4), io.SEEK_END)
        tail = file.read()
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head.strip():
        raise FileFault(f"{path} is empty.")
    if start.startswith(b"version https://git-lfs"):
        raise FileFault(f"{path} is a Git LFS pointer, not the data: fetch that with `git lfs pull`.")
    if start.startswith((b"<!doctype html", b"<html")):
        raise FileFault(f"{path} is a web page, not the data: perhaps an error page, or one that asks for a login.")
    if start.startswith(b"<?xml"):
        raise FileFault(f"{path} is XML, perhaps a server's error message, not the data.")
    if path.suffix == ".parquet":
        if not head.startswith(b"PAR1"):
            raise FileFault(f"{path} is not a Parquet file: it does not begin with PAR1.")
        if tail != b"PAR1":
            raise FileFault(f"{path} is cut off: a Parquet file ends with PAR1. Download it again.")
    elif path.suffix not in COMPRESSED:
        for magic, what in ((b"\x1f\x8b", "gzip"), (b"PK\x03\x04", "zip"), (b"PAR1", "Parquet")):
            if head.startswith(magic):
                raise FileFault(f"{path} is a {what} file; rename it with the matching suffix.")


def read_file(path: Path) -> dict[str, Dataset]:
    """The rows of a JSON, JSON Lines or CSV file by split; the split is "" if the file names none.

    Raises:
        FileFault: it cannot be read; the first faulty rows are named.
    """
    check_is_data_file(path)
    try:
        with fsspec.open(str(path), "rb", compression="infer") as file:
            raw = file.read()
    except Exception as error:  # of any decompressor, or one that is not installed
        raise FileFault(f"{path} cannot be decompressed: {error or type(error).__name__}.") from error
    if not raw.strip():
        raise FileFault(f"{path} is empty.")
    table = suffix_of(path) in (".csv", ".tsv")
    text = _decoded(path, raw, header=table)
    if table:
        return {"": as_dataset(_csv_columns(path, text))}
    found = _json_rows(path, text)
    if re.search(r"\\u[dD][89a-fA-F]", text):
        _refuse_surrogates(path, found)
    return {split: as_dataset(columns_of(rows)) for split, rows in found.items()}


def _decoded(path: Path, raw: bytes, header: bool) -> str:
    for mark, encoding in ((b"\xff\xfe\x00\x00", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if raw.startswith(mark):
            try:
                return raw.decode(encoding)
            except UnicodeDecodeError as error:
                name = encoding.upper()
                raise FileFault(
                    f"{path} starts with a {name} byte-order mark but is not valid {name} ({error.reason})."
                ) from None
    if b"\x00" in raw[:4]:
        raise FileFault(f"{path} looks like UTF-16 without a byte-order mark. Convert it: iconv -f UTF-16LE -t UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        faults = []
        for row, line in enumerate(line for line in raw.splitlines() if line.strip()):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                byte, start = line[error.start], error.start
                where = "the header" if header and row == 0 else f"row {row - header}"
                faults.append(f"{path}, {where}: not UTF-8 (byte {byte:#04x}, {start} bytes into the line).")
        fix = "Convert the file; if it is Latin-1: iconv -f LATIN1 -t UTF-8"
        raise FileFault("\n".join([*_first(faults), fix])) from None


def _first(faults: list[str]) -> list[str]:
    more = len(faults) - SHOWN
    return [*faults[:SHOWN], f"… and {more} more"] if more > 0 else faults


# -- JSON --------------------------------------------------------------------------------------------------------------


def _json_rows(path: Path, text: str) -> dict[str, list[Row]]:
    """JSON Lines; or an array of objects, alone or under a key; or an object of lists, one per column."""
    lines = [line for line in text.split("\n") if line.strip()]
    whole = None
    if text.lstrip()[:1] == "[" or not _is_json(lines[0]) or (len(lines) == 1 and suffix_of(path) == ".json"):
        try:
            whole = json.loads(text)
        except ValueError as error:
            # If some lines are objects, the file is JSON Lines, and invalid lines are reported by row.
            if text.lstrip()[:1] == "[" or not any(line[:1] == "{" and _is_json(line) for line in lines[:100]):
                raise FileFault(f"{path}: not valid JSON ({error}).") from None
        except RecursionError:
            raise FileFault(f"{path}: JSON that is nested too deeply.") from None
    if isinstance(whole, dict):
        return {split: _objects(path, rows) for split, rows in _inside(path, whole).items()}
    if whole is not None:
        return {"": _objects(path, whole if isinstance(whole, list) else [whole])}
    rows, faults = [], []
    for row, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            faults.append(f"{path}, row {row}: not valid JSON ({error}).")
    if faults:
        raise FileFault("\n".join(_first(faults)))
    return {"": _objects(path, rows)}


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _inside(path: Path, whole: Row) -> dict[str, list[Any]]:
    """The rows of a file that is one object, by split.

    Raises:
        FileFault: several lists of objects.
    """
    values = list(whole.values())
    flat = bool(values) and all(isinstance(v, list) and not any(isinstance(i, dict) for i in v) for v in values)
    if flat and len({len(v) for v in values}) == 1:  # pandas: orient="list"
        return {"": [dict(zip(whole, row, strict=True)) for row in zip(*values, strict=True)]}
    if values and all(isinstance(v, dict) and v and all(k.isdecimal() for k in v) for v in values):
        keys = list(dict.fromkeys(key for v in values for key in v))  # pandas: orient="columns"
        return {"": [{column: v.get(key) for column, v in whole.items()} for key in keys]}
    lists = {key: v for key, v in whole.items() if isinstance(v, list) and any(isinstance(i, dict) for i in v)}
    if not lists or any(is_chat(v) for v in lists.values()):
        return {"": [whole]}
    if len(lists) == 1:
        return {"": next(iter(lists.values()))}
    if all(key in SPLITS for key in lists):
        return lists
    raise FileFault(f"{path} has several lists of rows: {', '.join(lists)}. Put the one to use into a separate file.")


def _objects(path: Path, rows: list[Any]) -> list[Row]:
    faults = [
        f"{path}, row {row}: {type(value).__name__}, not an object with columns."
        for row, value in enumerate(rows)
        if not isinstance(value, dict)
    ]
    if faults:
        raise FileFault("\n".join(_first(faults)))
    if not any(rows):
        raise FileFault(f"{path} has no rows.")
    return rows


def _refuse_surrogates(path: Path, found: dict[str, list[Row]]) -> None:
    faults = []
    for rows in found.values():
        for row, value in enumerate(rows):
            try:
                json.dumps(value, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                faults.append(f"{path}, row {row}: half of a surrogate pair (\\ud8xx), which is not a character.")
    if faults:
        raise FileFault("\n".join([*_first(faults), "Correct or remove these rows."]))


def is_chat(value: Any) -> bool:
    """Whether it is a list of messages with `role` and `content`, or with ShareGPT's `from` and `value`."""
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and any(
        isinstance(value.get(who), str) and what in value for who, what in (("role", "content"), ("from", "value"))
    )


def columns_of(rows: list[Row]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


# -- CSV ---------------------------------------------------------------------------------------------------------------


def _csv_columns(path: Path, text: str) -> dict[str, list[Any]]:
    header = text.lstrip().split("\n", 1)[0]
    # A header without a comma but with another common separator is unambiguous.
    separator = "," if "," in header and "\t" not in header else next((s for s in "\t;" if s in header), ",")
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[list[str]] = []
    try:
        for fields in reader:
            if fields:
                rows.append(fields)
    except csv.Error as error:
        raise FileFault(f"{path}, row {len(rows) - 1}: not valid CSV ({error}; line {reader.line_num}).") from None
    names = [name.strip() or f"column {index}" for index, name in enumerate(rows[0])]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise FileFault(f"{path} has several columns named {', '.join(twice)}.")
    if len(rows) == 1:
        raise FileFault(f"{path} has a header ({', '.join(names)}) and no rows.")
    faults = [
        f"{path}, row {row}: {len(fields)} fields, the header has {len(names)}: put texts with {separator!r} in quotes."
        for row, fields in enumerate(rows[1:])
        if len(fields) > len(names)
    ]
    if faults:
        raise FileFault("\n".join(_first(faults)))
    cells = [[field or None for field in fields] + [None] * (len(names) - len(fields)) for fields in rows[1:]]
    return {name: _numbers([row[index] for row in cells]) for index, name in enumerate(names)}


def _numbers(cells: list[str | None]) -> list[Any]:
    """A column of numbers as numbers if that preserves their spelling: not for 007, 2.50 or 1e3."""
    for kind in (int, float):
        try:
            found = [None if cell is None else kind(cell) for cell in cells]
        except ValueError:
            continue
        written = [number for number in found if number is not None]
        if all(map(math.isfinite, written)) and list(map(str, written)) == [cell for cell in cells if cell is not None]:
            return found
    return list(cells)


# -- columns -----------------------------------------------------------------------------------------------------------


def as_dataset(columns: dict[str, list[Any]]) -> Dataset:
    """Columns of any JSON values, unchanged, except that numbers in a column with texts become texts."""
    arrays: dict[str, Any] = {}
    features: dict[str, Any] = {}
    for name, values in columns.items():
        arrays[name], features[name] = _typed(values)
    return Dataset.from_dict(arrays, features=Features(features) if arrays else None)


def _typed(values: list[Any]) -> tuple[list[Any], Any]:
    kinds = {type(value) for value in values} - {type(None)}
    if kinds <= {str, int, float} and str in kinds and len(kinds) > 1:
        values = [value if value is None or isinstance(value, str) else number_text(value) for value in values]
    try:
        array = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError):
        if kinds <= {int, float}:  # too large for 64 bits, or for a float to hold
            return [None if value is None else number_text(value) for value in values], _feature(pa.string())
        # Encoded here, since the feature would parse a text that is valid JSON, such as "7".
        return [None if value is None else json.dumps(_bounded(value)) for value in values], Json()
    return values, _feature(array.type)


def _feature(kind: pa.DataType) -> Any:
    return Features.from_arrow_schema(pa.schema([("value", kind)]))["value"]


def _bounded(value: Any) -> Any:
    """Integers beyond 64 bits as text and non-finite numbers as null, which the reader does not support."""
    if isinstance(value, dict):
        return {key: _bounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_bounded(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, int) and not -(2**63) <= value < 2**63 else value


def number_text(number: int | float) -> str | None:
    """A number in plain digits unless there are many: `3` for 3.0, `0.0000001` for 1e-7; None if not finite."""
    if isinstance(number, float) and not math.isfinite(number):
        return None
    text = repr(number)
    exponent = text.partition("e")[2]
    if exponent and abs(int(exponent)) <= MOST_PLAIN_DIGITS:
        text = format(Decimal(text), "f")
    return text.removesuffix(".0")
