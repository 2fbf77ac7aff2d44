"""Compare the statistics in a manifest with the values in the shards; training standardizes features by them.

`verify` calls this. A manifest with wrong statistics would pass all checks of hashes, but training would
standardize features by wrong values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce
from pathlib import Path
from typing import BinaryIO

import numpy as np

from shards.format.index import ShardIndex
from shards.format.schema import Modality, SplitStatistics
from shards.format.statistics import Statistics, merge, statistics_of

# Bytes of values in memory at a time; their float64 copies take several times as much.
CHUNK_BYTES = 4 << 20
# Accepted differences: this share of the standard deviation, and of the mean float32's own rounding. Features
# are stored as float32 at most, and a feature that never changes has no deviation.
OF_SPREAD = 1e-3
OF_MEAN = 1e-7


def shard_statistics(path: Path, index: ShardIndex, modalities: dict[str, Modality]) -> dict[str, Statistics]:
    """Statistics by modality of all values in a shard, read at the offsets of its index.

    Raises:
        ValueError: the shard ends within an array; names the shard.
    """
    statistics = {}
    with open(path, "rb") as file:
        for name, form in modalities.items():
            none = Statistics(0, np.zeros(form.dim), np.zeros(form.dim))
            statistics[name] = reduce(merge, map(statistics_of, _chunks(file, path, index, name, form)), none)
    return statistics


def statistics_mismatch(stated: SplitStatistics, shards: Iterable[Statistics]) -> str | None:
    """How the manifest's statistics of a split and modality differ from those of its shards; None if not."""
    found = reduce(merge, shards)
    if stated.count != found.count:
        return f"count is {stated.count}, in the shards {found.count}"
    allowed = OF_SPREAD * found.std + OF_MEAN * np.abs(found.mean)
    for what, ours, theirs in (("mean", stated.mean, found.mean), ("std", stated.std, found.std)):
        # Written so that NaN counts as wrong.
        wrong = np.flatnonzero(~(np.abs(np.asarray(ours) - theirs) <= allowed))
        if len(wrong):
            first = int(wrong[0])
            return f"{what}[{first}] is {ours[first]:g}, by the values in the shards {theirs[first]:g}"
    return None


def _chunks(file: BinaryIO, path: Path, index: ShardIndex, name: str, form: Modality) -> Iterator[np.ndarray]:
    """The values of all time steps [T, D] of a modality, about `CHUNK_BYTES` at a time."""
    row_bytes = form.step_bytes
    most = max(1, CHUNK_BYTES // row_bytes)
    held: list[bytes] = []
    free = most
    for row in np.flatnonzero(index.steps[name]).tolist():
        file.seek(int(index.offset[name][row]))
        left = int(index.steps[name][row])
        while left:
            steps = min(left, free)
            data = file.read(steps * row_bytes)
            if len(data) < steps * row_bytes:
                raise ValueError(f"{path}: ends within {name} of {str(index.key[row])!r}")
            held.append(data)
            left -= steps
            free -= steps
            if not free:
                yield _values(held, form)
                held, free = [], most
    if held:
        yield _values(held, form)


def _values(held: list[bytes], form: Modality) -> np.ndarray:
    """The values of stored time steps, [T, D]."""
    return form.values_of(np.frombuffer(b"".join(held), form.dtype).reshape(-1, form.dim))
