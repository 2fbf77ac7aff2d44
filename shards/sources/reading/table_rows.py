"""Rows of a table: a `.csv`, or a `.jsonl` with an object per line."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shards.safe_io.bounded_json import parse_json
from shards.safe_io.git_lfs import refuse_pointer_text
from shards.safe_io.printable import get_logger

SEPARATORS = ",;\t"

logger = get_logger(__name__)


def read_rows(path: Path, text: Collection[str], raw: Collection[str] = ()) -> list[dict[str, Any]]:
    """Read a table.

    Columns that `text` names are found in any case ("Label"), with white space around or not.

    The separator of a CSV is the most frequent one in its header: comma, semicolon or tab. Empty rows and
    columns without a name, which spreadsheets write, are skipped. A column becomes integers, else floats, if
    every value of it that is not empty is written as one ("01" stays text); its empty values are None.

    Args:
        path: the table.
        text: columns that have a meaning; in a CSV they stay text even if all values are numbers.
        raw: further columns of a CSV that stay text, by their exact names.

    Raises:
        ValueError: no such file, not a table, or not in UTF-8; names the row or the column.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such table")
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".jsonl"):
        raise ValueError(f"{path}: a table is a .csv or a .jsonl file")
    rows = _csv_rows(path, text, raw) if suffix == ".csv" else _jsonl_rows(path)
    return [{_column(name, row, text): value for name, value in row.items()} for row in rows]


def _column(name: str, names: Collection[str], known: Collection[str]) -> str:
    """The known column that a name means, unless the table has that one, too; else the name itself."""
    plain = name.strip().lower()
    return plain if plain in known and plain not in names else name


def _text(path: Path) -> str:
    """The table's text, without the byte order mark that spreadsheets write at its begin."""
    content = path.read_bytes()
    refuse_pointer_text(content, str(path))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not in UTF-8 (byte {error.start}); save it again in that encoding, which spreadsheets "
            'call "CSV UTF-8"'
        ) from None


def _jsonl_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    # Not splitlines: it also splits at characters that may be inside JSON strings.
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        row = parse_json(line, f"{path}: line {number}")
        if not isinstance(row, dict):
            raise ValueError(f"{path}: line {number}: must be an object")
        rows.append(row)
    return rows


def _csv_rows(path: Path, text: Collection[str], raw: Collection[str]) -> list[dict[str, Any]]:
    content = _text(path)
    separator = max(SEPARATORS, key=content.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator)
    try:
        header, *lines = [cells for cells in reader if any(map(str.strip, cells))] or [[]]
    except csv.Error as error:
        raise ValueError(
            f"{path}: up to line {reader.line_num}: not CSV ({error}); is a quote not closed?"
        ) from None
    named = [name for name in header if name]
    if twice := [name for name in named if named.count(name) > 1]:
        raise ValueError(f"{path}: column {twice[0]!r} is there twice; rename or remove one")
    for number, cells in enumerate(lines, start=1):
        if len(cells) != len(header):
            raise ValueError(
                f"{path}: row {number} has {len(cells)} fields, the header {len(header)}; put a field that "
                f"contains {separator!r} into quotes"
            )
    columns = dict(zip(header, zip(*lines, strict=True), strict=True)) if lines else {}
    if nameless := sum(not name and any(cells[i] for cells in lines) for i, name in enumerate(header)):
        logger.warning("%s: %d columns without a name in the header are not used", path, nameless)
    converted = {
        name: list(values) if name.strip().lower() in text or name in raw else _numbers(values)
        for name, values in columns.items()
        if name
    }
    return [dict(zip(converted, row, strict=True)) for row in zip(*converted.values(), strict=True)]


def _numbers(values: Sequence[str]) -> list[Any]:
    """The values as int or float, None where they are empty; unchanged unless all others are numbers."""
    filled = [value for value in values if value.strip()]
    kind = _number_of(filled) if filled else str
    return list(values) if kind is str else [kind(value) if value.strip() else None for value in values]


def _number_of(values: Sequence[str]) -> Callable[[str], Any]:
    """int or float if every value is written as one, else str."""
    for kind in (int, float):
        try:
            numbers = [kind(value) for value in values]
        except ValueError:
            continue
        if kind is float and np.isfinite(numbers).all():
            return float
        if kind is int and [str(number) for number in numbers] == list(values):
            return int
        if kind is int:
            return str
    return str
