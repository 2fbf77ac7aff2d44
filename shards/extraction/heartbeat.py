"""Signs of life: how the main rank of an extraction learns that another one is gone or hangs.

A rank that works leaves, now and then, a small file in the output folder that says how much it has done. The
main rank looks at the shards that are still missing and at the files of those who make them; whose file
stays the same for too long is not waited for. Nothing here waits on the network of the ranks: one that
vanished cannot hold up a collective.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tqdm import tqdm

from shards.packing.output_folder import MARKER, PART, Target, names_in, publish
from shards.storage.store import call_store

ALIVE = f"{MARKER}-alive-"  # and the rank
BEAT_S = 30.0
POLL_S = 10.0
# Of the time since the last look, so much counts as waiting: this rank may itself have been stopped.
LONGEST_GAP_S = 60.0


def heartbeat_writer(target: Target, rank: int, patience: float) -> Callable[[], None]:
    """For ranks above 0, to be called with each piece of work done: leaves a sign of life now and then.

    Raises (when called):
        OSError: another extraction has taken the folder over, or the store cannot be reached.
    """
    calls = 0

    def beat() -> None:
        path = target.work / f"{ALIVE}{rank}"
        path.write_text(str(calls))
        publish(target, path)

    at_times = _at_times(beat, patience)

    def tick() -> None:
        nonlocal calls
        calls += 1
        at_times()

    return tick


def heartbeat_monitor(watch: RankMonitor) -> Callable[[], None]:
    """For the main rank, to be called with each piece of work done: looks at the others now and then.

    Raises (when called):
        OSError: as `Watch.missing`.
    """
    return _at_times(watch.missing, watch.patience)


def _at_times(call: Callable[[], object], patience: float) -> Callable[[], None]:
    """Something to be called often; calls `call` at once, and then several times within the patience."""
    last = -float("inf")

    def tick() -> None:
        nonlocal last
        if time.monotonic() - last >= min(BEAT_S, patience / 4):
            call()
            last = time.monotonic()

    return tick


@dataclass
class RankMonitor:
    """What the main rank knows of the shards that others make.

    Attributes:
        target: the folder.
        owners: rank by name of shard, of those that others are to make.
        patience: seconds without a sign of life after which a rank is given up.
        looked: when that was done last, by this rank's clock.
        signs: by rank what was last seen of it, and for how many seconds.
    """

    target: Target
    owners: Mapping[str, int]
    patience: float
    looked: float = field(default_factory=time.monotonic)
    signs: dict[int, tuple[object, float]] = field(default_factory=dict)

    def missing(self) -> list[str]:
        """Names of the shards that are not there yet.

        Raises:
            OSError: who makes one has given no sign of life for too long, or the store cannot be reached.
        """
        if not self.owners:
            return []
        names = names_in(self.target.store)
        missing = [name for name in self.owners if name + PART not in names]
        ranks = sorted({self.owners[name] for name in missing})
        beats = self._beats([rank for rank in ranks if f"{ALIVE}{rank}" in names])
        now = time.monotonic()
        gap, self.looked = min(now - self.looked, LONGEST_GAP_S), now
        for rank in ranks:
            own = [name for name in missing if self.owners[name] == rank]
            sign = len(own), beats.get(rank)
            before, quiet = self.signs.get(rank, (None, 0.0))
            quiet = quiet + gap if sign == before else 0.0
            self.signs[rank] = sign, quiet
            if quiet > self.patience:
                raise OSError(
                    f"{self.target.store.url}: rank {rank} has made nothing for {self.patience / 60:g} min; "
                    f"{_listed(own)} missing; stop the job: the same command goes on with any number of ranks"
                )
        return missing

    def wait(self, progress: bool) -> None:
        """Return once all are there.

        Raises:
            OSError: as `missing`.
        """
        begin = time.monotonic()
        missing = self.missing()
        with tqdm(
            total=len(missing), desc="other ranks", unit="shard", disable=not (progress and missing)
        ) as bar:
            while missing:
                # Often at first, since most ranks end together.
                time.sleep(min(0.1 + (time.monotonic() - begin) / 4, POLL_S, self.patience / 4))
                missing = self.missing()
                bar.update(bar.total - len(missing) - bar.n)

    def _beats(self, ranks: list[int]) -> dict[int, bytes]:
        """What ranks have left."""
        store = self.target.store
        paths = [f"{store.root}/{ALIVE}{rank}" for rank in ranks]
        found = call_store(store, lambda: store.fs.cat(paths), store.url) if paths else {}
        return {int(path.rpartition("-")[2]): content for path, content in found.items()}


def _listed(names: list[str]) -> str:
    if len(names) > 3:
        return f"{', '.join(names[:3])} and {len(names) - 3} more are"
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"
