"""The marker of an output folder: a file that says a packing or extraction began there and has not ended.

It holds a token by which a process notices that another one has taken the folder over. The token of a packing
says when and where it began. The token of an extraction begins with the extraction's id. So an extraction
that is started again recognizes its folder, writes a new token and continues. A process of the earlier start
that still runs finds the new token and stops.

On a local disk a packing locks its marker. The kernel drops the lock when the process dies. An object store
has no locks: there a packing that began less than `PRESUMED_ALIVE_S` ago is presumed to be running.
"""

from __future__ import annotations

import os
import re
import socket
import time
import uuid
from pathlib import Path
from typing import BinaryIO

from shards.storage.file_lock import NoFileLocks, open_locked
from shards.storage.store import Store, call_store

MARKER = ".packing"
PRESUMED_ALIVE_S = 600
PACKING_TOKEN = re.compile(rb"packing \S+ since (\d+) by (process \d+ on \S+)")
EXTRACTION = b"extraction "  # an extraction's token: this, its id, a space, and what tells its launches apart


def packing_token() -> bytes:
    by = f"process {os.getpid()} on {socket.gethostname()}"
    return f"packing {uuid.uuid4().hex} since {int(time.time())} by {by}".encode()


def extraction_token(extraction: str) -> bytes:
    return EXTRACTION + f"{extraction} {uuid.uuid4().hex}".encode()


def is_extraction(token: bytes) -> bool:
    return token.startswith(EXTRACTION)


def is_same_extraction(one: bytes, other: bytes) -> bool:
    """Whether two tokens are of launches of the same extraction."""
    return is_extraction(one) and one.split()[1:2] == other.split()[1:2]


def read_token(store: Store) -> bytes:
    """The token in the folder's marker; empty where there is no marker."""
    try:
        return call_store(store, lambda: store.fs.cat_file(f"{store.root}/{MARKER}"), f"{store.url}/{MARKER}")
    except FileNotFoundError:
        return b""


def write_marker(store: Store, token: bytes) -> None:
    """Take the folder over. The process whose token was there before stops at its next `check_still_ours`."""
    call_store(store, lambda: store.fs.pipe_file(f"{store.root}/{MARKER}", token), f"{store.url}/{MARKER}")


def lock_marker(store: Store, shared: bool = False) -> BinaryIO | None:
    """Lock the marker; for an exclusive lock create it first.

    Returns:
        The locked file. None where there is no marker to share, in an object store, and on a file system
        without locks.

    Raises:
        ValueError: another packing holds the lock.
        OSError: the marker cannot be created.
    """
    path = Path(store.root) / MARKER
    if store.cache is not None:
        return None
    if not shared:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return open_locked(path, os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT, shared=shared)
    except BlockingIOError:
        began = PACKING_TOKEN.fullmatch(read_token(store))
        who = f", {began[2].decode()}" if began else ""
        raise ValueError(
            f"{store.url}: another packing is running here{who}; wait for it, or pack elsewhere"
        ) from None
    except (FileNotFoundError, NoFileLocks):
        return None


def check_no_other_packing(store: Store, overwrite: bool) -> None:
    """Refuse a folder whose marker is locked, or in an object store one whose packing began a short time ago.

    Raises:
        ValueError: another packing is running there, or may be.
    """
    if (probe := lock_marker(store, shared=True)) is not None:
        probe.close()
    began = PACKING_TOKEN.fullmatch(read_token(store))
    if store.cache is None or overwrite or began is None:
        return
    age = max(0, int(time.time()) - int(began[1]))
    if age < PRESUMED_ALIVE_S:
        raise ValueError(
            f"{store.url}: another packing began here {age} s ago, {began[2].decode()}; if it is dead, wait "
            f"{PRESUMED_ALIVE_S - age} s, or pass overwrite (--overwrite)"
        )
