"""The label of an utterance by two witnesses: its index, with the manifest's classes, and its JSON member.

An index holds positions. Whoever changes the order of the classes in a manifest gives every utterance of two
classes the other's label, and nothing but the metadata in the tar still knows better.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from shards.format.labels import label_name
from shards.format.schema import LABEL_FIELD, Manifest, Split, read_in_place


class WrongManifest(ValueError):
    """The manifest contradicts what it names, so no part of the dataset can be relied on."""


def label_field(manifest: Manifest) -> str | None:
    """The field of JSON members that holds the label; None where that is not known.

    Packing writes it. Tars that others made, and that are read in place, have it where indexing was told.
    """
    if not read_in_place(manifest):
        return "label"
    field = manifest.provenance.get(LABEL_FIELD)
    return field if isinstance(field, str) else None


def check_label(meta: Mapping[str, Any], key: str, label: int, manifest: Manifest, at: str) -> None:
    """Compare the label of an utterance's metadata with the name that the manifest has for its label.

    Args:
        meta: content of the JSON member; one that has no label says nothing.
        key: of the utterance.
        label: position in the manifest's classes.
        manifest: of the dataset.
        at: the shard, for the message.

    Raises:
        WrongManifest: they differ.
    """
    field = label_field(manifest)
    given = None if field is None else meta.get(field)
    name = manifest.classes[label]
    if given is None or _same(given, label, name):
        return
    raise WrongManifest(
        f"{at}: {key!r:.80}: its label is {given!r:.60} in the shard, and {name!r:.60} by the manifest: "
        "were its classes changed? restore them, or pack it again"
    )


def check_class_counts(counts: Iterable[np.ndarray], split: Split, at: str) -> None:
    """Compare the manifest's class counts of a split with those [C] of the indexes of all its shards.

    Raises:
        WrongManifest: they differ.
    """
    if np.sum([np.zeros(len(split.class_counts), np.int64), *counts], axis=0).tolist() != split.class_counts:
        raise wrong_counts(split, at)


def wrong_counts(split: Split, at: str) -> WrongManifest:
    """The error of class counts that are not those of the indexes."""
    return WrongManifest(
        f"{at}: class_counts {split.class_counts!s:.100} of the manifest are not those of its shards' "
        "indexes; pack it again"
    )


def _same(given: Any, label: int, name: str) -> bool:
    """Whether a label as a tar has it names the class `name`, or is the number of its position."""
    if isinstance(given, str) and given.strip() == name.strip():  # as early versions took labels
        return True
    try:
        if label_name(given, [name]) == name:
            return True
    except ValueError:
        return False
    # Of tars that were indexed with given classes.
    return isinstance(given, int | float) and not isinstance(given, bool) and given == label
