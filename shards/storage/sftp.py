"""One SSH connection among threads: asked in turn, not waited for without end, opened again when lost.

paramiko's SFTP client gives the answer to one thread's question to another (measured: two threads that ask at
once both wait for ever), waits for a frozen server without end, and stays dead once its server has been away.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from shards.storage.timeouts import READ_S

T = TypeVar("T")

# By file system, which has one connection each; downloads from several hosts go side by side.
_turns: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()


def call_serialized(fs: Any, call: Callable[[], T]) -> T:
    """`call()`, which uses `fs`; other threads that ask the same one wait for their turn.

    Args:
        fs: an fsspec SFTPFileSystem.
        call: asks it for something.

    Raises:
        Exception: what `call` raises, or paramiko when it cannot connect again.
    """
    with _turns.setdefault(fs, threading.RLock()):
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
            # Answers under way would be taken for those to the next question.
            fs.client.close()
            raise
