"""Heartbeats: how rank 0 of an extraction learns that another rank is gone or hangs.

A working rank writes a small file into the output folder every `INTERVAL_S` seconds; it says how much the
rank has done. Rank 0 looks at the shards that are still missing and at the heartbeats of their ranks.
If a heartbeat stays the same for too long, rank 0 stops with an error. No collective is used here,
because a rank that vanished would block it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from shards.extraction.shard_records import record_name
from shards.packing.marker import MARKER
from shards.packing.output_folder import OutputFolder, list_names, publish
from shards.progress import progress_bar
from shards.storage.store import call_store

HEARTBEAT = f"{MARKER}-alive-"  # and the rank
INTERVAL_S = 30.0
POLL_S = 10.0
# At most so much of the time since the last check counts as time without progress: rank 0 itself may have
# been suspended.
LONGEST_GAP_S = 60.0


def heartbeat_writer(folder: OutputFolder, rank: int, patience: float) -> Callable[[], None]:
    """For ranks above 0: a function to call with each piece of work; it writes a heartbeat at intervals.

    Raises (when called):
        OSError: another extraction has taken the folder over, or the store cannot be reached.
    """
    calls = 0

    def write() -> None:
        path = folder.workdir / f"{HEARTBEAT}{rank}"
        path.write_text(str(calls))
        publish(folder, path)

    write_at_intervals = _at_intervals(write, patience)

    def on_progress() -> None:
        nonlocal calls
        calls += 1
        write_at_intervals()

    return on_progress


def heartbeat_monitor(monitor: RankMonitor) -> Callable[[], None]:
    """For rank 0: a function to call with each piece of work; it checks the others at intervals.

    Raises (when called):
        OSError: as `RankMonitor.missing`.
    """
    return _at_intervals(monitor.missing, monitor.patience)


def _at_intervals(call: Callable[[], object], patience: float) -> Callable[[], None]:
    """A function to be called often: it calls `call` at once, and then again after each interval."""
    last = -float("inf")

    def on_progress() -> None:
        nonlocal last
        if time.monotonic() - last >= min(INTERVAL_S, patience / 4):
            call()
            last = time.monotonic()

    return on_progress


@dataclass
class RankMonitor:
    """What rank 0 knows of the shards of other ranks.

    Attributes:
        folder: the output folder.
        owners: by name of a shard the rank that makes it, without the shards of rank 0.
        patience: seconds without progress of a rank after which `missing` raises an error.
        last_check: when `missing` was called last, by this process's clock.
        last_seen: by rank its progress when checked last, and for how many seconds it has been the same.
    """

    folder: OutputFolder
    owners: Mapping[str, int]
    patience: float
    last_check: float = field(default_factory=time.monotonic)
    last_seen: dict[int, tuple[object, float]] = field(default_factory=dict)

    def missing(self) -> list[str]:
        """Names of the shards that have no record yet.

        Raises:
            OSError: the rank of one has made no progress for too long, or the store cannot be reached.
        """
        if not self.owners:
            return []
        names = list_names(self.folder.store)
        missing = [shard for shard in self.owners if record_name(shard) not in names]
        ranks = sorted({self.owners[shard] for shard in missing})
        heartbeats = self._read_heartbeats([rank for rank in ranks if f"{HEARTBEAT}{rank}" in names])
        now = time.monotonic()
        gap, self.last_check = min(now - self.last_check, LONGEST_GAP_S), now
        for rank in ranks:
            own = [shard for shard in missing if self.owners[shard] == rank]
            progress = len(own), heartbeats.get(rank)
            before, quiet = self.last_seen.get(rank, (None, 0.0))
            quiet = quiet + gap if progress == before else 0.0
            self.last_seen[rank] = progress, quiet
            if quiet > self.patience:
                raise OSError(
                    f"{self.folder.store.url}: rank {rank} has made no progress for "
                    f"{self.patience / 60:g} min; {_listed(own)} missing; stop the job: the same command "
                    "continues with any number of ranks"
                )
        return missing

    def wait(self, show_progress: bool) -> None:
        """Return when no shard is missing.

        Raises:
            OSError: as `missing`.
        """
        begin = time.monotonic()
        missing = self.missing()
        total = len(missing)
        with progress_bar("other ranks", "shard", total, show=show_progress and bool(missing)) as bar:
            while missing:
                # Often at first, because most ranks end at about the same time.
                time.sleep(min(0.1 + (time.monotonic() - begin) / 4, POLL_S, self.patience / 4))
                missing = self.missing()
                bar.update(total - len(missing) - bar.n)

    def _read_heartbeats(self, ranks: list[int]) -> dict[int, bytes]:
        store = self.folder.store
        paths = [f"{store.root}/{HEARTBEAT}{rank}" for rank in ranks]
        found = call_store(store, lambda: store.fs.cat(paths), store.url) if paths else {}
        return {int(path.rpartition("-")[2]): content for path, content in found.items()}


def _listed(names: list[str]) -> str:
    if len(names) > 3:
        return f"{', '.join(names[:3])} and {len(names) - 3} more are"
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"
