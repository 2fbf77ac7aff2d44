"""Put, get, list and delete the files of a run folder at a URL, with retries; a reader sees a file whole.

An object of a store is replaced at once. Other file systems (SFTP) get a temporary file, which is renamed.
Nothing is taken from a cache of listings: other hosts change the folder, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from shards.format.hashing import hash_file
from shards.storage.credentials import redact_url
from shards.storage.retry import WrongContent
from shards.storage.store import Store, call_store, default_cache, open_store

# Their writes replace an object at once, and folders need not be made.
OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "memory")
TEMPORARY = ".tmp"  # ends the name of a file that is being written, on other file systems
# In the information about a file, by file system: when it was last written, by the store's clock.
TIMES = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")


@dataclass(frozen=True)
class Stored:
    """A file at the URL: its size in bytes, and when it was written, in seconds by the store's clock."""

    size: int
    modified: float


def open_remote(url: str, storage_options: dict[str, Any] | None = None) -> Store:
    """Open a run folder at a URL, by a file system of its own: no instance is shared with other threads.

    Raises:
        ValueError: there is no file system for this URL, or its package is missing.
        OSError: the store cannot be reached (SFTP connects here).
    """
    return open_store(url, default_cache(), {**(storage_options or {}), "skip_instance_cache": True})


def local_copy(url: str, storage_options: dict[str, Any] | None = None, kind: str = "run") -> Path:
    """The default of `run.local_dir`: a folder in the cache, named by the digest of URL and endpoint.

    Args:
        url: of the run folder.
        storage_options: their endpoint is part of the name.
        kind: ends the name of the folder in the cache.
    """
    endpoint = str((storage_options or {}).get("endpoint_url") or os.environ.get("AWS_ENDPOINT_URL", ""))
    shown = redact_url(url)
    digest = hashlib.sha256(f"{shown}\n{redact_url(endpoint)}".encode()).hexdigest()[:16]
    name = shown.rpartition("/")[2]
    return default_cache() / f"{digest}.{kind}" / ("run" if name in ("", ".", "..") else name)


def protocol(store: Store) -> str:
    return store.url.partition("://")[0]


def put_bytes(store: Store, name: str, content: bytes) -> None:
    """Write a small file.

    Raises:
        OSError: the store cannot be reached, or refuses.
    """

    def write(path: str) -> None:
        store.fs.pipe_file(path, content)

    _put(store, name, write)


def put_file(store: Store, name: str, path: Path) -> None:
    """Send a local file, and check its size at the store.

    Raises:
        OSError: the store cannot be reached, refuses, or holds another size in the end.
    """
    size = path.stat().st_size

    def write(target: str) -> None:
        store.fs.put_file(str(path), target)
        store.fs.invalidate_cache()
        if (found := store.fs.info(target)["size"]) != size:
            raise OSError(f"the store holds {found} bytes of {size}")

    _put(store, name, write)


def _put(store: Store, name: str, write: Callable[[str], None]) -> None:
    path = f"{store.root}/{name}"

    def put() -> None:
        if protocol(store) in OBJECT_STORES:
            write(path)
            return
        store.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        write(path + TEMPORARY)
        store.fs.mv(path + TEMPORARY, path)

    call_store(store, put, f"{store.url}/{name}")


def read_bytes(store: Store, name: str) -> bytes | None:
    """The content of a small file; None if there is none.

    Raises:
        OSError: the store cannot be reached, or refuses.
    """
    path = f"{store.root}/{name}"

    def read() -> bytes:
        with missing_only_if_not_listed(store, name):
            return bytes(store.fs.cat_file(path))

    try:
        return call_store(store, read, f"{store.url}/{name}")
    except FileNotFoundError:
        return None


def get_file(store: Store, name: str, path: Path, size: int | None = None, sha256: str | None = None) -> None:
    """Fetch a file to `path`, which is replaced when all of it is there.

    Args:
        store: the run folder at its URL.
        name: in it.
        path: the local file; its folder is made.
        size: in bytes, to be checked.
        sha256: to be checked.

    Raises:
        FileNotFoundError: there is none.
        ValueError: its content is not as it was sent.
        OSError: the store cannot be reached, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")

    def get() -> None:
        with missing_only_if_not_listed(store, name):
            store.fs.get_file(f"{store.root}/{name}", str(temporary))
        found = temporary.stat().st_size
        if size is not None and found != size:
            raise WrongContent(f"it has {found} bytes, {size} were sent")
        if sha256 is not None and hash_file(temporary) != sha256:
            raise WrongContent("its content is not what was sent (another sha256)")

    try:
        call_store(store, get, f"{store.url}/{name}")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def missing_only_if_not_listed(store: Store, name: str) -> Iterator[None]:
    """Turn "no such file" into an error that is tried again, if a listing of its folder shows the file.

    What is missing decides what is deleted, so it must be true. Swift answered 404 for objects that were
    there, just after its object server was killed and restarted (measured).

    Raises:
        OSError: the file is listed, but was not found.
    """
    try:
        yield
    except FileNotFoundError:
        folder, _, file = f"{store.root}/{name}".rpartition("/")
        store.fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            listed = {str(each).rstrip("/").rpartition("/")[2] for each in store.fs.ls(folder, detail=False)}
            if file in listed:
                raise OSError("it is listed, but the store did not find it") from None
        raise


def list_files(store: Store, folder: str = "") -> dict[str, Stored]:
    """All files in a folder of the run folder and below it, by their names in the run folder.

    Raises:
        OSError: the store cannot be reached, or refuses.
    """
    where = f"{store.root}/{folder}".rstrip("/")

    def find() -> dict[str, dict[str, Any]]:
        store.fs.invalidate_cache()
        try:
            return dict(store.fs.find(where, detail=True))
        except FileNotFoundError:
            return {}

    found = call_store(store, find, store.url)
    start = f"{store.fs._strip_protocol(store.root)}/"
    return {
        name.removeprefix(start): Stored(int(info.get("size") or 0), modified(info))
        for name, info in found.items()
        if name.startswith(start) and info.get("type") == "file"
    }


def list_top(store: Store) -> list[str]:
    """Names of files and folders at the URL, but for hidden ones.

    Raises:
        OSError: the store cannot be reached, or refuses.
    """

    def find() -> list[str]:
        store.fs.invalidate_cache()
        try:
            return [str(name) for name in store.fs.ls(store.root, detail=False)]
        except FileNotFoundError:
            return []

    names = (name.rstrip("/").rpartition("/")[2] for name in call_store(store, find, store.url))
    return sorted(name for name in names if name and not name.startswith("."))


def modified(info: dict[str, Any]) -> float:
    """When a file was written, in seconds by the store's clock; 0 if the file system does not tell."""
    value = next((info[name] for name in TIMES if info.get(name) is not None), 0.0)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return float(value)


def delete(store: Store, names: Iterable[str]) -> None:
    """Delete files; those that are gone already are no error.

    Raises:
        OSError: the store cannot be reached, or refuses.
    """
    for name in names:
        path = f"{store.root}/{name}"
        with contextlib.suppress(FileNotFoundError):
            call_store(store, partial(store.fs.rm_file, path), f"{store.url}/{name}")
