"""Share one SFTP connection among threads: one request at a time, with a timeout, and reconnect when lost.

paramiko's SFTP client needs all three. It mixes up the answers of threads (measured: two threads that send
requests at the same time both wait for ever), it waits for a hanging server without limit, and it never
reconnects.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from shards.storage.timeouts import READ_S

T = TypeVar("T")

# One lock per file system, which has one connection; downloads from several hosts run in parallel.
_locks: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()


def call_serialized(fs: Any, call: Callable[[], T]) -> T:
    """`call()`, which uses `fs`, while no other thread uses it.

    Args:
        fs: an fsspec SFTPFileSystem.
        call: sends a request to it.

    Raises:
        Exception: what `call` raises, or paramiko when it cannot connect again.
    """
    with _locks.setdefault(fs, threading.RLock()):
        transport = fs.client.get_transport()
        if transport is None or not transport.is_active():
            fs.client.connect(fs.host, **fs.ssh_kwargs)
            fs.ftp = fs.client.open_sftp()
        fs.ftp.get_channel().settimeout(READ_S)
        try:
            return call()
        except (FileNotFoundError, PermissionError):
            raise
        except Exception:
            # Close: an answer that arrives late would be taken for that of the next request.
            fs.client.close()
            raise
