"""Rows of a split whose metadata have wanted values: one packing serves every fold of a cross-validation."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from shards.index import ShardIndex
from shards.reader import INDEX_THREADS, ShardReader
from shards.schema import Manifest

# Values shown in an error.
SHOWN = 20


def select_rows(
    reader: ShardReader, select: dict[str, Any], manifest: Manifest, at: str
) -> tuple[list[np.ndarray], np.ndarray]:
    """Find the rows that match.

    Args:
        reader: of the split; the indexes of all its shards are read.
        select: {column: value or list of values}; a row must match all columns.
        manifest: of the dataset.
        at: the split's URL, for error messages.

    Returns:
        Per shard the matching rows, ascending; and how many of each class they are, [C] int64.

    Raises:
        ValueError: no such column, or a value that no utterance of the split has.
        OSError: the store cannot be reached.
    """
    wanted: dict[str, set[Any]] = {}
    for column, values in select.items():
        if column not in manifest.columns:
            has = sorted(manifest.columns) or "no columns of metadata"
            raise ValueError(f"{at}: no column {column!r} to select by; it has {has}")
        wanted[column] = set(values) if isinstance(values, list | tuple | set) else {values}

    rows: list[np.ndarray] = []
    class_counts = np.zeros(len(manifest.classes), np.int64)
    seen: dict[str, set[Any]] = {column: set() for column in wanted}
    with ThreadPoolExecutor(INDEX_THREADS) as pool:
        for index in pool.map(reader.index, range(len(reader.shards))):
            matching = _matching(index, wanted, seen)
            rows.append(matching)
            class_counts += np.bincount(index.label[matching], minlength=len(class_counts))
    for column, values in wanted.items():
        if missing := values - seen[column]:
            there = sorted(seen[column])
            more = f" and {len(there) - SHOWN} more" if len(there) > SHOWN else ""
            raise ValueError(
                f"{at}: no utterance has {column} {sorted(missing, key=repr)}; it has {there[:SHOWN]}{more}"
            )
    return rows, class_counts


def _matching(index: ShardIndex, wanted: dict[str, set[Any]], seen: dict[str, set[Any]]) -> np.ndarray:
    """Rows of a shard that match; adds the values that are there to `seen`."""
    match = np.ones(len(index.key), bool)
    for column, values in wanted.items():
        present, which = np.unique(index.columns[column], return_inverse=True)
        seen[column].update(present.tolist())
        match &= np.array([value in values for value in present.tolist()], bool)[which]
    return np.flatnonzero(match)
