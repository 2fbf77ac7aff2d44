"""Locks on open files (flock), which the kernel drops when the process that holds them ends, however it ends.

To wait for a lock file of one's own, use `filelock.FileLock` (`sources.demo`, the compiler of DeepSpeed's
operator). This module has what filelock does not offer:

- shared locks, also on files that may only be read (`storage.cache`, `packing.output_folder`);
- locks on a file with content, and of which the caller keeps the descriptor: to write its name and its signs
  of life into it (`awtpn.run.lock`), or to let a child process inherit the lock (`awtpn.experiments.runner`);
- an error where the file system has no locks. filelock then creates a marker file instead, which a killed
  process leaves behind.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import BinaryIO


class NoFileLocks(OSError):
    """The file system has no locks, as some network file systems."""


def lock(file: BinaryIO | int, *, shared: bool = False, wait: bool = False) -> None:
    """Lock an open file until it is closed, in this process and in all that inherited the descriptor.

    Args:
        file: the file or its descriptor.
        shared: others may hold a shared lock at the same time.
        wait: until those that hold it let it go.

    Raises:
        BlockingIOError: another process holds it, and `wait` is False.
        NoFileLocks: the file system has no locks.
        OSError: it cannot be locked for another reason.
    """
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(file, how)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise NoFileLocks(error.errno, "no locks on this file system") from None
        raise


def open_locked(path: Path, flags: int = os.O_RDWR, mode: int = 0o666, *, shared: bool = False) -> BinaryIO:
    """Open a file and lock it, without waiting.

    Args:
        path: the file.
        flags: of `os.open`: O_RDWR | O_CREAT to create it, O_RDONLY for a shared lock on a file of others.
        mode: permissions of a file that is created.
        shared: as for `lock`.

    Raises:
        BlockingIOError, NoFileLocks: as `lock`.
        OSError: it cannot be opened or locked.
    """
    while True:
        read_only = flags & os.O_ACCMODE == os.O_RDONLY
        file = os.fdopen(os.open(path, flags, mode), "rb" if read_only else "r+b")
        try:
            lock(file, shared=shared)
        except OSError:
            file.close()
            raise
        # Its former holder may have removed it after we opened it: then the name is free, or another file's.
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()
