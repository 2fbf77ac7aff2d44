"""The target of a shard's utterances, from the columns of its index: labels, or values.

All values of a shard are read and checked at once, when it is opened. An index whose values contradict the
manifest is never skipped as damage, because then no target can be trusted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shards.format.class_checks import WrongManifest
from shards.format.index import ShardIndex
from shards.format.labels import label_name
from shards.format.schema import OPTIONAL, Manifest
from shards.format.targets import Target, default_range

# In `labels_of`: the utterance has no label.
NO_LABEL = -1


def labels_of(index: ShardIndex, target: Target, classes: Sequence[str], at: str) -> np.ndarray:
    """Positions of the utterances' labels in `classes`, [U] int64; 0 where the target is not one class.

    Args:
        index: of the shard.
        target: the dataset's classes, one column whose values are class names, or numbers.
        classes: names.
        at: the index, for error messages.

    Returns:
        With `NO_LABEL` where the column holds no label (such as empty text).

    Raises:
        WrongManifest: the column holds a label that is not among the classes.
    """
    if target.is_classes:
        return index.label.astype(np.int64)
    if target.type != "classification":
        return np.zeros(len(index.key), np.int64)
    [column] = target.columns
    values, which = np.unique(index.columns[column], return_inverse=True)
    positions = {name: i for i, name in enumerate(classes)}
    names = [name_of(value) for value in values.tolist()]
    if wrong := [name for name in names if name is not None and name not in positions]:
        raise WrongManifest(f"{at}: column {column!r:.60} holds {wrong[0]!r:.60}, which is not a class")
    found = np.array([NO_LABEL if name is None else positions[name] for name in names], np.int64)
    return found[which]


def name_of(value: object) -> str | None:
    """The class that a value of a column names; None if it is a missing value, such as empty text."""
    try:
        return label_name(value)
    except ValueError:
        return None


def values_of_index(index: ShardIndex, target: Target, manifest: Manifest, at: str) -> np.ndarray:
    """The target's values, [U, K] float64, NaN where one is missing; [U, 0] where the target is one class.

    Args:
        index: of the shard.
        target: its columns are among those of the manifest.
        manifest: of the dataset.
        at: the index, for error messages.

    Raises:
        WrongManifest: a value is infinite or out of the column's range, or missing in a column that every
            utterance has.
    """
    values = np.empty((len(index.key), target.num_values))
    if target.num_values == 0:
        return values
    for i, (name, bounds) in enumerate(target.columns.items()):
        values[:, i] = index.columns[name]
        known = values[:, i]
        if manifest.columns[name] == OPTIONAL:
            known = known[~np.isnan(known)]
        low, high = bounds or default_range(target)
        # Written so that NaN is refused, too.
        fits = (low <= known) & (known <= high)
        if not fits.all():
            raise WrongManifest(
                f"{at}: column {name!r:.60} holds {known[~fits][0]:g}, where the values of its "
                f"{target.type} are {low:g} to {high:g}; choose another target, or pack it again"
            )
    return values
