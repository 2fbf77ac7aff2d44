"""A folder of downloaded files that the processes of a node share, with a limit on its bytes (`cache_limit`).

A process that opens a file holds a shared lock (flock) on it. Only a file that can be locked exclusively, so
that no process has it open, is removed; the least recently used first. The kernel drops the locks of a
process that dies, so no stale lock is left. A download is written to a `.part` file, which its process locks
exclusively, and renamed when it is complete. A `.part` file of a killed process is unlocked: the next
download of that file takes it over, or it is removed. The folder must be on a local disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from shards.storage import file_lock
from shards.storage.file_lock import NoFileLocks, open_locked

# How long to wait until other processes close files, so that there is room in the cache.
ROOM_WAIT_S = 60.0
POLL_S = 0.1

CACHE_VARIABLE = "AWTPN_CACHE_DIR"  # environment variable: the cache folder if no option names one

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
UNITS |= {f"{unit}i": 2 ** (10 * power) for power, unit in enumerate("kmgt", start=1)}

LOCK = ".lock"
# Names of cached files. Nothing else in the folder is ever removed or counted.
CACHED = re.compile(r"[0-9a-f]{16}-[^/]+")
PART = re.compile(r"\.[0-9a-f]{16}-[^/]+\.(\d+)\.part")


@dataclass(frozen=True)
class Cache:
    """A dataset's folder in a cache.

    Attributes:
        root: of the cache, with one folder for each dataset.
        folder: the dataset's.
        limit: bytes that all files under `root` may have together; None for no limit.
    """

    root: Path
    folder: Path
    limit: int | None = None


UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)


class CacheFull(OSError):
    """The limit is reached, and all files in the cache are in use."""


class CacheUnwritable(OSError):
    """The cache folder cannot be created or written. Not a ValueError, which would mean damaged data."""


@contextlib.contextmanager
def explain_unwritable(folder: Path) -> Iterator[None]:
    """Turn an OSError about `folder`, in a cache, into one line that says how to choose another cache.

    Raises:
        CacheUnwritable: the folder cannot be created or written. Other OSErrors, such as a full disk, stay.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise CacheUnwritable(
            f"the cache folder {folder} cannot be written ({error.strerror}): name another one with "
            f"data.cache_dir (--cache_dir) or the environment variable {CACHE_VARIABLE}"
        ) from None


