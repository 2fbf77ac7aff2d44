"""Rows of a table: a `.csv`, or a `.jsonl` with an object per line."""

from __future__ import annotations

import csv
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
        ValueError: no such table, or not one; names the row.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such table")
    if path.suffix not in (".csv", ".jsonl"):
        raise ValueError(f"{path}: a table is a .csv or a .jsonl file")
    return _csv_rows(path, text) if path.suffix == ".csv" else _jsonl_rows(path)


def _jsonl_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
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
    # utf-8-sig: spreadsheets put a byte order mark before the first column's name.
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
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
