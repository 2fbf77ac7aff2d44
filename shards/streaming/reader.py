"""Read utterances (rows of shards) into packed arrays; the kernel copies directly into the batch's memory.

`FeatureStream` calls `ShardReader.features_of_batches` for its batches. This, `locate` and `scattered_reads`
are the hot path: all work is done by NumPy on the arrays of some batches, and Python code per utterance is
avoided.

Damage: a shard or index that is missing or has a wrong size or hash, and an array with a wrong CRC-32, raise
ValueError or FileNotFoundError. With `skip_damaged`, `ShardReader` records the rows instead, skips them, and
gives their names and causes with each batch. Two errors are always raised: the store cannot be reached
(OSError), or the manifest contradicts its files (WrongManifest), since then every label may be wrong.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from shards.format.jpeg import pillow
from shards.format.schema import Manifest, Modality
from shards.format.targets import CLASSES, Target
from shards.storage.store import Store
from shards.streaming.batch import Ragged
from shards.streaming.buffer_pool import BufferPool
from shards.streaming.jpeg_files import JpegFiles, decode_jpegs, locate_jpegs
from shards.streaming.locate import Located, locate
from shards.streaming.open_shards import OPEN_SHARDS, OpenShards
from shards.streaming.scattered_reads import Reads, crc_mismatches, read_scattered

# Threads that read, unless it is told otherwise. Reading from the page cache copies memory, and one core
# cannot use all of the memory's bandwidth.
READ_THREADS = 2


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


@dataclass(frozen=True)
class _Batch:
    """Memory of a batch, and what is read into it.

    Attributes:
        rows: its utterances.
        features: packed, by modality.
        arrays: of each modality.
        jpegs: the files of modalities of pictures as JPEG.
    """

    rows: Located
    features: dict[str, Ragged]
    arrays: dict[str, Reads]
    jpegs: dict[str, JpegFiles]


class ShardReader(OpenShards):
    """Reads utterances of a split.

    Args:
        pool: of the buffers to read into.
        check_crc: compare every array with the CRC-32 in its index.
        threads: number of threads that read, the calling one among them.
        store, manifest, split, modalities, skip_damaged, target, classes, open_shards: of `OpenShards`.
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
        threads: int = READ_THREADS,
    ) -> None:
        self.pool = pool or BufferPool()
        self.check_crc, self.threads = check_crc, threads
        self._quantizations: dict[tuple[str, bool], torch.Tensor] = {}
        super().__init__(store, manifest, split, modalities, skip_damaged, target, classes, open_shards)
        if any(modality.is_jpeg for modality in self.modalities.values()):
            pillow()  # before the first batch

    def _init_process_state(self, forked: bool) -> None:
        super()._init_process_state(forked)
        self._helpers = ThreadPoolExecutor(max(1, self.threads - 1), "shards-read")

    def features(
        self, shard: np.ndarray, row: np.ndarray, pin: bool = False, stop: threading.Event | None = None
    ) -> Utterances:
        """Read the utterances of a batch.

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
            if (read := self._read(shard[kept], row[kept], [len(kept)], pin, stop)) is not None:
                return replace(read[0], kept=kept, damaged=damaged)

    def features_of_batches(
        self, batches: Sequence[tuple[np.ndarray, np.ndarray]], pin: bool, stop: threading.Event | None
    ) -> list[Utterances] | None:
        """Read several batches at once, which takes less time than one after the other.

        Args:
            batches: shard [B] and row [B] of each.
            pin, stop: as of `features`.

        Returns:
            None if there is damage: `features` then tells which batch it is in.

        Raises:
            ValueError, OSError: as `features` does.
        """
        if self._damage.known:
            return None
        shard, row = (np.concatenate(column) for column in zip(*batches, strict=True))
        return self._read(shard, row, [len(rows) for _, rows in batches], pin, stop)

    def _read(
        self,
        shard: np.ndarray,
        row: np.ndarray,
        batch_sizes: list[int],
        pin: bool,
        stop: threading.Event | None,
    ) -> list[Utterances] | None:
        """Read batches that follow each other; None if damage was found and recorded: read again.

        NumPy's calls cost as much for one batch as for several. Also, to read a batch drives this code and
        its data out of the processor's caches, and a second batch finds them there. So each stage is done
        for all batches before the next one.
        """
        handles = {}
        for s in sorted(set(shard.tolist())):
            try:
                handles[s] = self.open(s, stop=stop)
            except (ValueError, FileNotFoundError) as error:
                self._record_damage(s, error, stop)
                return None
        found = locate(handles, shard, row, self.modalities, self.target.num_values)
        edges = pairwise([0, *np.cumsum(batch_sizes).tolist()])
        batches = [self._allocate(found.part(low, high), pin) for low, high in edges]
        reads = [
            batch.jpegs[name].by_picture if name in batch.jpegs else arrays
            for batch in batches
            for name, arrays in batch.arrays.items()
        ]
        files = {s: (handle.fd, handle.path) for s, handle in handles.items()}
        try:
            read_scattered(files, reads, self._helpers, self.threads)
        except ValueError:
            if not (self.skip_damaged and self._close_shrunk(handles)):
                raise
            return None
        for batch in batches:
            if self.check_crc and self._record_crc_mismatches(batch):
                return None
            if batch.jpegs and self._record_wrong_pictures(batch, stop):
                return None
        return [self._utterances(batch, pin) for batch in batches]

    def _allocate(self, rows: Located, pin: bool) -> _Batch:
        """The memory of a batch, not read yet."""
        features, arrays, jpegs = {}, {}, {}
        for i, (name, modality) in enumerate(self.modalities.items()):
            offset, steps = rows.offset[:, i], rows.steps[:, i]
            features[name], memory = self._packed(steps, name, modality, pin)
            arrays[name] = Reads(rows.shard, offset, steps * modality.step_bytes, memory)
            if modality.is_jpeg:
                jpegs[name] = locate_jpegs(rows.handles, rows.shard, rows.row, name, self.pool)
                arrays[name] = jpegs[name].by_utterance
        return _Batch(rows, features, arrays, jpegs)

    def _packed(
        self, steps: np.ndarray, name: str, modality: Modality, pin: bool
    ) -> tuple[Ragged, memoryview]:
        """Packed features of the given lengths, not read yet, and their memory."""
        offsets = np.zeros(len(steps) + 1, np.int32)
        np.cumsum(steps, out=offsets[1:])
        dtype = getattr(torch, modality.dtype)
        buffer = self.pool.lease(int(offsets[-1]) * modality.dim * dtype.itemsize, pin)
        host = torch.from_numpy(offsets)
        values = buffer.view(dtype).view(int(offsets[-1]), *modality.shape)
        quantization = self._quantization(name, pin) if modality.quantization else None
        on_device = host.pin_memory() if pin else host
        return Ragged(values, on_device, host, quantization=quantization), buffer.numpy().data

    def _quantization(self, name: str, pin: bool) -> torch.Tensor:
        """Scale and offset of a modality of int8 features, [2, D]; all batches share them."""
        if (name, pin) not in self._quantizations:
            quantization = self.modalities[name].quantization
            assert quantization is not None
            found = torch.from_numpy(np.stack(quantization.arrays))
            self._quantizations[name, pin] = found.pin_memory() if pin else found
        return self._quantizations[name, pin]

    def _utterances(self, batch: _Batch, pin: bool) -> Utterances:
        """What was read, with all of it kept."""
        rows, features = batch.rows, batch.features
        label, target = torch.from_numpy(rows.label), torch.from_numpy(rows.target)
        sound = [name for name, modality in self.modalities.items() if modality.is_sound]
        for i, name in enumerate(sound):
            samples = torch.from_numpy(rows.samples[:, i].copy())
            features[name] = replace(features[name], samples=samples)
        if pin:
            label = label.pin_memory()
            target = target.pin_memory() if target.numel() else target
        return Utterances(features, label, target, rows.key, np.arange(len(rows.row)), {})

    def _record_crc_mismatches(self, batch: _Batch) -> bool:
        """Record arrays whose CRC-32 is not that of the index. Returns whether there are any."""
        found, rows = False, batch.rows
        places = list(zip(rows.shard.tolist(), rows.row.tolist(), strict=True))
        for name, reads in batch.arrays.items():
            # -1: an index of an early version has no checksums, so there is nothing to compare.
            recorded = [(rows.handles[s].index.crc, r) for s, r in places]
            crc = np.array([crc[name][r] if name in crc else -1 for crc, r in recorded], np.int64)
            for i in crc_mismatches(reads, crc, self._helpers, self.threads):
                (s, r), found = places[i], True
                # Without the key, so that skipped utterances of a shard have one cause and are reported
                # together.
                what = name if self.skip_damaged else f"{name} of {rows.key[i]!r}"
                fix = "pack it again" if self.store.cache is None else "remove this file from the cache"
                path = rows.handles[s].path
                cause = f"{path}: the CRC-32 of {what} is not that of the index: damaged; {fix}"
                self._record_damage(s, ValueError(cause), None, [r])
        return found

    def _record_wrong_pictures(self, batch: _Batch, stop: threading.Event | None) -> bool:
        """Decode pictures, and record utterances where that fails. Returns whether there are any."""
        rows = batch.rows
        for name, files in batch.jpegs.items():
            failed = decode_jpegs(files, batch.features[name].values)
            for i, (number, cause) in failed.items():
                # Without details, so that skipped utterances of a shard have one cause.
                why = f"{rows.key[i]!r}: {name}: picture {number} {cause}"
                why = f"pictures of {name} cannot be decoded" if self.skip_damaged else why
                s, r = int(rows.shard[i]), int(rows.row[i])
                damage = ValueError(f"{rows.handles[s].path}: {why}: damaged; extract it again")
                self._record_damage(s, damage, stop, [r])
            if failed:
                return True
        return False
