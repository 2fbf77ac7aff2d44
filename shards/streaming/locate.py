"""Where the arrays of utterances are in their shards, found for all utterances of some batches at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from shards.format.schema import Modality
from shards.streaming.shard_handle import ShardHandle


@dataclass(frozen=True)
class Located:
    """Where U utterances of m modalities are, and what their indexes say of them.

    Attributes:
        handles: of their shards.
        shard, row: [U] each.
        key: [U].
        label: [U] int64.
        target: [U, K] float64.
        offset: [U, m] int64: first byte of each array in its file.
        steps: [U, m] int64: time steps of each array.
        samples: [U, s] int64: the true number of samples of each modality of recorded sound.
    """

    handles: dict[int, ShardHandle]
    shard: np.ndarray
    row: np.ndarray
    key: list[str]
    label: np.ndarray
    target: np.ndarray
    offset: np.ndarray
    steps: np.ndarray
    samples: np.ndarray

    def part(self, low: int, high: int) -> Located:
        """Utterances `low` to `high` - 1; views."""
        of_part = slice(low, high)
        return Located(
            handles=self.handles,
            shard=self.shard[of_part],
            row=self.row[of_part],
            key=self.key[of_part],
            label=self.label[of_part],
            target=self.target[of_part],
            offset=self.offset[of_part],
            steps=self.steps[of_part],
            samples=self.samples[of_part],
        )


def locate(
    handles: dict[int, ShardHandle],
    shard: np.ndarray,
    row: np.ndarray,
    modalities: Mapping[str, Modality],
    num_values: int,
) -> Located:
    """Look utterances up in the indexes of their shards.

    Args:
        handles: of all their shards.
        shard, row: [U] each.
        modalities: those to read.
        num_values: K, the number of values of the target.
    """
    width = 1 + 2 * len(modalities)
    num_sound = sum(modality.is_sound for modality in modalities.values())
    locations = np.empty((len(row), width + num_values + num_sound), np.int64)
    key = np.empty(len(row), object)
    order = np.argsort(shard, kind="stable")
    ascending = shard[order]
    first = [0, *(np.flatnonzero(ascending[1:] != ascending[:-1]) + 1).tolist(), len(order)]
    for low, high in pairwise(first):
        if low < high:
            positions = order[low:high]
            handle, rows = handles[int(ascending[low])], row[positions]
            locations[positions] = handle.locations[rows]
            key[positions] = handle.index.key[rows]
    return Located(
        handles=handles,
        shard=shard,
        row=row,
        key=key.tolist(),
        label=locations[:, 0].copy(),
        target=locations[:, width : width + num_values].copy().view(np.float64),
        offset=locations[:, 1:width:2],
        steps=locations[:, 2:width:2],
        samples=locations[:, width + num_values :],
    )
