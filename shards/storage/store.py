"""Any fsspec URL -> verified local files.

Local datasets are read in place. Files of remote ones are fetched whole into a cache that the processes of a
node share (`cache`), by calls that are repeated while they fail in ways that may pass (`retry`). Credentials
stay out of every message (`credentials`).
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from shards.format.hashing import hash_file
from shards.format.manifest import parse_manifest
from shards.format.schema import MANIFEST, SHA256, Manifest
from shards.safe_io.git_lfs import refuse_pointer
from shards.storage import sftp
from shards.storage.cache import CACHE_VARIABLE, ROOM_WAIT_S, Cache, CacheFull, open_cached, parse_bytes
from shards.storage.credentials import redact, redact_url, remember_secrets
from shards.storage.local_path import local_path
from shards.storage.retry import DISK_FULL, WrongContent, retrying
from shards.storage.timeouts import EXTRAS, SFTP, with_timeouts

T = TypeVar("T")


def default_cache() -> Path:
    """The cache where no option names one."""
    if named := os.environ.get(CACHE_VARIABLE):
        return local_path(named, CACHE_VARIABLE)
    home = os.path.expanduser("~")
    # A user whom nobody knows a home of is told, once a cache is needed, that it cannot be written.
    return Path("/nonexistent" if home == "~" else home) / ".cache" / "awtpn-shards"


@dataclass(frozen=True)
class Store:
    """A folder on some file system.

    Attributes:
        url: for messages and comparisons; without credentials.
        fs: the fsspec file system.
        root: path of the folder on `fs`.
        cache: for fetched files; None where the files are local and read in place.
        indexed: folder on local disk for what indexing a read-only place adds to it (see `foreign`).
        overlay: `indexed` where the manifest came from there, and files are to be looked for there first.
        stop: set when what is being fetched is no longer wanted.
    """

    url: str
    fs: Any = field(repr=False)
    root: str = field(repr=False)
    cache: Cache | None
    indexed: Path
    overlay: Path | None = None
    stop: threading.Event | None = field(default=None, repr=False)


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


def dataset_name(url: str) -> str:
    """The name of a dataset's folder, for other files and folders: nothing of it can be a credential.

    "https://me:secret@host/iemocap/manifest.json?token=secret#dev" is "iemocap".
    """
    folder, _, _ = split_url(redact_url(url).partition("#")[0])
    return Path(folder).name or "data"


def open_store(
    url: str,
    cache_dir: str | Path | None = None,
    storage_options: dict[str, Any] | None = None,
    cache_limit: int | str | None = None,
) -> Store:
    """Open the folder `url`.

    Args:
        url: any fsspec URL of a folder.
        cache_dir: where files of remote datasets are kept; default: `AWTPN_CACHE_DIR` of the environment, or
            `~/.cache/awtpn-shards`.
        storage_options: for the fsspec file system: credentials, endpoint.
        cache_limit: bytes that the cache may hold, over all datasets in it; a number, or like "200GB".

    Raises:
        ValueError: no file system for this URL, its package is missing, or no such limit; or a URL with a
            query.
    """
    options = storage_options or {}
    remember_secrets(url, options)
    shown = redact_url(url)
    if "://" in url and "?" in url:
        raise ValueError(
            f"{shown}?...: a URL's query opens one file, a dataset is a folder of many: give the token in "
            "data.storage_options (--storage_options), as the file system takes it"
        )
    limit = None if cache_limit is None else parse_bytes(cache_limit)
    patient = with_timeouts(url, options)
    try:
        if url.partition("://")[0] in SFTP:  # which connects at once
            fs, root = retrying(lambda: url_to_fs(url, **patient), shown)
        else:
            fs, root = url_to_fs(url, **patient)
    except (ImportError, ValueError, TypeError) as error:
        extra = EXTRAS.get(url.partition("://")[0]) if isinstance(error, ImportError) else None
        fix = f'; pip install "awtpn-at-scale[{extra}]"' if extra else ""
        raise ValueError(f"{shown}: cannot open: {redact(error)}{fix}") from None
    # Two URLs that differ in anything, the endpoint's options excepted, must not share files; where only the
    # options differ the hash in a cached file's name tells datasets apart.
    place = hashlib.sha256(fs.unstrip_protocol(root).encode()).hexdigest()[:16]
    caches = local_path(cache_dir, "cache_dir") if cache_dir else default_cache()
    indexed = caches / f"{place}.indexed"
    if isinstance(fs, LocalFileSystem):
        return Store(root, fs, root, None, indexed)
    return Store(shown, fs, root, Cache(caches, caches / place, limit), indexed)


def reopen_after_fork(store: Store) -> Store:
    """The store for a process that was forked: neither connections nor event loops come along.

    Raises:
        OSError: the store cannot be reached.
    """
    if store.cache is None:
        return store
    make: Any = type(store.fs)
    again = partial(make, *store.fs.storage_args, **store.fs.storage_options)
    return replace(store, fs=retrying(again, store.url))


def open_dataset(
    url: str,
    cache_dir: str | Path | None = None,
    storage_options: dict[str, Any] | None = None,
    cache_limit: int | str | None = None,
) -> tuple[Store, Manifest, str | None]:
    """Open a dataset by the URL of its folder or manifest.

    Args: as of `open_store`.

    Returns:
        The folder, the manifest, and the split that the URL's fragment names.

    Raises:
        ValueError: there is no dataset, or not one that this code can read.
        OSError: the store cannot be reached.
    """
    folder, name, split = split_url(str(url))
    store = open_store(folder, cache_dir, storage_options, cache_limit)
    here = store.indexed / MANIFEST
    try:
        return store, read_manifest(store, name), split
    except NoManifest:
        if name != MANIFEST or not here.is_file():
            raise
    return replace(store, overlay=store.indexed), parse_manifest(here.read_bytes(), str(here)), split


class NoManifest(ValueError):
    """There is no manifest where one should be."""


def read_manifest(store: Store, name: str = MANIFEST) -> Manifest:
    """Fetch and check the manifest.

    Raises:
        NoManifest: there is none.
        ValueError: it is not a manifest this code can read.
        OSError: the store cannot be reached.
    """
    url = f"{store.url}/{name}"
    try:
        text = call_store(store, lambda: store.fs.cat_file(f"{store.root}/{name}"), url)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        if store.cache is None and Path(store.root).is_file():
            raise NoManifest(
                f"{store.url} is a file, and a packed dataset is a folder: `awtpn pack` makes one of "
                "features, `awtpn extract` of recordings"
            ) from None
        # Of a local file there is no more to say; a store may tell whether it is the bucket that is missing.
        cause = "" if store.cache is None else f" ({str(error).removeprefix(f'{url}: ')})"
        raise NoManifest(
            f"{url}: no such file{cause}; give the URL of a packed dataset's folder (was its packing "
            "interrupted?), or index the tars there with `awtpn shards index`"
        ) from None
    return parse_manifest(text, url)


def open_file(store: Store, name: str, size: int, sha256: str, wait_s: float = ROOM_WAIT_S) -> BinaryIO:
    """Open a verified local copy of a file of the dataset, fetched if need be.

    A local file is used in place; of it only the size is checked, which is free.

    Args:
        store: the dataset's folder.
        name: of the file in it.
        size: in bytes, by the manifest.
        sha256: by the manifest.
        wait_s: how long to wait for room in a cache with a limit.

    Returns:
        The file; as long as it is open it stays in the cache.

    Raises:
        ValueError: the file is missing or is not the one the manifest names.
        OSError: the store cannot be reached, or the cache is full.
    """
    if store.overlay and (store.overlay / name).is_file():
        return _open_local(store.overlay / name, size)
    if store.cache is None:
        return _open_local(Path(store.root) / name, size)
    assert SHA256.fullmatch(sha256), sha256
    # The hash in the name keeps the files of a dataset apart from those of an earlier one at the same URL.
    cached = f"{sha256[:16]}-{name}"
    url = f"{store.url}/{name}"

    def fetch(path: Path) -> None:
        call_store(store, lambda: _download(store, name, path, size, sha256), url)

    try:
        return open_cached(store.cache, cached, size, fetch, wait_s)
    except CacheFull as error:
        raise CacheFull(f"{url}: {error}") from None
    except OSError as error:
        if error.errno in DISK_FULL:
            raise OSError(
                f"{url}: the disk of the cache {store.cache.root} is full ({size} bytes are needed): free "
                "some, set cache_dir to a larger disk, or set cache_limit"
            ) from None
        raise


def fetch_new(store: Store, name: str) -> tuple[Path, int, str]:
    """Path, size and SHA-256 of a file whose hash is not known yet; a remote one is fetched into the cache.

    Raises:
        FileNotFoundError: no such file.
        OSError: the store cannot be reached, or the cache is full.
    """
    if store.cache is None:
        path = Path(store.root) / name
        return path, path.stat().st_size, hash_file(path)
    url = f"{store.url}/{name}"
    size = int(call_store(store, lambda: store.fs.info(f"{store.root}/{name}"), url)["size"])
    store.cache.folder.mkdir(parents=True, exist_ok=True)
    # A name of ours, but of no hash: replaced by the next such fetch.
    unverified = f"{'0' * 16}-{name}"
    (store.cache.folder / unverified).unlink(missing_ok=True)

    def fetch(path: Path) -> None:
        call_store(store, lambda: _download(store, name, path, size, None), url)

    with open_cached(store.cache, unverified, size, fetch):
        sha256 = hash_file(store.cache.folder / unverified)
        path = store.cache.folder / f"{sha256[:16]}-{name}"
        os.replace(store.cache.folder / unverified, path)
    return path, size, sha256


def read_range(store: Store, name: str, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file of the dataset, read where it lies.

    Raises:
        FileNotFoundError: no such file.
        OSError: the store cannot be reached.
    """
    if store.overlay and (store.overlay / name).is_file():
        with open(store.overlay / name, "rb") as file:
            file.seek(start)
            return file.read(stop - start)
    path = f"{store.root}/{name}"
    return call_store(store, lambda: store.fs.cat_file(path, start=start, end=stop), f"{store.url}/{name}")


def call_store(store: Store, call: Callable[[], T], url: str) -> T:
    """Call something of the store's file system; of a remote one with patience, see `retry.retrying`."""
    if store.cache is None:
        return call()
    if store.url.partition("://")[0] in SFTP:
        return retrying(lambda: sftp.call_serialized(store.fs, call), url, store.stop)
    return retrying(call, url, store.stop)


def _download(store: Store, name: str, path: Path, size: int, sha256: str | None) -> None:
    store.fs.get_file(f"{store.root}/{name}", str(path))
    found = path.stat().st_size
    if found != size:
        raise WrongContent(f"it has {found} bytes, {size} are wanted: cut short or replaced")
    if sha256 is not None and hash_file(path) != sha256:
        raise WrongContent("its content is not what the manifest names; was it replaced? pack it again")


def _open_local(path: Path, size: int) -> BinaryIO:
    try:
        file = open(path, "rb")  # noqa: SIM115 (handed to the caller)
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such file, though the manifest names it; pack the dataset again"
        ) from None
    found = os.fstat(file.fileno()).st_size
    if found != size:
        file.close()
        refuse_pointer(path)
        raise ValueError(f"{path}: {found} bytes, {size} by the manifest: damaged or replaced; pack it again")
    return file
