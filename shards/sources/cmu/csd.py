"""Computational sequences of the CMU Multimodal SDK: HDF5 files, `NAME/data/ENTRY/{features, intervals}`.

Features are numbers [steps, D], or in a sequence of words byte strings [steps, 1].

An HDF5 file can name any other file of the machine as its content: by external links, external storage and
virtual datasets. A forged file could thus get private files packed and shared, so all three are refused.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from shards.safe_io.expansion import check_expansion
from shards.safe_io.git_lfs import refuse_pointer
from shards.sources.reading.transcripts import checked_text

T = TypeVar("T")
# What h5py raises for damaged files.
DAMAGED = (KeyError, OSError, RuntimeError, TypeError, ValueError, AttributeError, MemoryError)
# Longest chain of soft links.
DEEPEST = 16
LONGEST_WORD = 4096  # bytes


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


def holds_words(path: Path) -> bool:
    """Whether the features of a sequence are words, by its first entry.

    Raises:
        ValueError: as of `name_of`.
    """
    with opened(path) as data:
        for entry in data:
            try:
                features = _member(_member(data, entry, path), "features", path)
                return _h5py().check_string_dtype(features.dtype) is not None
            except RefersElsewhere:
                raise
            except DAMAGED as error:
                raise ValueError(f"{path}: {entry}: no features ({error})") from None
    return False


def read_entry(data: Any, entry: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """An entry's features [T, D] and intervals [T, 2], in seconds.

    Raises:
        ValueError: they are missing, of other shapes, in another file, or far larger than the file's bytes
            can hold; names the file and the entry.
    """
    features, intervals = _read_both(data, entry, path, _read)
    if features.ndim != 2 or intervals.shape != (len(features), 2):
        raise ValueError(
            f"{path}: {entry}: features {features.shape} {features.dtype} with intervals {intervals.shape}; "
            "expected numbers [steps, D] and [steps, 2]"
        )
    return features, intervals


def read_words(data: Any, entry: str, path: Path) -> tuple[list[str], np.ndarray]:
    """An entry's words, one per step, and intervals [T, 2], in seconds.

    Raises:
        ValueError: as of `read_entry`; or a word is no text.
    """
    words, intervals = _read_both(data, entry, path, _read_strings)
    if intervals.shape != (len(words), 2):
        raise ValueError(
            f"{path}: {entry}: {len(words)} words with intervals {intervals.shape}; expected [steps, 2]"
        )
    try:
        return [checked_text(word) for word in words], intervals
    except ValueError as error:
        raise ValueError(f"{path}: {entry}: {error}") from None


def _read_both(data: Any, entry: str, path: Path, read: Callable[[Any, Path], T]) -> tuple[T, np.ndarray]:
    """An entry's features, by `read`, and its intervals."""
    try:
        group = _member(data, entry, path)
        return read(_member(group, "features", path), path), _read(_member(group, "intervals", path), path)
    except RefersElsewhere:
        raise
    except DAMAGED as error:
        raise ValueError(f"{path}: {entry}: no features and intervals ({error})") from None


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
    _check_within(dataset, path)
    if dataset.dtype.kind not in "fiu":
        raise ValueError(f"{dataset.name} holds {dataset.dtype}, and no numbers")
    values: np.ndarray = dataset[()]
    return values


def _read_strings(dataset: Any, path: Path) -> list[bytes]:
    """All of a dataset [steps] or [steps, 1] of strings; errors as of `_read`."""
    _check_within(dataset, path)
    kind = _h5py().check_string_dtype(dataset.dtype)
    if kind is None:
        raise ValueError(f"{dataset.name} holds {dataset.dtype}, and no text")
    if dataset.ndim not in (1, 2) or dataset.shape[1:] not in ((), (1,)):
        raise ValueError(f"{dataset.name} has shape {dataset.shape}; expected a word per step")
    if kind.length is not None:
        words = dataset[()].reshape(-1).tolist()
    else:
        # One by one: many steps may refer to one long string, which would be read once for each of them.
        words = [_bounded(dataset[i], dataset) for i in range(len(dataset))]
    return [_bounded(word, dataset) for word in words]


def _bounded(word: Any, dataset: Any) -> bytes:
    content: bytes = word if isinstance(word, bytes) else word[0]
    if len(content) > LONGEST_WORD:
        raise ValueError(
            f"{dataset.name} has a word of {len(content)} bytes; at most {LONGEST_WORD} are read"
        )
    return content


def _check_within(dataset: Any, path: Path) -> None:
    """Raise as `_read` if it is no dataset, its content is in another file, or is too large for the file."""
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
    # The storage size is itself a claim of the file.
    stored = min(int(dataset.id.get_storage_size()), path.stat().st_size)
    elements = max(int(dataset.size or 0), math.prod(dataset.chunks or ()))
    check_expansion(elements * dataset.dtype.itemsize, stored, at)


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise ValueError('computational sequences need h5py: pip install "awtpn-at-scale[extract]"') from None
    return h5py
