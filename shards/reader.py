"""Rows of shards -> packed arrays, each read by one call straight into its place."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shards.batch import Ragged
from shards.index import ShardIndex, load_index
from shards.schema import Modality, ShardEntry
from shards.store import Store, hash_file, local_file

# Open files and indexes kept: well below the usual limit of 1,024 open files of a process.
OPEN_SHARDS = 256


class OpenShard:
    """A shard's file descriptor and index; closed when nothing refers to it any longer."""

    def __init__(self, path: Path, index: ShardIndex) -> None:
        self.path = path
        self.index = index
        self.fd = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


class ShardReader:
    """Reads utterances of a split, keeping its latest shards open. Threads may share it."""

    def __init__(self, store: Store, shards: Sequence[ShardEntry], modalities: dict[str, Modality]) -> None:
        self.store = store
        self.shards = shards
        self.modalities = modalities
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def index(self, shard: int) -> ShardIndex:
        """The index of a shard, fetched and verified if need be; the shard itself is not touched.

        Raises:
            ValueError, OSError: as `store.local_file` and `index.load_index` do.
        """
        entry = self.shards[shard]
        path = local_file(self.store, entry.index, entry.index_bytes, entry.index_sha256)
        # An index is small, and a damaged one would have us read noise: its hash is checked in place, too.
        if self.store.cache is None and hash_file(path) != entry.index_sha256:
            raise ValueError(f"{path}: not the index the manifest names: damaged or replaced; pack it again")
        index = load_index(path, self.modalities, entry.bytes)
        if len(index.key) != entry.utterances:
            raise ValueError(f"{path}: {len(index.key)} utterances, {entry.utterances} by the manifest")
        return index

    def open(self, shard: int) -> OpenShard:
        """A shard, ready to read; fetched and verified if need be.

        Raises:
            ValueError, OSError: as `index` does.
        """
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
        entry = self.shards[shard]
        path = local_file(self.store, entry.name, entry.bytes, entry.sha256)
        opened = OpenShard(path, self.index(shard))
        with self._lock:
            self._open[shard] = opened
            while len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        return opened

    def features(
        self, shard: np.ndarray, row: np.ndarray
    ) -> tuple[dict[str, Ragged], torch.Tensor, list[str]]:
        """Read utterances.

        Args:
            shard, row: [B] each.

        Returns:
            Per modality the packed features; labels [B] int64; keys.

        Raises:
            ValueError: a shard is missing or damaged.
            OSError: the store cannot be reached.
        """
        opened = {s: self.open(s) for s in np.unique(shard).tolist()}
        where = [(opened[s], r) for s, r in zip(shard.tolist(), row.tolist(), strict=True)]
        features = {name: self._pack(where, name) for name in self.modalities}
        label = torch.tensor([int(o.index.label[r]) for o, r in where], dtype=torch.int64)
        return features, label, [str(o.index.key[r]) for o, r in where]

    def _pack(self, where: list[tuple[OpenShard, int]], name: str) -> Ragged:
        modality = self.modalities[name]
        steps = [int(o.index.steps[name][r]) for o, r in where]
        offsets = np.zeros(len(where) + 1, np.int32)
        np.cumsum(steps, out=offsets[1:])
        values = allocate(int(offsets[-1]), modality)
        if values.size:
            view = values.view(np.uint8).reshape(-1).data
            step_bytes = values.strides[0]
            for (o, r), first, last in zip(where, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
                if last > first:
                    part = view[first * step_bytes : last * step_bytes]
                    read_into(o.fd, part, int(o.index.offset[name][r]), o.path)
        host = torch.from_numpy(offsets)
        return Ragged(torch.from_numpy(values), host, host)

    def metadata(self, shard: int, rows: Sequence[int]) -> list[tuple[str, dict[str, Any]]]:
        """Key and JSON member of rows of a shard.

        Raises:
            ValueError: the shard is missing or damaged.
            OSError: the store cannot be reached.
        """
        opened = self.open(shard)
        found = []
        for row in rows:
            member = bytearray(int(opened.index.json_size[row]))
            read_into(opened.fd, memoryview(member), int(opened.index.json_offset[row]), opened.path)
            found.append((str(opened.index.key[row]), json.loads(member)))
        return found


def allocate(steps: int, modality: Modality) -> np.ndarray:
    """An uninitialised buffer [steps, dim] for a batch."""
    return np.empty((steps, modality.dim), np.dtype(modality.dtype))


def read_into(fd: int, view: memoryview, offset: int, path: Path) -> None:
    """Fill `view` with the bytes of a file from `offset` on, in one system call as a rule.

    Raises:
        ValueError: the file ends before.
    """
    done = 0
    while done < len(view):
        count = _read_some(fd, view[done:], offset + done)
        if count == 0:
            raise ValueError(f"{path}: ends at {offset + done} bytes, amid an array; damaged, pack it again")
        done += count


def _read_some(fd: int, view: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(fd, [view], offset)
    # macOS before 11 has no preadv: the same with one copy more.
    data = os.pread(fd, len(view), offset)
    view[: len(data)] = data
    return len(data)
