"""Rows of a table: a `.csv`, or a `.jsonl` with an object per line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np


def read_rows(path: Path, text: Collection[str]) -> list[dict[str, Any]]:
    """Read a table.

    A CSV column becomes integers, else floats, where every value of it is written as one ("01" stays text).

    Args:
        path: the table.
        text: CSV columns that stay text in any case.

    Raises:
        ValueError: no such table, not one, or not in UTF-8; names the row.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such table")
    if path.suffix not in (".csv", ".jsonl"):
        raise ValueError(f"{path}: a table is a .csv or a .jsonl file")
    return _csv_rows(path, text) if path.suffix == ".csv" else _jsonl_rows(path)


def _text(path: Path) -> str:
    """The table's text, without the byte order mark that spreadsheets put before the first column's name."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not in UTF-8 (byte {error.start}); save it again in that encoding, of which a "
            'spreadsheet\'s is "CSV UTF-8"'
        ) from None


def _jsonl_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    # Not splitlines: text in JSON may hold other marks that it takes for ends of lines.
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}: line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}: line {number}: must be an object")
        rows.append(row)
    return rows


def _csv_rows(path: Path, text: Collection[str]) -> list[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    try:
        rows: list[dict[str, Any]] = list(reader)
    except csv.Error as error:
        raise ValueError(
            f"{path}: after line {reader.line_num}: not CSV ({error}); is a quote not closed?"
        ) from None
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise ValueError(
                f"{path}: row {number} has more or fewer fields than the header; quote its commas"
            )
    for name in rows[0].keys() - set(text) if rows else ():
        convert = _number_of([row[name] for row in rows])
        for row in rows:
            row[name] = convert(row[name])
    return rows


def _number_of(values: list[str]) -> Callable[[str], Any]:
    """int or float where every value is written as one, else str."""
    for kind in (int, float):
        try:
            numbers = [kind(value) for value in values]
        except ValueError:
            continue
        if kind is float and np.isfinite(numbers).all():
            return float
        if kind is int and [str(number) for number in numbers] == values:
            return int
        if kind is int:
            return str
    return str
