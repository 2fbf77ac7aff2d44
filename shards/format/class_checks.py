"""Compare the label of an utterance in the index with the one in the shard.

An index holds labels as positions in the manifest's list of classes. The utterance's JSON member in the tar
holds the name. If someone reorders the classes in a manifest, every position means another class, and only
the JSON members show it. The reader, `verify`, `info` and `preview` call these checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from shards.format.labels import label_name
from shards.format.schema import LABEL_FIELD, Manifest, Split, read_in_place
from shards.safe_io.bounded_json import parse_json


class WrongManifest(ValueError):
    """The manifest contradicts the files that it names, so no part of the dataset can be trusted.

    It is never skipped, in contrast to a damaged utterance.
    """


def label_field(manifest: Manifest) -> str | None:
    """The field of JSON members that holds the label; None where it is not known.

    Packing writes "label". For tars of other programs that are read in place, indexing records the field.
    """
    if not read_in_place(manifest):
        return "label"
    field = manifest.provenance.get(LABEL_FIELD)
    return field if isinstance(field, str) else None


def parse_metadata(content: bytes, key: str, label: int, manifest: Manifest, at: str) -> dict[str, Any]:
    """The metadata of an utterance, from its JSON member.

    Args:
        content: the JSON member; empty where the utterance has none, which gives an empty dict.
        key: of the utterance.
        label: by the index: position in the manifest's classes.
        manifest: of the dataset.
        at: the shard, for error messages.

    Raises:
        WrongManifest: the metadata name another class than `label`.
        ValueError: the content is not a JSON object.
    """
    at = f"{at}: {key!r:.80}"
    meta = parse_json(content, at) if content else {}
    if not isinstance(meta, dict):
        raise ValueError(f"{at}: its metadata are not a JSON object; pack it again")
    _check_label(meta, label, manifest, at)
    return meta


def count_labels(label: np.ndarray, classes: int) -> np.ndarray:
    """Utterances per class, [C] int64, of these labels [U]; [0] for a dataset without classes."""
    return np.bincount(label, minlength=classes)[:classes]


def check_class_counts(counts: Iterable[np.ndarray], split: Split, at: str) -> None:
    """Compare the manifest's class counts of a split with those [C] of the indexes of all its shards.

    Raises:
        WrongManifest: they differ.
    """
    if np.sum([np.zeros(len(split.class_counts), np.int64), *counts], axis=0).tolist() != split.class_counts:
        raise wrong_counts(split, at)


def wrong_counts(split: Split, at: str) -> WrongManifest:
    """The error for class counts that differ from those of the indexes."""
    return WrongManifest(
        f"{at}: class_counts {split.class_counts!s:.100} of the manifest are not those of its shards' "
        "indexes; pack it again"
    )


def _check_label(meta: Mapping[str, Any], label: int, manifest: Manifest, at: str) -> None:
    """Compare the label in the metadata, if there is one, with the class at position `label`."""
    field = label_field(manifest)
    given = None if field is None else meta.get(field)
    if not manifest.classes:
        if given is None:
            return
        raise WrongManifest(
            f"{at}: its label is {given!r:.60} in the shard, and the manifest has no classes: were they "
            "removed? restore them, or pack it again"
        )
    name = manifest.classes[label]
    if given is None or _same(given, label, name):
        return
    raise WrongManifest(
        f"{at}: its label is {given!r:.60} in the shard, and {name!r:.60} by the manifest: "
        "were its classes changed? restore them, or pack it again"
    )


def _same(given: Any, label: int, name: str) -> bool:
    """Whether a label of a JSON member is the name of the class, or its position."""
    # Early versions stored labels with white space around.
    if isinstance(given, str) and given.strip() == name.strip():
        return True
    try:
        if label_name(given, [name]) == name:
            return True
    except ValueError:
        return False
    # Tars of other programs may hold positions, if they were indexed with a given list of classes.
    return isinstance(given, int | float) and not isinstance(given, bool) and given == label