def parse_bytes(size: int | str) -> int:
    """A number of bytes: 200000, "200GB" (powers of 1000) or "200GiB" (powers of 1024).

    Raises:
        ValueError: it is not a number of bytes.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", str(size).lower())
    if isinstance(size, bool) or not found or found[2] not in UNITS:
        raise ValueError(f"{size!r} is not a number of bytes; write 200000000, '200MB' or '1.5GiB'")
    return int(float(found[1]) * UNITS[found[2]]) if "." in found[1] else int(found[1]) * UNITS[found[2]]


def open_cached(
    cache: Cache, name: str, size: int, fetch: Callable[[Path], None], wait_s: float = ROOM_WAIT_S
) -> BinaryIO:
    """Open a file of the cache for reading, fetched first if it is not there.

    Args:
        cache: the cache.
        name: in the dataset's folder; like `CACHED`, with the file's hash in it.
        size: in bytes.
        fetch: writes the file, complete and verified, to the path it is given.
        wait_s: how long to wait until the limit leaves room.

    Returns:
        The file; as long as it is open no process removes it.

    Raises:
        CacheFull: there is no room, and all files in the cache are in use.
        CacheUnwritable: the folder cannot be written.
        OSError: the disk is full.
        Whatever `fetch` raises.
    """
    # The name must not lead out of the folder: the file is opened, replaced and removed.
    assert CACHED.fullmatch(name), name
    path = cache.folder / name
    part = cache.folder / f".{name}.{size}.part"
    deadline = time.monotonic() + wait_s
    while True:
        if (file := _open_shared(path, size)) is not None:
            return file
        try:
            with explain_unwritable(cache.folder):
                cache.folder.mkdir(parents=True, exist_ok=True)
                claimed = _acquire(cache, path, part, size)
        except CacheFull:
            if time.monotonic() >= deadline:
                raise
            time.sleep(POLL_S)
            continue
        if claimed is None:
            _wait_for(part)
            continue
        with claimed:
            try:
                fetch(part)
                # Else after a power cut the file might have its final name, but not its content.
                with open(part, "rb") as written:
                    os.fsync(written.fileno())
                # Under the lock: a process that adds up sizes at this moment could see neither name.
                with _locked(cache.root / LOCK):
                    os.replace(part, path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise


def _open_shared(path: Path, size: int) -> BinaryIO | None:
    """Open and lock a complete file; None where there is none."""
    try:
        file = open(path, "rb")  # noqa: SIM115 (handed to the caller)
    except (FileNotFoundError, NotADirectoryError):
        return None
    _wait_for_lock(file, shared=True)
    found = os.fstat(file.fileno())
    if found.st_nlink and found.st_size == size:
        # Marks it as used. A cache that others filled may be read-only.
        with contextlib.suppress(OSError):
            os.utime(file.fileno())
        return file
    file.close()
    if found.st_nlink:
        # Its content was verified before it got this name: someone has damaged it since.
        path.unlink(missing_ok=True)
    return None


def _acquire(cache: Cache, path: Path, part: Path, size: int) -> BinaryIO | None:
    """Take on the download of a file; None where another process has, or has just finished it."""
    with _locked(cache.root / LOCK):
        file = _open_exclusive(part, os.O_CREAT)
        if file is None:
            return None
        try:
            if not path.exists():
                _make_room(cache, part, size)
                return file
        except BaseException:
            part.unlink(missing_ok=True)
            file.close()
            raise
        part.unlink(missing_ok=True)
        file.close()
        return None


def _make_room(cache: Cache, part: Path, size: int) -> None:
    """Remove the least recently used files until `size` bytes, to be written to `part`, fit the limit."""
    if cache.limit is None:
        return
    files = sorted(found for found in _files(cache.root) if found[1] != part)
    used = sum(each for _, _, each in files)
    for _, path, each in files:
        # Nothing is removed for a file that would not even fit into an empty cache.
        if used + size <= cache.limit or size > cache.limit:
            break
        if (unused := _open_exclusive(path)) is not None:
            with unused:
                path.unlink(missing_ok=True)
            used -= each
    if used + size > cache.limit:
        raise CacheFull(
            f"cache_limit is {cache.limit} bytes, {used} of them in use in {cache.root}, and {size} more "
            f"are needed: set it to {used + size} or more"
        )


def _files(root: Path) -> Iterator[tuple[float, Path, int]]:
    """Time of last use, path and size of all files, and of those being fetched the size they will have."""
    for folder in root.iterdir():
        if not folder.is_dir():
            continue
        for entry in os.scandir(folder):
            part = PART.fullmatch(entry.name)
            if part or CACHED.fullmatch(entry.name):
                # Other processes rename and remove files at the same time.
                with contextlib.suppress(FileNotFoundError):
                    found = entry.stat()
                    yield found.st_mtime, Path(entry.path), int(part[1]) if part else found.st_size


def _open_exclusive(path: Path, flags: int = 0) -> BinaryIO | None:
    """Open and lock a file that no one else uses; None where someone does, or there is none."""
    try:
        return open_locked(path, os.O_RDWR | flags, 0o644)
    except BlockingIOError:
        return None
    except NoFileLocks as error:
        raise _without_locks(path, error) from None
    except (FileNotFoundError, PermissionError):
        if flags:
            raise
        return None


def _wait_for(part: Path) -> None:
    """Wait until the process that fetches a file has finished or failed; its retries are limited in time."""
    with contextlib.suppress(FileNotFoundError), open(part, "rb") as file:
        _wait_for_lock(file, shared=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of all users of the cache, for the short time of counting and making room."""
    with open(path, "ab") as file:
        _wait_for_lock(file)
        yield


def _wait_for_lock(file: BinaryIO, shared: bool = False) -> None:
    try:
        file_lock.lock(file, shared=shared, wait=True)
    except NoFileLocks as error:
        raise _without_locks(Path(file.name), error) from None


def _without_locks(path: Path, error: OSError) -> OSError:
    return OSError(error.errno, f"{path}: {error.strerror}; set cache_dir to one on a local disk")
