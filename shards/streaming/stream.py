"""`FeatureStream`: the batches of one rank, from any store, read ahead of training.

It uses the plan (which utterances), the store (files on local disk), the reader (packed arrays) and prefetch
(batches read ahead in a thread). What holds for every store and number of shards:

- Same batches: step s of epoch e holds the same utterances in the same places for every number of ranks that
  divides the global batch size, and for any gradient accumulation (see `planning.plan`).
- Exactly once: an epoch holds each selected utterance once. All ranks run the same number of steps; only the
  last step may be partial.
- Resume: `epoch(e, s)` starts at step s directly; it does not replay the steps before.
- Locality: where the number of ranks divides that of canonical streams, a rank reads only the shards of its
  own canonical streams, the same in every epoch.
- Order: drawn from the seed and the epoch; `shuffle=False` gives the manifest's order.
- Memory: a batch and views of it may be kept as long as needed. Besides these, the stream uses at most
  `prefetch_bytes` for batches that are ready, as much for buffers that are free for reuse, and for those that
  are being read a quarter of it or two batches, of pictures as JPEG with their files, whatever the size of
  shards.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shards.cores import read_threads, usable_cores
from shards.format.index import ShardIndex
from shards.format.schema import ShardEntry, choose_modalities, choose_split
from shards.format.statistics import Sums, sums_from_statistics
from shards.format.targets import choose_target
from shards.planning.cache_demand import check_limit
from shards.planning.plan import (
    WINDOW,
    Plan,
    make_plan,
    places_of_rank,
    rows_of_step,
    shards_ahead,
    windows_ahead,
)
from shards.storage.daemon_threads import DaemonThreads
from shards.storage.store import open_dataset
from shards.streaming.batch import FeatureBatch
from shards.streaming.buffer_pool import BufferPool
from shards.streaming.feature_sums import no_sums, sums_of_rows
from shards.streaming.prefetch import read_ahead, to_device_ahead
from shards.streaming.reader import ShardReader, Utterances
from shards.streaming.selection import classes_of, select_rows, target_values

# Shards fetched at a time, per process. With SFTP the requests wait for each other: its connection serves one
# at a time.
FETCH_THREADS = 4
# The kernel is asked to read a complete shard ahead if at least this share of its utterances is selected.
READ_AHEAD_SHARE = 0.5
# Utterances and bytes of the batches that are read at a time: enough to make the cost of a batch small.
READ_AT_A_TIME = 256
READ_AT_A_TIME_BYTES = 64 << 20
# Bytes of batches that may be ready: tens of batches of the usual sizes.
PREFETCH_BYTES = 256 << 20


class NoTarget(ValueError):
    """None of the utterances has a known value of the target, as in the test data of a challenge."""


class FeatureStream:
    """The utterances of a split, as packed batches in an order that does not depend on the number of ranks.

    Attributes:
        url: of the dataset, without credentials.
        name: the last part of `url`, or "the built-in demo".
        manifest: of the dataset.
        split: name of the split that is read.
        target: what is to be recognized in the utterances.
        classes: class names; a label is a position in this list. Empty if the target is not one class.
        modalities: those that are read, with dim and dtype.
        num_utterances: number of selected utterances, over all ranks.
        without_target: number of utterances that are left out since they have no known value of the target.
        steps_per_epoch: the same on every rank.
        streams: number of canonical streams of the plan; a run must keep it to keep its order.
    """

    def __init__(
        self,
        url: str,
        split: str = "train",
        global_batch_size: int = 32,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        cache_dir: str | Path | None = None,
        select: dict[str, Any] | None = None,
        streams: int | None = None,
        storage_options: dict[str, Any] | None = None,
        cache_limit: int | str | None = None,
        modalities: list[str] | None = None,
        window: int = WINDOW,
        prefetch: int = 4,
        prefetch_bytes: int = PREFETCH_BYTES,
        balance: bool = True,
        local_world_size: int = 1,
        uneven: bool = False,
        skip_damaged: bool = False,
        check_crc: bool = False,
        target: str | list[str] | None = None,
        task: str | None = None,
        threads: int | None = None,
    ) -> None:
        """Open a split.

        Args:
            url: dataset folder or manifest, any fsspec URL; a fragment `#dev` names the split.
            split: its name; a dataset whose only split is "all" gives that one for every name.
            global_batch_size: utterances per step over all ranks.
            rank, world_size: which share of each step to read; `world_size` must divide the global batch,
                unless `uneven`.
            seed: of the order.
            shuffle: False gives the manifest's order.
            cache_dir: where shards of remote datasets are kept; see `store.open_store`.
            select: {column: value or list of values}: only utterances whose metadata match all of them.
            streams: number of canonical streams, see `planning.plan`; default by the number of shards.
            storage_options: for the fsspec file system: credentials, endpoint.
            cache_limit: bytes that the cache may hold over all datasets in it, or like "200GB". It must hold
                what the node's ranks need at a time, of all streams that are read at the same time.
            modalities: those to read; default all.
            window: utterances within which one is shuffled, see `planning.plan`; at least 1,024 for each
                canonical stream.
            prefetch: batches that a thread reads ahead; 0 reads each when it is asked for.
            prefetch_bytes: bytes that batches read ahead may have together; one is always read ahead. Free
                buffers are kept up to as many bytes, so a larger batch gets new memory, which is slower.
            balance: order utterances so that steps, and ranks' shares of steps, have about equally many time
                steps in total; of recordings bytes.
            local_world_size: number of ranks on this node; their ranks are consecutive and share
                `cache_limit`.
            skip_damaged: skip utterances that are damaged or permanently missing; an unreachable store still
                raises. Steps and places stay as they are, and each batch names its skipped utterances
                (`FeatureBatch.damaged`). All ranks must find the same damage: when steps are balanced,
                utterances of a damaged index count as having no time steps.
            check_crc: compare every array that is read with the CRC-32 in its index. Else only the size of a
                local shard is checked. (Downloaded shards and all indexes are compared with their SHA-256.)
            target, task: what is to be recognized, see `format.targets.choose_target`; default: the
                dataset's own target.
            threads: number of threads that read the arrays of batches; default: this rank's share of the
                cores, at most 8.

        Raises:
            ValueError: an argument names what the dataset does not have, does not divide or is out of range.
            OSError: the store cannot be reached.
        """
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        if prefetch < 0 or prefetch_bytes < 1:
            given = f"{prefetch} and {prefetch_bytes}"
            raise ValueError(f"prefetch must be at least 0 and prefetch_bytes at least 1, not {given}")
        self.store, self.manifest, fragment = open_dataset(str(url), cache_dir, storage_options, cache_limit)
        self.url = self.store.url
        # The demo is made in a cache, in a folder whose name means nothing to a user.
        is_demo = self.manifest.provenance.get("format") == "demo"
        self.name = "the built-in demo" if is_demo else self.url.rstrip("/").rpartition("/")[2]
        self.split = choose_split(self.manifest, fragment or split, self.store.url)
        at = f"{self.store.url}#{self.split}"
        self.target = choose_target(self.manifest, target, task, self.store.url)
        self.classes = classes_of(self.store, self.manifest, self.target, self.store.url)
        self.modalities = choose_modalities(self.manifest, modalities, self.store.url)
        self.rank, self.world_size = rank, world_size
        self.prefetch, self.prefetch_bytes = prefetch, prefetch_bytes
        self._shards = self.manifest.splits[self.split].shards
        self._reader = ShardReader(
            self.store,
            self.manifest,
            self.split,
            self.modalities,
            BufferPool(prefetch_bytes),
            skip_damaged,
            check_crc,
            self.target,
            self.classes,
            threads=threads or read_threads(usable_cores(), local_world_size),
        )
        found = select_rows(self._reader, select, at)
        self._rows, self._class_counts = found.rows, found.class_counts
        self._without_target = found.without_target
        counts = np.array([shard.utterances for shard in self._shards], np.int64)
        if self._rows is not None:
            counts = np.array([len(rows) for rows in self._rows], np.int64)
            # To look up row `i` of the selection in shard `s`: _all_rows[_first_row[s] + i].
            self._all_rows, self._first_row = np.concatenate(self._rows), np.cumsum(counts) - counts
        self.num_utterances = int(counts.sum())
        self.without_target = sum(map(len, self._without_target))
        if self.num_utterances == 0:
            chosen = f"no utterance matches {select}" if select else "no utterances"
            if self.without_target:
                columns = ", ".join(map(repr, self.target.columns))
                raise NoTarget(
                    f"{at}: no utterance has a value of {columns:.200}; choose other data, or another target"
                )
            raise ValueError(f"{at}: {chosen}")
        self._first_place, self._num_places = places_of_rank(global_batch_size, rank, world_size, uneven)
        self._plan = make_plan(
            counts,
            global_batch_size,
            streams=streams,
            seed=seed,
            shuffle=shuffle,
            window=window,
            # Not a method: a stream that refers to itself keeps its files open until the collector runs.
            work=partial(_work, self._reader, self._rows) if balance else None,
        )
        check_limit(self.store, self._plan, self._shards, rank, world_size, local_world_size, at)
        self.steps_per_epoch = self._plan.steps_per_epoch
        self._read_at_a_time = self._batches_at_a_time(prefetch, prefetch_bytes)
        self.streams = self._plan.streams

    def _batches_at_a_time(self, prefetch: int, prefetch_bytes: int) -> int:
        """Number of batches that are read at once; by their mean size in memory."""
        split = self.manifest.splits[self.split]
        in_memory = sum(split.steps.get(name, 0) * m.step_bytes for name, m in self.modalities.items())
        most_bytes = min(READ_AT_A_TIME_BYTES, prefetch_bytes // 4)
        most = min(READ_AT_A_TIME, most_bytes * split.utterances / max(1, in_memory))
        return max(1, min(prefetch, int(most / max(1, self._num_places))))

    def epoch(
        self, epoch: int, start_step: int = 0, device: torch.device | str | None = None
    ) -> Iterator[FeatureBatch]:
        """This rank's batches of an epoch, one per step, from `start_step` on.

        Reading starts when the first batch is asked for, and stops when the iterator is closed. Batches and
        views of them may be kept: their memory is reused only when nothing refers to it. In a process that
        uses CUDA it is page-locked.

        Args:
            epoch, start_step: 0-based.
            device: where the batches are put; on CUDA the next one is copied while the current one is used.
                Default: the host.

        Raises:
            ValueError: there is no such epoch or step; while iterating: a shard is missing or damaged.
            OSError: while iterating: a file of a remote dataset is missing (FileNotFoundError), or the store
                cannot be reached.
            RuntimeError: the process was forked during the iteration. (A fork may call `epoch` itself.)
        """
        if epoch < 0 or not 0 <= start_step <= self.steps_per_epoch:
            raise ValueError(f"epoch {epoch}, step {start_step}: an epoch has {self.steps_per_epoch} steps")
        pin = torch.cuda.is_initialized() or (device is not None and torch.device(device).type == "cuda")
        batches = read_ahead(
            partial(self._batches, epoch, start_step, pin),
            self.prefetch,
            self.prefetch_bytes,
            lambda batch: batch.num_bytes,
        )
        return batches if device is None else to_device_ahead(batches, device)

    def class_counts(self, check: bool = True) -> np.ndarray:
        """Selected utterances per class over all ranks, [C] int64.

        Args:
            check: compare the manifest's counts with all indexes; else they are taken as they are.

        Raises:
            ValueError: the manifest's counts differ from those of the indexes, or an index is damaged.
            OSError: the store cannot be reached.
        """
        if check:
            self._reader.check_class_counts()
        return self._class_counts.copy()

    def metadata(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Key and metadata (with the label's name) of every selected utterance, in the manifest's order.

        Raises:
            ValueError, OSError: as `epoch` does.
        """
        for shard in range(len(self._shards)):
            yield from self._reader.metadata(shard, self.selected(shard).tolist())
            self._reader.close_all_but(())

    def statistics(self) -> dict[str, Sums]:
        """This rank's part of the sums over all selected utterances, per modality of features.

        Added over ranks they are the sums over the whole selection. Without a selection nothing is read: rank
        0 returns the manifest's statistics, all other ranks return zeros.

        Raises:
            ValueError, OSError: as `epoch` does.
        """
        if self._rows is None and self.rank == 0:
            statistics = self.manifest.splits[self.split].moments
            return {
                name: sums_from_statistics(m.count, np.array(m.mean), np.array(m.std))
                for name, m in statistics.items()
                if name in self.modalities
            }
        if self._rows is None:
            return no_sums(self.modalities)
        first = self.rank * self.num_utterances // self.world_size
        last = (self.rank + 1) * self.num_utterances // self.world_size
        shard = np.repeat(np.arange(len(self._rows)), [len(rows) for rows in self._rows])[first:last]
        row = self._all_rows[first:last]
        return sums_of_rows(self._reader, shard, row)

    def overlap(self, other: FeatureStream) -> int:
        """Number of utterances of `other` that are the same rows of the same shards, by the shards' hashes.

        It finds the same split under another URL, and copies of its shards. For other shards with the same
        features see `shards.streaming.common_utterances`.
        """
        own = {entry.sha256: shard for shard, entry in enumerate(self._shards)}
        return sum(
            len(np.intersect1d(self.selected(own[entry.sha256]), other.selected(shard), assume_unique=True))
            for shard, entry in enumerate(other._shards)
            if entry.sha256 in own
        )

    @property
    def shards(self) -> Sequence[ShardEntry]:
        """The shards of the split, in the manifest's order."""
        return self._shards

    @property
    def skips_damaged(self) -> bool:
        """Whether damaged utterances are skipped."""
        return self._reader.skip_damaged

    def index(self, shard: int) -> ShardIndex:
        """The index of a shard, fetched and verified if needed; the shard itself is not read.

        Raises:
            ValueError: it is missing or damaged.
            OSError: the store cannot be reached.
        """
        return self._reader.index(shard)

    def unselected(self, others: Sequence[FeatureStream]) -> int:
        """Number of utterances of this stream's split that neither it nor one of `others` selects.

        Utterances without a target do not count.
        """
        same_split = [self, *(s for s in others if (s.store.url, s.split) == (self.store.url, self.split))]
        return sum(
            entry.utterances - len(np.unique(np.concatenate([s._matching(shard) for s in same_split])))
            for shard, entry in enumerate(self._shards)
            if all(s._rows is not None for s in same_split)
        )

    def selected(self, shard: int) -> np.ndarray:
        """The selected rows of a shard that have a target, ascending; all rows by default."""
        return np.arange(self._shards[shard].utterances) if self._rows is None else self._rows[shard]

    def target_values(self) -> np.ndarray:
        """The target's values of the selected utterances of all ranks, [U, K] float64, in manifest order.

        It reads the indexes only. NaN where a value is missing, and where an index is damaged and damage is
        skipped; [U, 0] where the target is one class.

        Raises:
            ValueError: an index is missing or damaged.
            OSError: the store cannot be reached.
        """
        return target_values(self._reader, [self.selected(shard) for shard in range(len(self._shards))])

    def _matching(self, shard: int) -> np.ndarray:
        """Rows of a shard that match the selection, with and without a target."""
        chosen = self.selected(shard)
        return np.union1d(chosen, self._without_target[shard]) if self._without_target else chosen

    def _batches(
        self, epoch: int, start_step: int, pin: bool, stopped: threading.Event
    ) -> Generator[FeatureBatch, None, None]:
        """Make the batches of `epoch`; meanwhile threads fetch the shards of this window and the next one."""
        places = self._first_place, self._num_places
        # Indexes that balancing reads are not waited for any longer once this iterator is closed.
        plan = replace(
            self._plan, work=self._plan.work and partial(_work, self._reader, self._rows, stopped=stopped)
        )
        fetching, requested = DaemonThreads(FETCH_THREADS, "shards-fetch"), set[int]()
        try:
            steps = range(start_step, self.steps_per_epoch)
            for _, steps_of_window in groupby(steps, partial(windows_ahead, plan)):
                left = list(steps_of_window)
                wanted = shards_ahead(plan, epoch, left[0], *places)
                self._reader.close_all_but(wanted)
                # With more shards than may be open, each would be closed before it is needed.
                fetch = self._open if self._reader.keeps_open(len(wanted)) else self._fetch
                for shard in wanted:
                    if shard not in requested:
                        fetching.submit(fetch, shard, stopped)
                requested = set(wanted)
                while left:
                    # The first batch does not wait for more, then ever larger groups do.
                    group = left[: min(self._read_at_a_time, 1 + left[0] - start_step)]
                    yield from self._read(plan, epoch, group, pin, stopped)
                    left = left[len(group) :]
        finally:
            # Do not wait: a running download would block the caller. The shard it opens is not kept open.
            stopped.set()
            fetching.shutdown(wait=False, cancel_futures=True)
            self._reader.close_all_but(())

    def _open(self, shard: int, stopped: threading.Event) -> None:
        # Errors are ignored here: `_read` opens the shard again when it needs it, and raises.
        handle = self._reader.open(shard, wait_s=0.0, stop=stopped)
        if len(self.selected(shard)) >= READ_AHEAD_SHARE * self._shards[shard].utterances:
            handle.will_need()

    def _fetch(self, shard: int, stopped: threading.Event) -> None:
        self._reader.fetch(shard, stopped)  # as above

    def _read(
        self, plan: Plan, epoch: int, steps: list[int], pin: bool, stopped: threading.Event
    ) -> Iterator[FeatureBatch]:
        """The batches of some steps, which are read at once."""
        places, batches = [], []
        for step in steps:
            place, shard, row = rows_of_step(plan, epoch, step, self._first_place, self._num_places)
            if self._rows is not None:
                # The plan numbers the selected rows of each shard.
                row = self._all_rows[self._first_row[shard] + row]
            places.append(place)
            batches.append((shard, row))
        found = None
        if len(steps) > 1:
            # One of them may be damaged. Those before it are read in any case.
            with suppress(ValueError, FileNotFoundError):
                found = self._reader.features_of_batches(batches, pin, stopped)
        for i, step in enumerate(steps):
            utterances = found.pop(0) if found else self._reader.features(*batches[i], pin, stopped)
            yield self._batch(epoch, step, places[i], utterances)
            del utterances  # else its memory would not be free before the next batch

    def _batch(self, epoch: int, step: int, place: np.ndarray, utterances: Utterances) -> FeatureBatch:
        return FeatureBatch(
            features=utterances.features,
            label=utterances.label,
            host_label=utterances.label,
            target=utterances.target,
            host_target=utterances.target,
            key=utterances.key,
            place=torch.from_numpy(place[utterances.kept]),
            first_place=self._first_place,
            num_places=self._num_places,
            epoch=epoch,
            step=step,
            damaged=utterances.damaged,
        )


def _work(
    reader: ShardReader,
    rows: list[np.ndarray] | None,
    shards: list[int],
    stopped: threading.Event | None = None,
) -> list[np.ndarray]:
    """The work of each selected utterance of shards (`work_of`); `rows` as of `Selection`."""
    unknown = [shard for shard in shards if reader.known_work(shard) is None]
    work = dict(zip(unknown, reader.map(partial(reader.work, stop=stopped), unknown), strict=True))
    of_shard = [work[shard] if shard in work else reader.work(shard, stopped) for shard in shards]
    return of_shard if rows is None else [w[rows[s]] for s, w in zip(shards, of_shard, strict=True)]
