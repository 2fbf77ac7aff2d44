"""Select rows of a split by their metadata, and those that have a target; by indexes, without the shards.

So each fold of a cross-validation can use the same dataset, and a target may be missing in some utterances.
`FeatureStream` calls it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from shards.format.class_checks import WrongManifest, count_labels
from shards.format.index import ShardIndex
from shards.format.labels import found_classes
from shards.format.schema import OPTIONAL, Manifest
from shards.format.targets import Target
from shards.storage.store import Store
from shards.streaming.reader import ShardReader
from shards.streaming.target_columns import NO_LABEL, labels_of, values_of_index

# Number of values shown in an error.
SHOWN = 20
# Types of values that may be compared with a column of each kind, and the hint for other values.
KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "bool": (bool,),
    "int": (int, float),
    "float": (int, float),
    OPTIONAL: (int, float),
}
HINTS = {
    "str": 'the column is text: write its values in quotes, as "04"',
    "bool": "the column is true or false: write one of these, without quotes",
    "int": "the column holds numbers: write them without quotes",
    "float": "the column holds numbers: write them without quotes",
    OPTIONAL: "the column holds numbers: write them without quotes",
}
# With more different values a column is an identifier or a measurement, and not a class.
MOST_CLASSES = 1_000


@dataclass(frozen=True)
class Selection:
    """Which utterances of a split are used.

    Attributes:
        rows: per shard the rows, ascending; None if all are used.
        class_counts: [C] int64, their number per class of the target; [0] where it has no classes.
        without_target: per shard the rows that match the selection, but have no known value of the target;
            empty if there are none.
    """

    rows: list[np.ndarray] | None
    class_counts: np.ndarray
    without_target: list[np.ndarray]


def classes_of(store: Store, manifest: Manifest, target: Target, at: str) -> list[str]:
    """The names of a target's classes; none if its values are numbers.

    Those of a column are its different values in all splits of the dataset, in the order of
    `labels.found_classes`, so that all streams of the dataset have the same. The indexes of all shards are
    read then.

    Raises:
        ValueError: a column holds no class or too many, names that differ only in case or white space, or an
            index is damaged.
        OSError: the store cannot be reached.
    """
    if target.is_classes:
        return manifest.classes
    if target.type != "classification":
        return []
    [column] = target.columns
    found: Counter[Any] = Counter()
    for split in manifest.splits:
        reader = ShardReader(store, manifest, split)
        for index in reader.map(reader.index, range(len(reader.shards))):
            values, counts = np.unique(index.columns[column], return_counts=True)
            found.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
            if len(found) > MOST_CLASSES:
                raise ValueError(
                    f"{at}: column {column!r:.60} has more than {MOST_CLASSES} different values, which is "
                    "too many for classes; choose another data.target"
                )
    return found_classes(found, f"{at}: column {column!r:.60}", list(found.values()))


def _may_lack_target(manifest: Manifest, target: Target) -> bool:
    """Whether an utterance of the dataset may have no known value of the target; by its manifest."""
    if target.is_classes:
        return False
    return target.type == "classification" or all(
        manifest.columns[name] == OPTIONAL for name in target.columns
    )


def select_rows(reader: ShardReader, select: dict[str, Any] | None, at: str) -> Selection:
    """Find the rows that match and have a target.

    Args:
        reader: of the split and target. The indexes of all its shards are read if something is selected, or
            if utterances may lack the target. Utterances of a damaged index count as having one, if damage is
            skipped and nothing is selected.
        select: {column: value or list of values}; a row must match all columns. Values must be of the
            column's kind: "04" is not 4, and true is not 1.
        at: the split's URL, for error messages.

    Raises:
        ValueError: the dataset has no such column, or no utterance of the split has one of the values.
        OSError: the store cannot be reached.
    """
    manifest, select = reader.manifest, select or {}
    if not select and not _may_lack_target(manifest, reader.target):
        counts = reader.split.class_counts if reader.target.is_classes else []
        return Selection(None, np.asarray(counts, np.int64), [])
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
    without: list[np.ndarray] = []
    class_counts = np.zeros(len(reader.classes), np.int64)
    seen: dict[str, set[Any]] = {column: set() for column in wanted}
    for index in reader.map(partial(_index, reader, bool(select)), range(len(reader.shards))):
        if index is None:
            rows.append(np.arange(reader.shards[len(rows)].utterances))
            without.append(np.zeros(0, np.int64))
            continue
        matching = _matching(index, wanted, seen)
        label, known = _labels_and_known(reader, index, f"{at}: {reader.shards[len(rows)].index}")
        rows.append(matching[known[matching]])
        without.append(matching[~known[matching]])
        class_counts += count_labels(label[rows[-1]], len(class_counts))
    for column in wanted:
        if missing := [*wrong_kind[column], *sorted(wanted[column] - seen[column])]:
            present = sorted(seen[column])
            more = f" and {len(present) - SHOWN} more" if len(present) > SHOWN else ""
            raise ValueError(
                f"{at}: no utterance has {column} {missing}; it has {present[:SHOWN]}{more}"
                + (f" ({HINTS[manifest.columns[column]]})" if wrong_kind[column] else "")
            )
    if not any(map(len, without)):
        return Selection(rows if select else None, class_counts, [])
    return Selection(rows, class_counts, without)


def _index(reader: ShardReader, selects: bool, shard: int) -> ShardIndex | None:
    """The index of a shard; None if it is damaged and only decides which utterances have a target.

    These utterances stay in the plan then, and reading reports them as damaged.
    """
    try:
        return reader.index(shard)
    except (ValueError, FileNotFoundError) as error:
        if selects or not reader.skip_damaged or isinstance(error, WrongManifest):
            raise
        return None


def _labels_and_known(reader: ShardReader, index: ShardIndex, at: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels [U] of a shard's utterances, and whether something of their target is known, [U] bool."""
    label = labels_of(index, reader.target, reader.classes, at)
    if reader.target.num_values == 0:
        return label, label != NO_LABEL
    values = values_of_index(index, reader.target, reader.manifest, at)
    return label, np.any(~np.isnan(values), axis=1)


def _matching(index: ShardIndex, wanted: dict[str, set[Any]], seen: dict[str, set[Any]]) -> np.ndarray:
    """Rows of a shard that match; adds the values of the columns to `seen`."""
    match = np.ones(len(index.key), bool)
    for column, values in wanted.items():
        present, which = np.unique(index.columns[column], return_inverse=True)
        # NaN: the utterance lacks the value.
        seen[column].update(value for value in present.tolist() if value == value)
        match &= np.array([value in values for value in present.tolist()], bool)[which]
    return np.flatnonzero(match)


def target_values(reader: ShardReader, rows: Sequence[np.ndarray]) -> np.ndarray:
    """Values of the target of these rows of each shard, [U, K] float64; see `FeatureStream.target_values`."""

    def of_shard(shard: int) -> np.ndarray:
        try:
            name = f"{reader.at}: {reader.shards[shard].index}"
            return values_of_index(reader.index(shard), reader.target, reader.manifest, name)[rows[shard]]
        except (ValueError, FileNotFoundError) as error:
            if not reader.skip_damaged or isinstance(error, WrongManifest):
                raise
            return np.full((len(rows[shard]), reader.target.num_values), np.nan)

    return np.concatenate(list(reader.map(of_shard, range(len(rows)))))
