"""One job at a time in a run folder.

The main rank holds a lock (flock) on a file of the folder, which ends with its process however that dies. Not
every network disk carries such locks to other hosts, so the file also shows signs of life: its time of
change moves every few seconds. Nobody's clock is compared, only whether it moves.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from shards.storage import file_lock

LOCK_FILE = ".lock"  # says "HOST PID" while a job holds the folder, and after one that was killed
BEAT_S = 5.0  # between two signs of life
BEATS = 3  # of them mean that a job goes on; one that is just ending may still give one or two
STALE_S = 60.0  # without one: the job is dead, and only its host could have told the disk


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Keep other jobs out of the run folder while the block runs.

    A job killed on this host leaves nothing to wait for; one killed on another host is waited for until it
    has shown no sign of life for `STALE_S` seconds.

    Raises:
        ValueError: another job trains there; says which.
        OSError: the file cannot be written.
    """
    path = run_dir / LOCK_FILE
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _wait_for_others(path, descriptor)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{platform.node()} {os.getpid()}\n".encode(), 0)
        try:
            with _beating(descriptor):
                yield
        finally:
            os.ftruncate(descriptor, 0)  # whoever comes next, from whatever host, need not wait
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _beating(descriptor: int) -> Iterator[None]:
    """Signs of life while the block runs."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(descriptor)

    thread = threading.Thread(target=beat, name="run lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _wait_for_others(path: Path, descriptor: int) -> None:
    """Return as soon as no other job can be training here, with the lock where the disk has locks."""
    owner, last = _look(path)
    if _is_free(owner, _try_lock(descriptor)):
        return
    print(f"{path.parent} may be in use by {_named(owner)}: looking for signs of life", flush=True)
    beats, since = 0, time.monotonic()
    while not _is_free(owner, held := _try_lock(descriptor)):
        quiet = time.monotonic() - since
        if beats == BEATS:
            raise ValueError(
                f"{path.parent} is in use: {_named(owner)} trains there. Choose another run.dir, or end that "
                "job first"
            )
        if quiet > STALE_S:
            if held is not False:
                return
            raise ValueError(
                f"{path.parent} is in use: {_named(owner)} holds its lock, though without a sign of life for "
                f"{quiet:.0f} s. Choose another run.dir, end that process, or remove {path}"
            )
        time.sleep(BEAT_S / 10)
        owner, beat = _look(path)
        if beat != last:
            beats, last, since = beats + 1, beat, time.monotonic()


def _is_free(owner: str, held: bool | None) -> bool:
    """No other process has the lock, and no former owner is on a host that the lock may not reach."""
    return held is not False and (not owner or (held is True and owner.split()[0] == platform.node()))


def _named(owner: str) -> str:
    host, _, pid = owner.partition(" ")
    return f"process {pid} on {host}" if owner else "another process"


def _look(path: Path) -> tuple[str, int]:
    """Who holds or held the lock, and when it last gave a sign of life (opened: network disks look anew)."""
    with path.open() as file:
        return file.read().strip(), os.fstat(file.fileno()).st_mtime_ns


def _try_lock(descriptor: int) -> bool | None:
    """Whether this process has the lock now; None where the disk has no locks."""
    try:
        file_lock.lock(descriptor)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
