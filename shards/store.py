"""Any fsspec URL -> verified local files.

Local datasets are read in place. Files of remote ones are fetched whole into a cache that the processes of a
node share: one of them downloads under a file lock, to a temporary name, checks size and hash and renames;
the others find the file there. Credentials stay out of every message.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from shards.schema import MANIFEST, Manifest, parse_manifest

DEFAULT_CACHE = Path.home() / ".cache" / "awtpn-shards"

ATTEMPTS = 5
FIRST_PAUSE_S = 0.5

# Asking again changes nothing about these. (Stores answer FileNotFoundError to a wrong bucket, too.)
PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError)

T = TypeVar("T")


@dataclass(frozen=True)
class Store:
    """A folder on some file system.

    Attributes:
        url: for messages and comparisons; without credentials.
        fs: the fsspec file system.
        root: path of the folder on `fs`.
        cache: folder for fetched files; None where the files are local and read in place.
        secrets: strings that no message may show.
    """

    url: str
    fs: Any = field(repr=False)
    root: str = field(repr=False)
    cache: Path | None
    secrets: tuple[str, ...] = field(default=(), repr=False)


def split_url(url: str) -> tuple[str, str, str | None]:
    """Folder URL, name of the manifest file, and the split of a `#split` fragment.

    `url` is a dataset's folder or its manifest: `s3://bucket/iemocap`, `data/demo/manifest.json#test`.
    """
    url, _, split = url.partition("#")
    folder, name = url, MANIFEST
    if url.endswith(".json"):
        folder, _, name = url.rpartition("/")
        folder = folder or ("/" if url.startswith("/") else ".")
    return folder.rstrip("/") or "/", name, split or None


def open_store(
    url: str, cache_dir: str | Path | None = None, storage_options: dict[str, Any] | None = None
) -> Store:
    """Open the folder `url`.

    Args:
        url: any fsspec URL of a folder.
        cache_dir: where files of remote datasets are kept; default `~/.cache/awtpn-shards`.
        storage_options: for the fsspec file system: credentials, endpoint.

    Raises:
        ValueError: no file system for this URL, or its package is missing.
    """
    shown, secrets = _hide(url), _secrets(url, storage_options or {})
    try:
        fs, root = url_to_fs(url, **(storage_options or {}))
    except (ImportError, ValueError, TypeError) as error:
        raise ValueError(f"{shown}: cannot open: {_scrub(error, secrets)}") from None
    if isinstance(fs, LocalFileSystem):
        return Store(root, fs, root, None)
    # Two URLs that differ in anything, the endpoint's options excepted, must not share files; where only the
    # options differ the hash in a cached file's name tells datasets apart.
    place = hashlib.sha256(fs.unstrip_protocol(root).encode()).hexdigest()[:16]
    return Store(shown, fs, root, Path(cache_dir or DEFAULT_CACHE).expanduser() / place, secrets)


def read_manifest(store: Store, name: str = MANIFEST) -> Manifest:
    """Fetch and check the manifest.

    Raises:
        ValueError: there is none, or it is not a manifest this code can read.
        OSError: the store cannot be reached.
    """
    url = f"{store.url}/{name}"
    try:
        text = retrying(store, lambda: store.fs.cat_file(f"{store.root}/{name}"), url)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ValueError(
            f"{url}: no such file; give the URL of a packed dataset's folder (was its packing interrupted?)"
        ) from None
    return parse_manifest(text, url)


def local_file(store: Store, name: str, size: int, sha256: str) -> Path:
    """Path of a verified local copy of a file of the dataset, fetched if need be.

    A local file is used in place; of it only the size is checked, which is free.

    Args:
        store: the dataset's folder.
        name: of the file in it.
        size: in bytes, by the manifest.
        sha256: by the manifest.

    Raises:
        ValueError: the file is missing or is not the one the manifest names.
        OSError: the store cannot be reached, or the cache's disk is full.
    """
    if store.cache is None:
        path = Path(store.root) / name
        _check_size(path, size)
        return path
    # The hash in the name keeps the files of a dataset apart from those of an earlier one at the same URL.
    path = store.cache / f"{sha256[:16]}-{name}"
    if _present(path, size):
        return path
    store.cache.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if not _present(path, size):
            url = f"{store.url}/{name}"
            retrying(store, lambda: _download(store, name, path, size, sha256), url)
    return path


def retrying(store: Store, call: Callable[[], T], url: str) -> T:
    """Call, and call again with growing pauses while the store fails in ways that may pass.

    Raises:
        FileNotFoundError, PermissionError, ValueError, ...: as they came, with secrets removed.
        OSError: the last cause, after the last attempt.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except PERMANENT as error:
            raise type(error)(f"{url}: {_scrub(error, store.secrets)}") from None
        # Whatever else: aiohttp's and botocore's errors for a server that died are no OSErrors.
        except Exception as error:
            cause = f"{type(error).__name__}: {_scrub(error, store.secrets)}"
            if attempt == ATTEMPTS:
                kind = ValueError if isinstance(error, _WrongContent) else OSError
                raise kind(f"{url}: {attempt} attempts failed, the last by {cause}") from None
        time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


class _WrongContent(Exception):
    """What arrived is not what the manifest names: cut short on its way, or another file by now."""


def _download(store: Store, name: str, path: Path, size: int, sha256: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        store.fs.get_file(f"{store.root}/{name}", str(temporary))
        if temporary.stat().st_size != size:
            raise _WrongContent(f"it has {temporary.stat().st_size} bytes, {size} by the manifest")
        if hash_file(temporary) != sha256:
            raise _WrongContent("its content is not what the manifest names; was it replaced? pack it again")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _present(path: Path, size: int) -> bool:
    # Its content was verified before it got this name.
    return path.is_file() and path.stat().st_size == size


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such file, though the manifest names it; pack the dataset again"
        ) from None
    if found != size:
        raise ValueError(f"{path}: {found} bytes, {size} by the manifest: damaged or replaced; pack it again")


def _hide(url: str) -> str:
    """The URL without user, password and query (signed URLs carry credentials there)."""
    return re.sub(r"//[^/@]*@", "//", url.partition("?")[0]).rstrip("/")


def _secrets(url: str, storage_options: dict[str, Any]) -> tuple[str, ...]:
    """Everything in options and URL that may be a credential: better one word too many."""
    found = re.findall(r"//[^/@]*:([^/@]+)@", url) + re.findall(r"\?(.+)$", url)
    pending = list(storage_options.items())
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending.extend(value.items())
        elif isinstance(value, str) and value and not re.search("url|region|protocol|endpoint", str(name)):
            found.append(value)
    return tuple(sorted(found, key=len, reverse=True))


def _scrub(error: object, secrets: tuple[str, ...]) -> str:
    text = str(error)
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
