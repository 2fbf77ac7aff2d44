"""Computational sequences of the CMU Multimodal SDK: HDF5 files, `NAME/data/ENTRY/{features, intervals}`.

An HDF5 file can name any other file of the machine as its content: by external links, external storage and
virtual datasets. A forged file could thus get private files packed and shared, so all three are refused.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from shards.safe_io.expansion import check_expansion
from shards.safe_io.git_lfs import refuse_pointer

# What h5py raises for damaged files.
DAMAGED = (KeyError, OSError, RuntimeError, TypeError, ValueError, AttributeError, MemoryError)
# Longest chain of soft links.
DEEPEST = 16


class RefersElsewhere(ValueError):
    """A file names another one as its content."""


def name_of(path: Path) -> str:
    """The name that a file's sequence has inside it, such as "COVAREP".

    Raises:
        ValueError: not such a file, it refers to other files, or h5py is not installed.
    """
    refuse_pointer(path)
    try:
        with _h5py().File(path, "r") as file:
            names = list(file)
            if len(names) == 1 and has(_member(file, names[0], path), "data"):
                return names[0]
    except RefersElsewhere:
        raise
    except DAMAGED as error:
        raise ValueError(f"{path}: not a computational sequence ({error})") from None
    raise ValueError(f"{path}: holds {names}, not one computational sequence NAME/data/VIDEO")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The entries of a file's sequence, a mapping by video or segment.

    Raises:
        ValueError: as of `name_of`.
    """
    name = name_of(path)
    with _h5py().File(path, "r") as file:
        yield _member(_member(file, name, path), "data", path)


def has(data: Any, entry: str) -> bool:
    """Whether a sequence has an entry. Does not open it."""
    return bool(data.id.links.exists(entry.encode()))


def read_entry(data: Any, entry: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """An entry's features [T, D] and intervals [T, 2], in seconds.

    Raises:
        ValueError: they are missing, of other shapes, in another file, or far larger than the file's bytes
            can hold; names the file and the entry.
    """
    try:
        group = _member(data, entry, path)
        features, intervals = (_read(_member(group, name, path), path) for name in ("features", "intervals"))
    except RefersElsewhere:
        raise
    except DAMAGED as error:
        raise ValueError(f"{path}: {entry}: no features and intervals ({error})") from None
    if features.ndim != 2 or intervals.shape != (len(features), 2):
        raise ValueError(
            f"{path}: {entry}: features {features.shape} {features.dtype} with intervals {intervals.shape}; "
            "expected numbers [steps, D] and [steps, 2]"
        )
    return features, intervals


def _member(group: Any, name: str, path: Path, depth: int = 0) -> Any:
    """A member of an HDF5 group, reached without leaving the file.

    Raises:
        RefersElsewhere: a link on the way leads into another file.
        KeyError: there is none.
    """
    h5py = _h5py()
    if depth > DEEPEST:
        raise KeyError(f"{name}: links that lead to links without end")
    if name.startswith("/"):
        group = group.file
    for part in filter(None, name.split("/")):
        if not isinstance(group, h5py.Group):
            raise KeyError(f"{group.name} is no group")
        if not has(group, part):
            raise KeyError(part)
        # Not h5py's `get`, which opens the target of a link before it reports the link.
        kind, link = group.id.links.get_info(part.encode()).type, part.encode()
        if kind == h5py.h5l.TYPE_EXTERNAL:
            other, within = group.id.links.get_val(link)
            raise RefersElsewhere(
                f"{path}: {group.name.rstrip('/')}/{part} is a link to {within.decode(errors='replace')!r} "
                f"in another file, {other.decode(errors='replace')!r}: such files are not read; write all "
                "data into one file"
            )
        if kind == h5py.h5l.TYPE_SOFT:
            group = _member(group, group.id.links.get_val(link).decode(), path, depth + 1)
        elif kind == h5py.h5l.TYPE_HARD:
            group = group[part]
        else:
            raise KeyError(f"{part} is a link of an unknown kind")
    return group


def _read(dataset: Any, path: Path) -> np.ndarray:
    """All of a dataset of numbers, if the file itself holds them.

    Raises:
        RefersElsewhere: its content lies in another file.
        ValueError: it is no dataset of numbers, or claims more than the file can hold.
    """
    at = f"{path}: {dataset.name}"
    if not isinstance(dataset, _h5py().Dataset):
        raise ValueError(f"{dataset.name} is no dataset")
    elsewhere = [file for file, *_ in dataset.external or ()]
    if dataset.is_virtual:
        elsewhere += [source.file_name for source in dataset.virtual_sources()]
    if elsewhere or dataset.is_virtual:
        raise RefersElsewhere(
            f"{at} takes its content from {', '.join(sorted({*map(repr, elsewhere)}))}: such files are not "
            "read; write all data into one file"
        )
    if dataset.dtype.kind not in "fiu":
        raise ValueError(f"{dataset.name} holds {dataset.dtype}, and no numbers")
    # The storage size is itself a claim of the file.
    stored = min(int(dataset.id.get_storage_size()), path.stat().st_size)
    elements = max(int(dataset.size or 0), math.prod(dataset.chunks or ()))
    check_expansion(elements * dataset.dtype.itemsize, stored, at)
    values: np.ndarray = dataset[()]
    return values


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise ValueError('computational sequences need h5py: pip install "awtpn-at-scale[extract]"') from None
    return h5py
