"""One job at a time in a run folder.

The main rank holds a lock (flock) on a file of the folder; the kernel drops it when the process dies. Some
network disks do not carry such locks to other hosts. So the holder also updates the file's modification time
every few seconds, as a heartbeat. Only changes of that time are used, because clocks of hosts may differ.
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
HEARTBEAT_S = 5.0  # between two heartbeats
HEARTBEATS = 3  # so many mean that the job runs; a job that is ending may still write one or two
STALE_S = 60.0  # without a heartbeat for so long, the job is dead


@contextlib.contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Keep other jobs out of the run folder while the block runs.

    After a job killed on this host the lock is free at once. After a job killed on another host the call
    waits until there was no heartbeat for `STALE_S` seconds.

    Raises:
        ValueError: another job trains there; names it.
        OSError: the file cannot be written.
    """
    path = run_dir / LOCK_FILE
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _wait_for_others(path, descriptor)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{platform.node()} {os.getpid()}\n".encode(), 0)
        try:
            with _heartbeat(descriptor):
                yield
        finally:
            os.ftruncate(descriptor, 0)  # so that the next job need not wait, on any host
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _heartbeat(descriptor: int) -> Iterator[None]:
    """Update the file's modification time while the block runs."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_S):
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
    """Return when no other job can be training here, holding the lock where the disk has locks."""
    owner, last = _read_owner(path)
    if _is_free(owner, _try_lock(descriptor)):
        return
    print(f"{path.parent} may be in use by {_describe(owner)}: waiting for its heartbeat", flush=True)
    beats, since = 0, time.monotonic()
    while not _is_free(owner, held := _try_lock(descriptor)):
        quiet = time.monotonic() - since
        if beats == HEARTBEATS:
            raise ValueError(
                f"{path.parent} is in use: {_describe(owner)} trains there. Choose another run.dir, or end "
                "that job first"
            )
        if quiet > STALE_S:
            if held is not False:
                return
            raise ValueError(
                f"{path.parent} is in use: {_describe(owner)} holds its lock, but has had no heartbeat for "
                f"{quiet:.0f} s. Choose another run.dir, end that process, or remove {path}"
            )
        time.sleep(HEARTBEAT_S / 10)
        owner, beat = _read_owner(path)
        if beat != last:
            beats, last, since = beats + 1, beat, time.monotonic()


def _is_free(owner: str, held: bool | None) -> bool:
    """Whether no other process has the lock, and no owner is on a host that the lock may not reach."""
    return held is not False and (not owner or (held is True and owner.split()[0] == platform.node()))


def _describe(owner: str) -> str:
    host, _, pid = owner.partition(" ")
    return f"process {pid} on {host}" if owner else "another process"


def _read_owner(path: Path) -> tuple[str, int]:
    """Who holds or held the lock, and the time of its last heartbeat."""
    with path.open() as file:  # opened each time: a network disk then asks its server
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
