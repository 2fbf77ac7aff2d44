"""A table of utterances whose features are `.npy` files: CSV or JSONL.

Columns `key`, `split`, `label`, and per modality the path of an array [T, D] relative to the table (empty:
the utterance has none). All further columns are metadata.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shards.expansion import load_npy
from shards.file_names import existing
from shards.schema import BadSample, Sample
from shards.sources.rows import read_rows
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
    rows = read_rows(path, text=(*REQUIRED, *MODALITIES))
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
        path = existing(table.parent / str(row[name]))
        try:
            features[name] = load_npy(path)
        except FileNotFoundError:
            return BadSample(key, f"{name}: no such file {path}", f"{table}: row {number}")
        except (ValueError, OSError) as error:
            return BadSample(key, f"{name}: {error}", f"{table}: row {number}")
    meta = {
        name: value
        for name, value in row.items()
        if name not in (*REQUIRED, *modalities) and value is not None
    }
    return Sample(key, str(row["split"]), str(row["label"]), features, meta, f"{table}: row {number}")
