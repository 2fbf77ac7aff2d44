"""Computational sequences of the CMU Multimodal SDK: HDF5 files, `NAME/data/ENTRY/{features, intervals}`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def name_of(path: Path) -> str:
    """The name that a file's sequence has inside it, say "COVAREP".

    Raises:
        ValueError: not such a file, or h5py is not installed.
    """
    try:
        with _h5py().File(path, "r") as file:
            names = list(file)
            if len(names) == 1 and "data" in file[names[0]]:
                return names[0]
    except (OSError, TypeError) as error:
        raise ValueError(f"{path}: not a computational sequence ({error})") from None
    raise ValueError(f"{path}: holds {names}, not one computational sequence NAME/data/VIDEO")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The entries of a file's sequence, a mapping by video or segment."""
    name = name_of(path)
    with _h5py().File(path, "r") as file:
        yield file[name]["data"]


def read_entry(data: Any, entry: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """An entry's features [T, D] and intervals [T, 2], in seconds.

    Raises:
        ValueError: it has none, or of other shapes; names the file and the entry.
    """
    try:
        features, intervals = data[entry]["features"][()], data[entry]["intervals"][()]
    except (KeyError, OSError) as error:
        raise ValueError(f"{path}: {entry}: no features and intervals ({error})") from None
    if features.ndim != 2 or features.dtype.kind not in "fiu" or intervals.shape != (len(features), 2):
        raise ValueError(
            f"{path}: {entry}: features {features.shape} {features.dtype} with intervals {intervals.shape}; "
            "needed are numbers [steps, D] and [steps, 2]"
        )
    return features, intervals


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise ValueError('computational sequences need h5py: pip install "awtpn-at-scale[extract]"') from None
    return h5py
