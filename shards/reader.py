"""Rows of shards -> packed arrays, read from the page cache or the disk straight into their places."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from shards.batch import Ragged
from shards.cache import ROOM_WAIT_S
from shards.index import ShardIndex, load_index
from shards.pool import BufferPool
from shards.reads import Reads, read_all, read_into
from shards.schema import Modality, ShardEntry
from shards.store import Store, open_file

# Open files and indexes kept: well below the usual limit of 1,024 open files of a process.
OPEN_SHARDS = 256
# Threads that share the arrays of a batch: reading is copying, and one core does not fill the memory bus.
READ_THREADS = 2


class OpenShard:
    """A shard's file descriptor and index; closed when nothing refers to it any longer.

    Attributes:
        where: [U, 1 + 2 m] int64: label, then per modality the offset and the steps of each utterance's
            array, side by side so that one look-up finds all that reading a row needs.
    """

    def __init__(self, file: BinaryIO, index: ShardIndex, modalities: Iterable[str]) -> None:
        # In a cache nobody removes a file that is open.
        self.file = file
        self.path = Path(file.name)
        self.index = index
        columns = [column for name in modalities for column in (index.offset[name], index.steps[name])]
        self.where = np.stack([index.label, *columns], axis=1, dtype=np.int64)
        self.fd = file.fileno()

    def read_soon(self) -> None:
        """Have the kernel read the shard from the disk in one go, ahead of the rows in the plan's order."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_WILLNEED)

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.file.close()


class ShardReader:
    """Reads utterances of a split, keeping its latest shards open. Threads may share it."""

    def __init__(
        self,
        store: Store,
        shards: Sequence[ShardEntry],
        modalities: dict[str, Modality],
        pool: BufferPool | None = None,
    ) -> None:
        self.store = store
        self.shards = shards
        self.modalities = modalities
        self.pool = pool or BufferPool()
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = threading.Lock()
        self._helpers = ThreadPoolExecutor(max(1, READ_THREADS - 1), "shards-read")
        self._work = lru_cache(OPEN_SHARDS)(self._read_work)

    def index(self, shard: int, wait_s: float = ROOM_WAIT_S) -> ShardIndex:
        """The index of a shard, fetched and verified if need be; the shard itself is not touched.

        Raises:
            ValueError, OSError: as `store.open_file` and `index.load_index` do.
        """
        entry = self.shards[shard]
        sizes = entry.index_bytes, entry.index_sha256
        with open_file(self.store, entry.index, *sizes, wait_s) as file:
            return load_index(file, entry, self.modalities)

    def open(self, shard: int, wait_s: float = ROOM_WAIT_S) -> OpenShard:
        """A shard, ready to read; fetched and verified if need be.

        Raises:
            ValueError, OSError: as `index` does.
        """
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
        entry = self.shards[shard]
        file = open_file(self.store, entry.name, entry.bytes, entry.sha256, wait_s)
        opened = OpenShard(file, self.index(shard, wait_s), self.modalities)
        with self._lock:
            self._open[shard] = opened
            while len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        return opened

    def keep(self, shards: Iterable[int]) -> None:
        """Close all but these, so that a cache with a limit may remove them; else do nothing."""
        if self.store.cache is None or self.store.cache.limit is None:
            return
        wanted = set(shards)
        with self._lock:
            for shard in [shard for shard in self._open if shard not in wanted]:
                del self._open[shard]

    def work(self, shard: int) -> np.ndarray:
        """Steps of each utterance of a shard over the modalities, [U] int64; the shard itself is not touched.

        Raises:
            ValueError, OSError: as `index` does.
        """
        return self._work(shard)

    def _read_work(self, shard: int) -> np.ndarray:
        steps = self.index(shard).steps
        total: np.ndarray = np.stack([steps[name] for name in self.modalities]).sum(0, np.int64)
        return total

    def features(
        self, shard: np.ndarray, row: np.ndarray, pin: bool = False
    ) -> tuple[dict[str, Ragged], torch.Tensor, list[str]]:
        """Read utterances.

        Args:
            shard, row: [B] each.
            pin: into page-locked memory, from which copies to a GPU need not wait.

        Returns:
            Per modality the packed features; labels [B] int64; keys.

        Raises:
            ValueError: a shard is missing or damaged.
            OSError: the store cannot be reached.
        """
        where = np.empty((len(row), 1 + 2 * len(self.modalities)), np.int64)
        key = np.empty(len(row), object)
        order = np.argsort(shard, kind="stable")
        shards, first = np.unique(shard[order], return_index=True)
        opened = {s: self.open(s) for s in shards.tolist()}
        for one, mine in zip(opened.values(), np.split(order, first[1:]), strict=False):
            rows = row[mine]
            where[mine] = one.where[rows]
            key[mine] = one.index.key[rows]

        features, reads = {}, []
        for i, (name, modality) in enumerate(self.modalities.items()):
            offset, steps = where[:, 1 + 2 * i], where[:, 2 + 2 * i]
            features[name], memory = self._allocate(steps, modality, pin)
            size = steps * (modality.dim * np.dtype(modality.dtype).itemsize)
            reads.append(Reads(shard, offset, size, memory))
        read_all({s: (one.fd, one.path) for s, one in opened.items()}, reads, self._helpers, READ_THREADS)
        label = torch.from_numpy(where[:, 0].copy())
        return features, label.pin_memory() if pin else label, key.tolist()

    def _allocate(self, steps: np.ndarray, modality: Modality, pin: bool) -> tuple[Ragged, memoryview]:
        """Packed features of the given lengths, yet to be read, and their memory."""
        offsets = np.zeros(len(steps) + 1, np.int32)
        np.cumsum(steps, out=offsets[1:])
        dtype = getattr(torch, modality.dtype)
        buffer = self.pool.lease(int(offsets[-1]) * modality.dim * dtype.itemsize, pin)
        host = torch.from_numpy(offsets)
        values = buffer.view(dtype).view(int(offsets[-1]), modality.dim)
        return Ragged(values, host.pin_memory() if pin else host, host), buffer.numpy().data

    def metadata(
        self, shard: int, rows: Sequence[int], classes: Sequence[str]
    ) -> list[tuple[str, dict[str, Any]]]:
        """Key, and JSON member with the label's name, of rows of a shard.

        Raises:
            ValueError: the shard is missing or damaged.
            OSError: the store cannot be reached.
        """
        opened = self.open(shard)
        found = []
        for row in rows:
            member = bytearray(int(opened.index.json_size[row]))
            read_into(opened.fd, memoryview(member), int(opened.index.json_offset[row]), opened.path)
            # Shards that others made may have none, or another form of the label.
            meta = json.loads(member) if member else {}
            label = {"label": classes[opened.index.label[row]]}
            found.append((str(opened.index.key[row]), meta | label))
        return found
