"""One job at a time in a run folder at a URL, on any store: no conditional writes are needed.

A job that starts writes an object of its own, `.lease/claim-ID`, waits `settle_s` and lists `.lease/`. If
nobody holds the lease, the claim with the smallest name wins: its job writes `.lease/holder-ID`, and writes
that again every `beat_s` as its heartbeat. A holder without heartbeat for `dead_s` is dead, and is removed by
the next one.

A job that lost a process of its own cannot go on, whatever its main rank still sends. Where it is known to
have ended so (`membership`), its claim and its heartbeats do not count.

Ages are differences of times that the store gave: of a heartbeat, and of one's own claim, which is written
again just before each listing. No host's clock is read. So listings must show what was written before them,
as those of S3, Google Cloud Storage, Azure and Swift do.

Not used: `If-None-Match: *`. It cannot take over from a dead holder, and fsspec cannot tell whether a store
honors it (Swift does, measured; some stores ignore it without an error, and SFTP has nothing like it).
"""

from __future__ import annotations

import os
import platform
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from awtpn.run.remote import files
from shards.safe_io.bounded_json import parse_json
from shards.safe_io.json_text import json_text
from shards.safe_io.printable import printable
from shards.storage.store import Store

FOLDER = ".lease"
HOLDER, CLAIM = f"{FOLDER}/holder-", f"{FOLDER}/claim-"
SIGNS_OF_LIFE = 2  # a killed process may have sent one more heartbeat


@dataclass(frozen=True)
class Times:
    """Of a lease, in seconds.

    Attributes:
        beat_s: between two heartbeats.
        dead_s: without a heartbeat for so long, the holder is dead.
        settle_s: between the claim and the listing that decides.
        poll_s: between two listings while waiting.
    """

    beat_s: float = 20.0
    dead_s: float = 120.0
    settle_s: float = 5.0
    poll_s: float = 5.0


TIMES = Times()


class LeaseLost(RuntimeError):
    """Another job has taken the lease: this one must not write to the run folder any more."""


def new_id() -> str:
    return secrets.token_hex(8)


