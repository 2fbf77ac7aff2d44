"""An open shard, with what a batch needs of its index in one array."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from shards.format.index import ShardIndex


class ShardHandle:
    """A shard's open file and index; the file is closed when nothing refers to the handle any longer.

    Attributes:
        locations: [U, 1 + 2 m + K] int64: per utterance its label; for each of the m modalities the offset
            and the number of time steps of its array; and the bits of the K float64 values of its target.
            All in one array, because one look-up of rows is faster than one for each column.
    """

    def __init__(
        self,
        file: BinaryIO,
        index: ShardIndex,
        modalities: Iterable[str],
        label: np.ndarray,
        target: np.ndarray,
    ) -> None:
        # While the file is open, no process removes it from the cache.
        self.file = file
        self.path = Path(file.name)
        self.index = index
        columns = [column for name in modalities for column in (index.offset[name], index.steps[name])]
        columns += list(target.T.view(np.int64)) if target.size else []
        self.locations = np.stack([label, *columns], axis=1, dtype=np.int64)
        self.fd = file.fileno()

    def will_need(self) -> None:
        """Ask the kernel to read all of the file ahead, before rows are read in the plan's order."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_WILLNEED)

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.file.close()
