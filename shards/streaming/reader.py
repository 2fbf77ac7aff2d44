"""Read utterances (rows of shards) into packed arrays; the kernel copies directly into the batch's memory.

`FeatureStream` calls `ShardReader.features` for every batch. This and `scattered_reads` are the hot path: all
work is done by NumPy on the arrays of a batch, and Python code per utterance is avoided.

Damage: a shard or index that is missing or has a wrong size or hash, and an array with a wrong CRC-32, raise
ValueError or FileNotFoundError. With `skip_damaged`, `ShardReader` records the rows instead, skips them, and
gives their names and causes with each batch. Two errors are always raised: the store cannot be reached
(OSError), or the manifest contradicts its files (WrongManifest), since then every label may be wrong.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from shards.format.class_checks import WrongManifest, count_labels, wrong_counts
from shards.format.index import ShardIndex
from shards.format.index_file import load_index
from shards.format.jpeg import pillow
from shards.format.schema import Manifest, Modality, ShardEntry
from shards.format.targets import CLASSES, Target
from shards.planning.balance import work_of
from shards.storage.cache import ROOM_WAIT_S
from shards.storage.store import Store, open_file, reopen_after_fork
from shards.streaming.batch import Ragged
from shards.streaming.buffer_pool import BufferPool
from shards.streaming.daemon_threads import DaemonThreads
from shards.streaming.damage import DamageRecord
from shards.streaming.jpeg_files import JpegFiles, decode_jpegs, locate_jpegs
from shards.streaming.row_metadata import check_labels, key_and_metadata
from shards.streaming.scattered_reads import Reads, crc_mismatches, read_scattered
from shards.streaming.shard_handle import ShardHandle
from shards.streaming.target_columns import labels_of, values_of_index

# Number of shards that are kept open by default; well below the usual limit of 1,024 open files per process.
OPEN_SHARDS = 256
# Threads that read the arrays of a batch. Reading from the page cache copies memory, and one core cannot use
# all of the memory's bandwidth.
READ_THREADS = 2
# Indexes fetched at a time. They are small, so the time goes into waiting for answers, not into transfer.
INDEX_THREADS = 8

# All readers of the process, for `_after_fork`.
_readers: weakref.WeakSet[ShardReader] = weakref.WeakSet()


@dataclass(frozen=True)
class Utterances:
    """What `ShardReader.features` has read.

    Attributes:
        features: packed, by modality.
        label: [B] int64.
        target: [B, K] float64.
        key: [B] names of the utterances.
        kept: [B] int64, ascending: positions of the utterances read among those requested. All, unless some
            are damaged.
        damaged: the cause by name of each of the others. The name is the key, or shard#row where the index
            is damaged.
    """

    features: dict[str, Ragged]
    label: torch.Tensor
    target: torch.Tensor
    key: list[str]
    kept: np.ndarray
    damaged: dict[str, str]


class ShardReader:
    """Reads utterances of a split, and keeps the shards used last open. Safe in threads and after a fork.

    Args:
        store: the dataset's folder.
        manifest: of the dataset.
        split: name of the split.
        modalities: those to read; default all.
        pool: of the buffers to read into.
        skip_damaged: skip utterances that are damaged or permanently missing, instead of raising; they are
            remembered and not read again.
        check_crc: compare every array with the CRC-32 in its index.
        target: whose values are read with the features.
        classes: what labels are positions in; default the manifest's.
        open_shards: number of shards that are kept open.
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        split: str,
        modalities: dict[str, Modality] | None = None,
        pool: BufferPool | None = None,
        skip_damaged: bool = False,
        check_crc: bool = False,
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
        self.pool = pool or BufferPool()
        self.skip_damaged, self.check_crc = skip_damaged, check_crc
        self.target, self.classes = target, manifest.classes if classes is None else classes
        self._open: OrderedDict[int, ShardHandle] = OrderedDict()
        self._open_shards = open_shards
        self._work: dict[int, np.ndarray] = {}
        self._damage = DamageRecord()
        if any(modality.is_jpeg for modality in self.modalities.values()):
            pillow()  # before the first batch
        self._quantizations: dict[tuple[str, bool], torch.Tensor] = {}
        self._class_counts = np.zeros(len(manifest.classes), np.int64)
        self._counted: set[int] = set()  # shards whose labels are in _class_counts
        self._init_process_state(forked=False)
        _readers.add(self)

    def _init_process_state(self, forked: bool) -> None:
        """Create what a fork does not copy in a usable state: the lock and the threads.

        The store's connections are opened again only when needed, since a fork may never read.
        """
        self._forked = forked
        self._lock = threading.Lock()
        self._helpers = ThreadPoolExecutor(max(1, READ_THREADS - 1), "shards-read")

    def _store(self, stop: threading.Event | None) -> Store:
        """The store, with new connections after a fork."""
        with self._lock:
            if self._forked:
                self.store, self._forked = reopen_after_fork(self.store), False
            return replace(self.store, stop=stop)

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
        entry = self.shards[shard]
        sizes = entry.index_bytes, entry.index_sha256
        with open_file(self._store(stop), entry.index, *sizes, wait_s) as file:
            index = load_index(file, entry, self.manifest)
        self._count_classes(shard, index)
        return index

    def _count_classes(self, shard: int, index: ShardIndex) -> None:
        """Compare the manifest's class counts with those of the indexes read so far.

        Both add up to the same number of utterances. So if the counts of the indexes never exceed those of
        the manifest, they are equal once all indexes are read.
        """
        with self._lock:
            if shard not in self._counted:
                self._counted.add(shard)
                self._class_counts += count_labels(index.label, len(self._class_counts))
            if np.any(self._class_counts > self.split.class_counts):
                raise wrong_counts(self.split, self.at)

    def check_class_counts(self) -> None:
        """Read all indexes that were not read yet, to check the manifest's class counts.

        Raises:
            WrongManifest: they differ from those of the indexes.
            ValueError, OSError: as `index` does.
        """
        with DaemonThreads(INDEX_THREADS, "shards-index") as threads:
            for _ in threads.map(
                self._count_shard, [i for i in range(len(self.shards)) if i not in self._counted]
            ):
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

    def work(self, shard: int, stop: threading.Event | None = None) -> np.ndarray:
        """The work of each utterance of a shard (`work_of`), [U] int64; reads only the index.

        They are 0 where the index is damaged and `skip_damaged` is set.

        Raises:
            ValueError, OSError: as `index` does.
        """
        with self._lock:
            if shard in self._work:
                return self._work[shard]
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

    def features(
        self, shard: np.ndarray, row: np.ndarray, pin: bool = False, stop: threading.Event | None = None
    ) -> Utterances:
        """Read utterances.

        Args:
            shard, row: [B] each.
            pin: into page-locked memory, from which copies to a GPU need not wait.
            stop: as of `index`.

        Raises:
            ValueError, FileNotFoundError: a shard or an array is missing or damaged, without `skip_damaged`.
            OSError: the store cannot be reached.
        """
        # Each attempt without a result has recorded damaged rows, or closed a shard that has become shorter.
        while True:
            kept, damaged = self._damage.split(shard, row)
            if (read := self._read(shard[kept], row[kept], pin, stop)) is not None:
                features, label, target, key = read
                return Utterances(features, label, target, key, kept, damaged)

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

    def _read(
        self, shard: np.ndarray, row: np.ndarray, pin: bool, stop: threading.Event | None
    ) -> tuple[dict[str, Ragged], torch.Tensor, torch.Tensor, list[str]] | None:
        """Features, labels, targets and keys; None if damage was found and recorded: read again."""
        width = 1 + 2 * len(self.modalities)
        sound = [name for name, modality in self.modalities.items() if modality.is_sound]
        end = width + self.target.num_values
        locations = np.empty((len(row), end + len(sound)), np.int64)
        key = np.empty(len(row), object)
        order = np.argsort(shard, kind="stable")
        shards, first = np.unique(shard[order], return_index=True)
        handles = {}
        for s in shards.tolist():
            try:
                handles[s] = self.open(s, stop=stop)
            except (ValueError, FileNotFoundError) as error:
                self._record_damage(s, error, stop)
                return None
        # Not strict: without rows there is no handle, but `split` gives one empty group.
        for handle, positions in zip(handles.values(), np.split(order, first[1:]), strict=False):
            rows = row[positions]
            locations[positions] = handle.locations[rows]
            key[positions] = handle.index.key[rows]

        features, arrays, jpegs = {}, list[Reads](), dict[str, JpegFiles]()
        for i, (name, modality) in enumerate(self.modalities.items()):
            offset, steps = locations[:, 1 + 2 * i], locations[:, 2 + 2 * i]
            features[name], memory = self._allocate(steps, modality, pin)
            if modality.quantization:
                features[name] = replace(features[name], quantization=self._quantization(name, pin))
            if modality.is_jpeg:
                jpegs[name] = locate_jpegs(handles, shard, row, name, self.pool)
                arrays.append(jpegs[name].by_utterance)
            else:
                arrays.append(Reads(shard, offset, steps * modality.step_bytes, memory))
        try:
            read_scattered(
                {s: (handle.fd, handle.path) for s, handle in handles.items()},
                [
                    jpegs[name].by_picture if name in jpegs else reads
                    for name, reads in zip(self.modalities, arrays, strict=True)
                ],
                self._helpers,
                READ_THREADS,
            )
        except ValueError:
            if not (self.skip_damaged and self._close_shrunk(handles)):
                raise
            return None
        if self.check_crc and self._record_crc_mismatches(handles, shard, row, key, arrays):
            return None
        for name, files in jpegs.items():
            failed = decode_jpegs(files, features[name].values)
            for i, (number, cause) in failed.items():
                # Without details, so that skipped utterances of a shard have one cause.
                why = f"{key[i]!r}: {name}: picture {number} {cause}"
                why = f"pictures of {name} cannot be decoded" if self.skip_damaged else why
                path = handles[int(shard[i])].path
                damage = ValueError(f"{path}: {why}: damaged; extract it again")
                self._record_damage(int(shard[i]), damage, stop, [int(row[i])])
            if failed:
                return None
        label = torch.from_numpy(locations[:, 0].copy())
        target = torch.from_numpy(locations[:, width:end].copy().view(np.float64))
        for i, name in enumerate(sound):
            samples = torch.from_numpy(locations[:, end + i].copy())
            features[name] = replace(features[name], samples=samples)
        if pin and target.numel():
            target = target.pin_memory()
        return features, label.pin_memory() if pin else label, target, key.tolist()

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

    def _record_crc_mismatches(
        self,
        handles: dict[int, ShardHandle],
        shard: np.ndarray,
        row: np.ndarray,
        key: np.ndarray,
        reads: list[Reads],
    ) -> bool:
        """Record arrays whose CRC-32 is not that of the index. Returns whether there are any."""
        found = False
        for name, modality_reads in zip(self.modalities, reads, strict=True):
            rows = list(zip(shard.tolist(), row.tolist(), strict=True))
            # -1: an index of an early version has no checksums, so there is nothing to compare.
            crc = [handles[s].index.crc[name][r] if name in handles[s].index.crc else -1 for s, r in rows]
            for i in crc_mismatches(modality_reads, np.array(crc, np.int64), self._helpers, READ_THREADS):
                (s, r), found = rows[i], True
                # Without the key, so that skipped utterances of a shard have one cause and are reported
                # together.
                what = name if self.skip_damaged else f"{name} of {key[i]!r}"
                fix = "pack it again" if self.store.cache is None else "remove this file from the cache"
                cause = f"{handles[s].path}: the CRC-32 of {what} is not that of the index: damaged; {fix}"
                self._record_damage(s, ValueError(cause), None, [r])
        return found

    def _allocate(self, steps: np.ndarray, modality: Modality, pin: bool) -> tuple[Ragged, memoryview]:
        """Packed features of the given lengths, not read yet, and their memory."""
        offsets = np.zeros(len(steps) + 1, np.int32)
        np.cumsum(steps, out=offsets[1:])
        dtype = getattr(torch, modality.dtype)
        buffer = self.pool.lease(int(offsets[-1]) * modality.dim * dtype.itemsize, pin)
        host = torch.from_numpy(offsets)
        values = buffer.view(dtype).view(int(offsets[-1]), *modality.shape)
        return Ragged(values, host.pin_memory() if pin else host, host), buffer.numpy().data

    def _quantization(self, name: str, pin: bool) -> torch.Tensor:
        """Scale and offset of a modality of int8 features, [2, D]; all batches share them."""
        if (name, pin) not in self._quantizations:
            quantization = self.modalities[name].quantization
            assert quantization is not None
            found = torch.from_numpy(np.stack(quantization.arrays))
            self._quantizations[name, pin] = found.pin_memory() if pin else found
        return self._quantizations[name, pin]

    def metadata(self, shard: int, rows: Sequence[int]) -> list[tuple[str, dict[str, Any]]]:
        """Key and metadata (the JSON member, with the label's name) of rows of a shard.

        Raises:
            ValueError: the shard is missing or damaged, or has another label than the index.
            OSError: the store cannot be reached.
        """
        handle = self.open(shard)
        return [key_and_metadata(handle, row, self.manifest) for row in rows]


def _after_fork() -> None:
    for reader in list(_readers):
        reader._init_process_state(forked=True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
