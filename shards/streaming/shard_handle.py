"""An open shard, with what a batch needs of its index in one array, and the metadata of its utterances."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from shards.format.class_checks import WrongManifest, parse_metadata
from shards.format.index import ShardIndex, first_pictures
from shards.format.schema import Manifest
from shards.streaming.scattered_reads import read_into


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


def read_metadata(handle: ShardHandle, row: int, manifest: Manifest) -> dict[str, Any]:
    """The JSON member of a row, as it is stored.

    Raises:
        ValueError: it is damaged, or has another label than the index (`WrongManifest`).
    """
    index = handle.index
    member = bytearray(int(index.json_size[row]))
    read_into(handle.fd, memoryview(member), int(index.json_offset[row]), handle.path)
    key, label = str(index.key[row]), int(index.label[row])
    return parse_metadata(bytes(member), key, label, manifest, str(handle.path))


def key_and_metadata(handle: ShardHandle, row: int, manifest: Manifest) -> tuple[str, dict[str, Any]]:
    """The key of a row, and its metadata with the label's name; raises as `read_metadata` does."""
    meta = read_metadata(handle, row, manifest)
    # Tars of other programs may have no label there, or in another form.
    label = {"label": manifest.classes[handle.index.label[row]]} if manifest.classes else {}
    return str(handle.index.key[row]), meta | label


def check_labels(handle: ShardHandle, manifest: Manifest) -> None:
    """Compare the metadata of one utterance per class with the index, for an early index without classes.

    Raises:
        WrongManifest: the metadata name another class.
    """
    for row in np.unique(handle.index.label, return_index=True)[1].tolist():
        try:
            read_metadata(handle, row, manifest)
        except WrongManifest:
            raise
        except ValueError:
            # Damaged metadata prove nothing about the classes, and training does not need them.
            continue
