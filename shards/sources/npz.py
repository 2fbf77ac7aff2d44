"""Packed arrays in one `.npz`.

Per modality `X` [sum T, D] with `X_offsets` [U + 1], or `X` [U, T, D]; `label` [U] (integers, named by
`label_names`, or names); `ids` [U]; optionally `split` [U]; every further array over the U utterances is
metadata.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shards.expansion import load_npz
from shards.schema import Sample
from shards.sources.source import Source, class_names

SPLIT = "all"


def read(source: str | Path, labels: list[str] | None = None) -> Source:
    """Read packed arrays.

    Args:
        source: the `.npz`; loaded into memory.
        labels: class names in order; default the file's `label_names`, else "class_0" and so on.

    Raises:
        ValueError: no such file, or arrays of another layout; names the array.
    """
    path = Path(source)
    try:
        arrays = load_npz(path, str(path))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    for name in ("ids", "label"):
        if name not in arrays:
            raise ValueError(f"{path}: array {name!r} is missing; it has {sorted(arrays)}")
    ids, label = arrays.pop("ids"), arrays.pop("label")
    given = labels if labels is not None else [str(name) for name in arrays.pop("label_names", [])] or None
    arrays.pop("label_names", None)
    utterances = len(ids)
    splits = arrays.pop("split", np.full(utterances, SPLIT))
    if label.dtype.kind in "iu":
        names = class_names(given, int(label.max(initial=-1)) + 1, str(path))
        if label.min(initial=0) < 0:
            raise ValueError(f"{path}: label: {label.min()}, while labels count from 0")
        label_names = [names[i] for i in label.tolist()]
    else:
        label_names = [str(name) for name in label]
        names = given or sorted(set(label_names))
    offsets = {name: _offsets(arrays, name, path) for name in _modalities(arrays)}
    # [U, T, D] is [U * T, D] with equal lengths.
    features = {name: x.reshape(-1, x.shape[-1]) for name in offsets for x in [arrays.pop(name)]}
    for name in offsets:
        arrays.pop(f"{name}_offsets", None)
    per_utterance = {
        **{name: len(bounds) - 1 for name, bounds in offsets.items()},
        **{name: len(array) if array.ndim else 0 for name, array in arrays.items()},
        "label": len(label),
        "split": len(splits),
    }
    for name, length in per_utterance.items():
        if length != utterances:
            raise ValueError(f"{path}: {name} has {length} utterances, ids {utterances}")
    if not features:
        raise ValueError(
            f"{path}: no features; needed is X [sum T, D] with X_offsets [U + 1], or X [U, T, D]"
        )

    def samples() -> Iterator[Sample]:
        for i in range(utterances):
            yield Sample(
                key=str(ids[i]),
                split=str(splits[i]),
                label=label_names[i],
                features={name: x[offsets[name][i] : offsets[name][i + 1]] for name, x in features.items()},
                meta={name: array[i].tolist() for name, array in arrays.items()},
                source=str(path),
            )

    return Source(samples(), names, {"format": "npz", "source": str(source)}, utterances)


def _modalities(arrays: dict[str, np.ndarray]) -> list[str]:
    return [
        name for name, x in arrays.items() if f"{name}_offsets" in arrays or (x.ndim == 3 and x.shape[2] > 0)
    ]


def _offsets(arrays: dict[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    """First step of each utterance, [U + 1]."""
    x = arrays[name]
    if f"{name}_offsets" not in arrays:
        return np.arange(len(x) + 1) * x.shape[1]
    bounds = arrays[f"{name}_offsets"]
    if x.ndim != 2:
        raise ValueError(f"{path}: {name} has shape {x.shape}, but with {name}_offsets it must be [sum T, D]")
    if bounds.ndim != 1 or bounds.dtype.kind not in "iu" or len(bounds) == 0:
        raise ValueError(f"{path}: {name}_offsets must be integers [U + 1]")
    if bounds[0] != 0 or bounds[-1] != len(x) or (np.diff(bounds.astype(np.int64)) < 0).any():
        raise ValueError(f"{path}: {name}_offsets must rise from 0 to {len(x)}, the steps of {name}")
    return bounds
