"""A table of utterances whose features are `.npy` files: CSV or JSONL.

Columns `key`, `split`, `label`, and per modality the path of an array [T, D] relative to the table (empty:
the utterance has none). All further columns are metadata.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shards.schema import BadSample, Sample
from shards.sources.source import Source

MODALITIES = ("audio", "video")
REQUIRED = ("key", "split", "label")


def read(
    source: str | Path, labels: list[str] | None = None, modalities: Sequence[str] = MODALITIES
) -> Source:
    """Read a table.

    A CSV column becomes integers, else floats, where every value of it is written as one ("01" stays text).

    Args:
        source: a `.csv`, or a `.jsonl` with an object per line.
        labels: class names in order; default those of the table, sorted.
        modalities: the columns of paths.

    Raises:
        ValueError: no such table, not one, or a column is missing.
    """
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"{path}: no such table")
    if path.suffix not in (".csv", ".jsonl"):
        raise ValueError(f"{path}: a table is a .csv or a .jsonl file")
    rows = _csv_rows(path) if path.suffix == ".csv" else _jsonl_rows(path)
    for number, row in enumerate(rows, start=1):
        missing = [name for name in REQUIRED if name not in row]
        if missing or not any(name in row for name in modalities):
            needed = f"{', '.join(REQUIRED)} and one of {', '.join(modalities)}"
            raise ValueError(f"{path}: row {number} has columns {list(row)}; needed are {needed}")
    names = labels or sorted({str(row["label"]) for row in rows})
    return Source(
        samples=(_sample(row, number, path, modalities) for number, row in enumerate(rows, start=1)),
        classes=names,
        provenance={"format": "table", "source": str(source)},
        total=len(rows),
    )


def _sample(row: dict[str, Any], number: int, table: Path, modalities: Sequence[str]) -> Sample | BadSample:
    key = str(row["key"]) if row["key"] is not None else ""
    features: dict[str, np.ndarray | None] = {}
    for name in modalities:
        if not row.get(name):
            features[name] = None
            continue
        path = table.parent / str(row[name])
        try:
            features[name] = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            return BadSample(key, f"{name}: no such file {path}", f"{table}: row {number}")
        except (ValueError, EOFError, OSError) as error:
            return BadSample(
                key, f"{name}: {path} is not a plain .npy array ({error})", f"{table}: row {number}"
            )
    meta = {
        name: value
        for name, value in row.items()
        if name not in (*REQUIRED, *modalities) and value is not None
    }
    return Sample(key, str(row["split"]), str(row["label"]), features, meta, f"{table}: row {number}")


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


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    # utf-8-sig: spreadsheets put a byte order mark before the first column's name.
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise ValueError(
                f"{path}: row {number} has more or fewer fields than the header; quote its commas"
            )
    for name in rows[0].keys() - {*REQUIRED, *MODALITIES} if rows else ():
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
