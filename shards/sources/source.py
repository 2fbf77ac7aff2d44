"""What every source gives to packing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards.schema import BadSample, Sample

# Labels beyond are not classes: names for billions of them would fill the memory.
MOST_CLASSES = 1 << 16


@dataclass(frozen=True)
class Source:
    """Utterances on their way into a dataset.

    Attributes:
        samples: read once, in order; an utterance that cannot be read is a `BadSample`.
        classes: class names, in the order of their labels.
        provenance: for the manifest: how the features were made.
        total: number of samples.
    """

    samples: Iterator[Sample | BadSample]
    classes: list[str]
    provenance: dict[str, Any]
    total: int


def class_names(labels: list[str] | None, count: int, at: str) -> list[str]:
    """Names of `count` classes: the given ones, else "class_0" and so on.

    Raises:
        ValueError: fewer names than classes, or more than `MOST_CLASSES` of these.
    """
    if count > MOST_CLASSES:
        raise ValueError(f"{at}: labels go up to {count - 1}, while classes are numbered 0, 1, ...")
    if labels is None:
        return [f"class_{i}" for i in range(count)]
    if len(labels) < count:
        raise ValueError(
            f"{at}: labels go up to {count - 1}, but only {len(labels)} names are given: {labels}"
        )
    return list(labels)


def key_of(name: str) -> str:
    """A name as a key: that names a member of a tar (no dots, slashes or spaces) and is shown to people."""
    return "".join(mark if mark.isprintable() and mark not in " ./\\" else "_" for mark in name)


def finite(values: np.ndarray, counts: dict[str, int], modality: str) -> np.ndarray:
    """Features [T, D] with 0 for what is infinite or no number, as the literature does with COVAREP's -inf.

    Args:
        values: features; not altered.
        counts: per modality the steps that were repaired so far; added to.
        modality: of the features.
    """
    bad = ~np.isfinite(values)
    if not bad.any():
        return values
    counts[modality] = counts.get(modality, 0) + int(bad.any(axis=1).sum())
    return np.where(bad, 0, values).astype(values.dtype)
