"""Which job a node took part in: the next job that it starts in need not wait for the end of that lease.

No step is made without all nodes. So where a node's process has ended, its job has ended, whatever became of
the others: even if the main rank's host still sends heartbeats, because only the network between the hosts
failed. Each node keeps a locked file with the ID of its job; the kernel drops the lock with the process. A
node that finds the lock free knows that the job with this ID has ended.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

from shards.storage import file_lock

FILE = ".job-{host}"  # nodes may share the disk, and some network disks carry no lock to other hosts


@contextlib.contextmanager
def take_part(folder: Path) -> Iterator[tuple[str | None, Callable[[str], None]]]:
    """In the block this process, the first one of its node, takes part in a job.

    Args:
        folder: the local run folder.

    Yields:
        The ID of a job that has ended, since the process of this node has; None if none is known. And a
        function that records the ID of the present job.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = file_lock.open_locked(folder / FILE.format(host=platform.node()), os.O_RDWR | os.O_CREAT)
    except OSError:  # another process has it, or the disk cannot: the next job waits for the lease
        yield None, lambda job: None
        return
    with file:

        def record(job: str) -> None:
            file.seek(0)
            file.truncate()
            file.write(job.encode())
            file.flush()

        yield file.read(100).decode(errors="replace").strip() or None, record
        # Not after an error. After a good end the main rank may still send, longer than this process lives.
        record("")