def acquire(
    store: Store,
    own: str,
    times: Times = TIMES,
    ended: Collection[str] = (),
    wait: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Get the lease of a run folder; if a job that may be dead holds it, wait until that is known.

    Args:
        store: the run folder.
        own: ID of this job, from `new_id`.
        times: of the lease.
        ended: IDs of jobs that are known to have ended: a process of theirs ran on a host of this job.
        wait: sleeps.
        clock: measures durations in this process.

    Raises:
        ValueError: another job holds it, or starts at the same moment.
        OSError: the store cannot be reached, or refuses.
    """
    claim, holder = CLAIM + own, HOLDER + own
    known: dict[str, float] | None = None  # others, and when they wrote last
    signs, told = 0, False
    try:
        files.put_bytes(store, claim, b"")
        claimed = clock()
        while True:
            files.put_bytes(store, claim, b"")  # to stay alive, and to learn what time it is at the store
            asked = clock()
            found = files.list_files(store, FOLDER)
            if claim not in found:
                raise OSError(f"{store.url}: a listing does not show {claim}, which was just written")
            others = live_others(found, {own, *ended}, found[claim].modified, times.dead_s)
            blocking = {name: at for name, at in others.items() if name.startswith(HOLDER) or name < claim}
            if not blocking and clock() - claimed >= times.settle_s:
                files.put_bytes(store, holder, _about(0))
                # A smaller claim written after our listing waits for `settle_s` before its own listing, which
                # shows us as the holder, if our write was quicker than that.
                if clock() - asked <= times.settle_s / 2:
                    break
                files.delete(store, [holder])
                continue
            # A holder that was no holder before is alive; and so is who writes again.
            if known is not None and any(n not in known and n.startswith(HOLDER) for n in blocking):
                signs = SIGNS_OF_LIFE
            signs += any(known is not None and known.get(n, at) != at for n, at in blocking.items())
            if signs >= SIGNS_OF_LIFE:
                raise ValueError(
                    f"{store.url} is in use: {_who(store, blocking)}. Choose another run.dir, or end that "
                    "job first"
                )
            known = (known or {}) | blocking
            if blocking and not told:
                told = True
                print(
                    printable(
                        f"{store.url} may be in use: {_who(store, blocking)}. Waiting for its heartbeat, at "
                        f"most {times.dead_s:.0f} s"
                    ),
                    flush=True,
                )
            wait(min(times.poll_s, times.settle_s) if not blocking else times.poll_s)
    finally:
        files.delete(store, [claim])
    dead = [name for name in found if name not in others and name not in (claim, holder)]
    files.delete(store, dead)


def live_others(
    found: Mapping[str, files.Stored], but: Collection[str], now: float, dead_s: float = TIMES.dead_s
) -> dict[str, float]:
    """Claims and holders of jobs that are not dead, and when they wrote last.

    Args:
        found: the files in `.lease`.
        but: IDs of jobs that do not count: this one, and those that have ended.
        now: by the store's clock.
        dead_s: of the lease.
    """
    left_out = {kind + job for kind in (HOLDER, CLAIM) for job in but}
    return {
        name: stored.modified
        for name, stored in found.items()
        if name.startswith((HOLDER, CLAIM)) and name not in left_out and now - stored.modified <= dead_s
    }


def renew(store: Store, own: str, beats: int, times: Times = TIMES, ended: Collection[str] = ()) -> None:
    """A heartbeat of the holder.

    Args:
        store: the run folder.
        own: ID of this job.
        beats: how many heartbeats there were.
        times: of the lease.
        ended: as for `acquire`.

    Raises:
        LeaseLost: another job has taken the lease, because this one had no heartbeat for `dead_s`.
        OSError: the store cannot be reached, or refuses.
    """
    check_held(store, own, times, ended)
    files.put_bytes(store, HOLDER + own, _about(beats))


def check_held(store: Store, own: str, times: Times = TIMES, ended: Collection[str] = ()) -> None:
    """Check that the lease is held by this job.

    Args:
        store: the run folder.
        own: ID of this job.
        times: of the lease.
        ended: as for `acquire`; one of them that was just writing a heartbeat is removed once more.

    Raises:
        LeaseLost: it is not.
        OSError: the store cannot be reached, or refuses.
    """
    holder = HOLDER + own
    found = files.list_files(store, FOLDER)
    if holder in found:
        files.delete(store, [name for name in found if name in {HOLDER + job for job in ended}])
        others = live_others(found, {own, *ended}, found[holder].modified, times.dead_s)
        # Two hold it if one of them slept between its check and its heartbeat: one rule for both.
        if not any(name.startswith(HOLDER) and name < holder for name in others):
            return
    raise LeaseLost(
        f"{store.url}: another job has taken this run folder over, since this one had no heartbeat for "
        f"{times.dead_s:.0f} s (was the network or this process stopped?)"
    )


def release(store: Store, own: str) -> None:
    """Give the lease back, so that the next job need not wait."""
    files.delete(store, [HOLDER + own])


def held_by(store: Store, times: Times = TIMES) -> str | None:
    """Who holds the lease of a run folder now; None if nobody does.

    It writes a probe to learn the store's time, and removes it.

    Raises:
        OSError: the store cannot be reached, or refuses.
    """
    probe = f"{FOLDER}/probe-{new_id()}"
    files.put_bytes(store, probe, b"")
    try:
        found = files.list_files(store, FOLDER)
    finally:
        files.delete(store, [probe])
    now = max(stored.modified for stored in found.values()) if found else 0.0
    now = found[probe].modified if probe in found else now
    alive = live_others(found, (), now, times.dead_s)
    return _who(store, alive) if alive else None


def _about(beats: int) -> bytes:
    about = {"host": platform.node(), "process": os.getpid(), "heartbeats": beats}
    return json_text(about).encode()


def _who(store: Store, names: Mapping[str, float]) -> str:
    """Who wrote these objects, for a message."""
    for name in sorted(names, reverse=True):  # holders come after claims
        if not name.startswith(HOLDER):
            continue
        try:
            about = parse_json((files.read_bytes(store, name) or b"").decode(), name)
            return f"process {int(about['process'])} on {about['host']!s:.80} trains there"
        except (ValueError, KeyError, TypeError, OSError):
            return "another job trains there"
    return "another job starts there at this moment"
