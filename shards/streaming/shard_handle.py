"""An open shard, with what a batch needs of its index in one array."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

import numpy as np

from shards.format.index import ShardIndex, first_pictures


class ShardHandle:
    """A shard's open file and index; the file is closed when nothing refers to the handle any longer.

    Attributes:
        locations: [U, 1 + 2 m + K + s] int64: per utterance its label; for each of the m modalities the
            offset and the number of time steps of its array; the bits of the K float64 values of its target;
            and for each of the s modalities of recorded sound the true number of samples. All in one array,
            because one look-up of rows is faster than one for each column.
    """

    def __init__(
        self,
        file: BinaryIO,
        index: ShardIndex,
        modalities: Collection[str],
        label: np.ndarray,
        target: np.ndarray,
    ) -> None:
        # While the file is open, no process removes it from the cache.
        self.file = file
        self.path = Path(file.name)
        self.index = index
        columns = [column for name in modalities for column in (index.offset[name], index.steps[name])]
        columns += list(target.T.view(np.int64)) if target.size else []
        columns += [index.samples[name] for name in modalities if name in index.samples]
        self.locations = np.stack([label, *columns], axis=1, dtype=np.int64)
        self._first_picture = {
            name: first_pictures(index, name) for name in modalities if name in index.picture_offset
        }
        self.fd = file.fileno()

    def pictures(self, modality: str, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Offset and size of each of an utterance's pictures that are stored as JPEG, [N] each."""
        first = self._first_picture[modality][row]
        of_row = slice(first, first + self.index.steps[modality][row])
        return self.index.picture_offset[modality][of_row], self.index.picture_size[modality][of_row]

    def will_need(self) -> None:
        """Ask the kernel to read all of the file ahead, before rows are read in the plan's order."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_WILLNEED)

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.file.close()
