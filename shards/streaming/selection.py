"""Select rows of a split by their metadata. So each fold of a cross-validation can use the same dataset.

`FeatureStream(select=...)` calls it. It reads the indexes of all shards, and no shard.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from shards.format.index import ShardIndex
from shards.format.schema import Manifest
from shards.streaming.reader import INDEX_THREADS, ShardReader

# Number of values shown in an error.
SHOWN = 20
# Types of values that may be compared with a column of each kind, and the hint for other values.
KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "bool": (bool,),
    "int": (int, float),
    "float": (int, float),
}
HINTS = {
    "str": 'the column is text: write its values in quotes, as "04"',
    "bool": "the column is true or false: write one of these, without quotes",
    "int": "the column holds numbers: write them without quotes",
    "float": "the column holds numbers: write them without quotes",
}


def select_rows(
    reader: ShardReader, select: dict[str, Any], manifest: Manifest, at: str
) -> tuple[list[np.ndarray], np.ndarray]:
    """Find the rows that match.

    Args:
        reader: of the split; the indexes of all its shards are read.
        select: {column: value or list of values}; a row must match all columns. Values must be of the
            column's kind: "04" is not 4, and true is not 1.
        manifest: of the dataset.
        at: the split's URL, for error messages.

    Returns:
        Per shard the matching rows, ascending; and the number of them per class, [C] int64.

    Raises:
        ValueError: the dataset has no such column, or no utterance of the split has one of the values.
        OSError: the store cannot be reached.
    """
    wanted: dict[str, set[Any]] = {}
    wrong_kind: dict[str, list[Any]] = {}
    for column, given in select.items():
        if column not in manifest.columns:
            has = sorted(manifest.columns) or "no columns of metadata"
            raise ValueError(f"{at}: no column {column!r} to select by; it has {has}")
        values = [
            value.item() if isinstance(value, np.generic) else value
            for value in (given if isinstance(given, list | tuple | set | np.ndarray) else [given])
        ]
        fitting = KINDS[manifest.columns[column]]
        wrong_kind[column] = [value for value in values if type(value) not in fitting]
        wanted[column] = {value for value in values if type(value) in fitting}

    rows: list[np.ndarray] = []
    class_counts = np.zeros(len(manifest.classes), np.int64)
    seen: dict[str, set[Any]] = {column: set() for column in wanted}
    with ThreadPoolExecutor(INDEX_THREADS) as pool:
        for index in pool.map(reader.index, range(len(reader.shards))):
            matching = _matching(index, wanted, seen)
            rows.append(matching)
            class_counts += np.bincount(index.label[matching], minlength=len(class_counts))
    for column in wanted:
        if missing := [*wrong_kind[column], *sorted(wanted[column] - seen[column])]:
            present = sorted(seen[column])
            more = f" and {len(present) - SHOWN} more" if len(present) > SHOWN else ""
            raise ValueError(
                f"{at}: no utterance has {column} {missing}; it has {present[:SHOWN]}{more}"
                + (f" ({HINTS[manifest.columns[column]]})" if wrong_kind[column] else "")
            )
    return rows, class_counts


def _matching(index: ShardIndex, wanted: dict[str, set[Any]], seen: dict[str, set[Any]]) -> np.ndarray:
    """Rows of a shard that match; adds the values of the columns to `seen`."""
    match = np.ones(len(index.key), bool)
    for column, values in wanted.items():
        present, which = np.unique(index.columns[column], return_inverse=True)
        seen[column].update(present.tolist())
        match &= np.array([value in values for value in present.tolist()], bool)[which]
    return np.flatnonzero(match)
