"""The open shards of a split: files, indexes, known damage. `reader` reads utterances from them."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from shards.format.class_checks import WrongManifest, count_labels, wrong_counts
from shards.format.index import ShardIndex
from shards.format.index_file import load_index
from shards.format.schema import Manifest, Modality, ShardEntry
from shards.format.targets import CLASSES, Target
from shards.planning.balance import work_of
from shards.storage.cache import ROOM_WAIT_S
from shards.storage.store import Store, map_files, open_file, reopen_after_fork
from shards.streaming.damage import DamageRecord
from shards.streaming.shard_handle import ShardHandle, check_labels, key_and_metadata
from shards.streaming.target_columns import labels_of, values_of_index

# Number of shards that are kept open by default; well below the usual limit of 1,024 open files per process.
OPEN_SHARDS = 256
# Utterances whose indexes are kept in memory; an index takes some 100 bytes for each of its utterances.
INDEXED_UTTERANCES = 500_000

T = TypeVar("T")

# All of the process, for `_after_fork`.
_all: weakref.WeakSet[OpenShards] = weakref.WeakSet()


class OpenShards:
    """The shards of a split; those used last are kept open. Safe in threads and after a fork.

    Args:
        store: the dataset's folder.
        manifest: of the dataset.
        split: name of the split.
        modalities: those to read; default all.
        skip_damaged: skip utterances that are damaged or permanently missing, instead of raising; they are
            remembered and not read again.
        target: whose values are looked up.
        classes: what labels are positions in; default the manifest's.
        open_shards: number of shards that are kept open.
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        split: str,
        modalities: dict[str, Modality] | None = None,
        skip_damaged: bool = False,
        target: Target = CLASSES,
        classes: list[str] | None = None,
        open_shards: int = OPEN_SHARDS,
    ) -> None:
        self.store = store
        self.manifest = manifest
        self.split = manifest.splits[split]
        self.at = f"{store.url}#{split}"
        self.shards: Sequence[ShardEntry] = self.split.shards
        self.modalities = manifest.modalities if modalities is None else modalities
        self.skip_damaged = skip_damaged
        self.target, self.classes = target, manifest.classes if classes is None else classes
        self._open: OrderedDict[int, ShardHandle] = OrderedDict()
        self._open_shards = open_shards
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._indexed_utterances = 0
        self._work: dict[int, np.ndarray] = {}
        self._damage = DamageRecord()
        self._class_counts = np.zeros(len(manifest.classes), np.int64)
        self._most_counts = np.array(self.split.class_counts, np.int64)
        self._counted: set[int] = set()  # shards whose labels are in _class_counts
        self._init_process_state(forked=False)
        _all.add(self)

    def _init_process_state(self, forked: bool) -> None:
        """Create what a fork does not copy in a usable state.

        The store's connections are opened again only when needed, since a fork may never read.
        """
        self._forked = forked
        self._lock = threading.Lock()

    def _store(self, stop: threading.Event | None) -> Store:
        """The store, with new connections after a fork."""
        with self._lock:
            if self._forked:
                self.store, self._forked = reopen_after_fork(self.store), False
            return self.store if stop is self.store.stop else replace(self.store, stop=stop)

    def index(
        self, shard: int, wait_s: float = ROOM_WAIT_S, stop: threading.Event | None = None
    ) -> ShardIndex:
        """The index of a shard, fetched and verified if needed; the shard itself is not read.

        Args:
            shard: its position in the manifest.
            wait_s: how long to wait for room in a cache with a limit.
            stop: set when the index is no longer needed; then retries of an unreachable store end.

        Raises:
            ValueError, OSError: as `store.open_file` and `index_file.load_index` do.
        """
        with self._lock:
            if shard in self._indexes:
                self._indexes.move_to_end(shard)
                return self._indexes[shard]
        entry = self.shards[shard]
        sizes = entry.index_bytes, entry.index_sha256
        with open_file(self._store(stop), entry.index, *sizes, wait_s) as file:
            index = load_index(file, entry, self.manifest)
        self._count_classes(shard, index)
        self._keep_index(shard, index)
        return index

    def _keep_index(self, shard: int, index: ShardIndex) -> None:
        with self._lock:
            if shard not in self._indexes:
                self._indexes[shard] = index
                self._indexed_utterances += len(index.key)
            while self._indexed_utterances > INDEXED_UTTERANCES:
                _, oldest = self._indexes.popitem(last=False)
                self._indexed_utterances -= len(oldest.key)

    def map(self, call: Callable[[int], T], shards: Iterable[int]) -> Iterator[T]:
        """The results of calls that each read the index of a shard, in order; see `store.map_files`."""
        return map_files(self._store(None), call, shards)

    def _count_classes(self, shard: int, index: ShardIndex) -> None:
        """Compare the manifest's class counts with those of the indexes read so far.

        Both add up to the same number of utterances. So if the counts of the indexes never exceed those of
        the manifest, they are equal once all indexes are read.
        """
        with self._lock:
            if shard not in self._counted:
                self._counted.add(shard)
                self._class_counts += count_labels(index.label, len(self._class_counts))
            if (self._class_counts > self._most_counts).any():
                raise wrong_counts(self.split, self.at)

    def check_class_counts(self) -> None:
        """Read all indexes that were not read yet, to check the manifest's class counts.

        Raises:
            WrongManifest: they differ from those of the indexes.
            ValueError, OSError: as `index` does.
        """
        for _ in self.map(self._count_shard, [i for i in range(len(self.shards)) if i not in self._counted]):
            pass

    def _count_shard(self, shard: int) -> None:
        try:
            self.index(shard)
        except (ValueError, FileNotFoundError) as error:
            self._record_damage(shard, error, None)

    def open(
        self, shard: int, wait_s: float = ROOM_WAIT_S, stop: threading.Event | None = None
    ) -> ShardHandle:
        """A shard, ready to read; fetched and verified if needed. It is not kept open if `stop` is set.

        Args: as of `index`.

        Raises:
            ValueError, OSError: as `index` does.
        """
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
        entry = self.shards[shard]
        if cause := self._damage.of_whole(shard, entry.utterances):
            raise ValueError(cause)
        file = open_file(self._store(stop), entry.name, entry.bytes, entry.sha256, wait_s)
        index = self.index(shard, wait_s, stop)
        at = f"{self.at}: {entry.index}"
        label = labels_of(index, self.target, self.classes, at)
        target = values_of_index(index, self.target, self.manifest, at)
        handle = ShardHandle(file, index, self.modalities, label, target)
        if index.classes is None:
            check_labels(handle, self.manifest)
        with self._lock:
            if stop is not None and stop.is_set():
                return handle
            self._open[shard] = handle
            while len(self._open) > self._open_shards:
                self._open.popitem(last=False)
        return handle

    def keeps_open(self, shards: int) -> bool:
        """Whether so many shards are kept open at a time."""
        return shards <= self._open_shards

    def fetch(self, shard: int, stop: threading.Event | None = None) -> None:
        """Have the files of a shard on the local disk, without opening it.

        Raises:
            ValueError, OSError: as `index` does.
        """
        entry = self.shards[shard]
        for name, size, sha256 in (
            (entry.name, entry.bytes, entry.sha256),
            (entry.index, entry.index_bytes, entry.index_sha256),
        ):
            open_file(self._store(stop), name, size, sha256, wait_s=0.0).close()

    def close_all_but(self, shards: Iterable[int]) -> None:
        """Close all shards but these, so that a cache with a limit can remove their files.

        Without a limit nothing is removed, so the shards stay open for the next epoch.
        """
        if self.store.cache is None or self.store.cache.limit is None:
            return
        wanted = set(shards)
        with self._lock:
            for shard in [shard for shard in self._open if shard not in wanted]:
                del self._open[shard]

    def known_work(self, shard: int) -> np.ndarray | None:
        """What `work` returned for a shard; None if it must read the index (again)."""
        with self._lock:
            return self._work.get(shard)

    def work(self, shard: int, stop: threading.Event | None = None) -> np.ndarray:
        """The work of each utterance of a shard (`work_of`), [U] int64; reads only the index.

        They are 0 where the index is damaged and `skip_damaged` is set.

        Raises:
            ValueError, OSError: as `index` does.
        """
        if (known := self.known_work(shard)) is not None:
            return known
        total = np.zeros(self.shards[shard].utterances, np.int64)
        try:
            total = work_of(self.index(shard, stop=stop).steps, self.modalities)
        except (ValueError, FileNotFoundError) as error:
            self._record_damage(shard, error, stop)
        with self._lock:
            self._work[shard] = total
            while len(self._work) > OPEN_SHARDS:
                del self._work[next(iter(self._work))]
        return total

    def _record_damage(
        self, shard: int, cause: Exception, stop: threading.Event | None, rows: Sequence[int] | None = None
    ) -> None:
        """Remember that these rows of a shard (default: all) are damaged; raise unless damage is skipped."""
        if not self.skip_damaged or isinstance(cause, WrongManifest):
            raise cause
        entry = self.shards[shard]
        try:
            names = self.index(shard, stop=stop).key.tolist()
        except (ValueError, FileNotFoundError):
            names = [f"{entry.name}#{row}" for row in range(entry.utterances)]
        rows = range(entry.utterances) if rows is None else rows
        self._damage.add(shard, {row: names[row] for row in rows}, str(cause))

    def _close_shrunk(self, handles: dict[int, ShardHandle]) -> bool:
        """Close shards whose files have become shorter: opening one again downloads a cached file, or raises.

        Returns:
            Whether there were any.
        """
        with self._lock:
            shrunk = [
                s for s, handle in handles.items() if os.fstat(handle.fd).st_size < self.shards[s].bytes
            ]
            for shard in shrunk:
                self._open.pop(shard, None)
        return bool(shrunk)

    def metadata(self, shard: int, rows: Sequence[int]) -> list[tuple[str, dict[str, Any]]]:
        """Key and metadata (the JSON member, with the label's name) of rows of a shard.

        Raises:
            ValueError: the shard is missing or damaged, or has another label than the index.
            OSError: the store cannot be reached.
        """
        handle = self.open(shard)
        return [key_and_metadata(handle, row, self.manifest) for row in rows]


def _after_fork() -> None:
    for shards in list(_all):
        shards._init_process_state(forked=True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
