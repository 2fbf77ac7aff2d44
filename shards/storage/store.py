"""Open a dataset at any fsspec URL, and give its files as verified local files.

Local datasets are read in place. Files of remote datasets are downloaded as a whole into a cache that the
processes of a node share (`cache`). Requests are repeated on temporary errors (`retry`), and credentials are
removed from every message (`credentials`).
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
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
from shards.storage.daemon_threads import DaemonThreads
from shards.storage.local_path import local_path
from shards.storage.retry import DISK_FULL, WrongContent, retrying
from shards.storage.timeouts import EXTRAS, SFTP, with_timeouts

# Small files that a remote store is asked for at a time.
REQUESTS = 8

A = TypeVar("A")
T = TypeVar("T")


def default_cache() -> Path:
    """The cache folder if no option names one."""
    if named := os.environ.get(CACHE_VARIABLE):
        return local_path(named, CACHE_VARIABLE)
    home = os.path.expanduser("~")
    # A user without a home folder gets the error that the cache cannot be written, and only if one is needed.
    return Path("/nonexistent" if home == "~" else home) / ".cache" / "awtpn-shards"


@dataclass(frozen=True)
class Store:
    """A folder on some file system.

    Attributes:
        url: for messages and comparisons; without credentials.
        fs: the fsspec file system.
        root: path of the folder on `fs`.
        cache: for downloaded files; None if the files are local and read in place.
        indexed: local folder in the cache for the indexes or decoded shards that `tools.index_tars` cannot or
            need not write beside the tars.
        overlay: `indexed`, if the manifest was found there; files are then looked for there first.
        stop: set when the files being downloaded are no longer needed.
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
    """The name of a dataset's folder, to name other files and folders by; it holds no credentials.

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
        ValueError: there is no file system for this URL or its package is missing, the limit is not a number
            of bytes, or the URL has a query.
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
    all_options = with_timeouts(url, options)
    try:
        # Only SFTP connects when the file system is made, so only then it can fail temporarily.
        if url.partition("://")[0] in SFTP:
            fs, root = retrying(lambda: url_to_fs(url, **all_options), shown)
        else:
            fs, root = url_to_fs(url, **all_options)
    except (ImportError, ValueError, TypeError) as error:
        extra = EXTRAS.get(url.partition("://")[0]) if isinstance(error, ImportError) else None
        fix = f'; pip install "awtpn-at-scale[{extra}]"' if extra else ""
        raise ValueError(f"{shown}: cannot open: {redact(error)}{fix}") from None
    # One folder per URL. Two stores that differ only in their options, such as the endpoint, share a folder;
    # the hash in a cached file's name keeps their files apart.
    folder = hashlib.sha256(fs.unstrip_protocol(root).encode()).hexdigest()[:16]
    caches = local_path(cache_dir, "cache_dir") if cache_dir else default_cache()
    indexed = caches / f"{folder}.indexed"
    if isinstance(fs, LocalFileSystem):
        return Store(root, fs, root, None, indexed)
    return Store(shown, fs, root, Cache(caches, caches / folder, limit), indexed)


def reopen_after_fork(store: Store) -> Store:
    """The store for a forked process, with new connections and event loops: those of the parent do not work.

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
        ValueError: there is no dataset, or it is one that this code cannot read.
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
    """There is no manifest at the URL."""


def read_manifest(store: Store, name: str = MANIFEST) -> Manifest:
    """Fetch and check the manifest.

    Raises:
        NoManifest: there is none.
        ValueError: it is not a manifest, or this code cannot read it.
        OSError: the store cannot be reached.
    """
    url = f"{store.url}/{name}"
    try:
        text = call_store(store, lambda: store.fs.cat_file(f"{store.root}/{name}"), url)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        if store.cache is None and Path(store.root).is_file():
            raise NoManifest(
                f"{store.url} is a file, and a packed dataset is a folder: `awtpn pack` makes one from "
                "features, `awtpn extract` from recordings"
            ) from None
        if store.cache is None and not Path(store.root).exists():
            raise NoManifest(
                f"{store.url}: no such folder; `awtpn pack` makes a dataset from features, "
                "`awtpn extract` from recordings"
            ) from None
        # The message of a remote store may say more, such as that the bucket is missing.
        cause = "" if store.cache is None else f" ({str(error).removeprefix(f'{url}: ')})"
        raise NoManifest(
            f"{url}: no such file{cause}; give the URL of a packed dataset's folder (was its packing "
            "interrupted?), or index the tars there with `awtpn shards index`"
        ) from None
    return parse_manifest(text, url)


def open_file(store: Store, name: str, size: int, sha256: str, wait_s: float = ROOM_WAIT_S) -> BinaryIO:
    """Open a verified local copy of a file of the dataset, downloaded if needed.

    A local file is used in place, and only its size is checked: hashing all shards at start would take
    minutes.

    Args:
        store: the dataset's folder.
        name: of the file in it.
        size: in bytes, by the manifest.
        sha256: by the manifest.
        wait_s: how long to wait for room in a cache with a limit.

    Returns:
        The file; while it is open it stays in the cache.

    Raises:
        ValueError: the file is missing or is not the one that the manifest names.
        OSError: the store cannot be reached, or the cache is full.
    """
    if store.overlay and (store.overlay / name).is_file():
        return _open_local(store.overlay / name, size)
    if store.cache is None:
        return _open_local(Path(store.root) / name, size)
    assert SHA256.fullmatch(sha256), sha256
    # With the hash in the name, files of an earlier dataset at the same URL are not taken for files of this
    # one.
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
    """Path, size and SHA-256 of a file that no manifest names yet; a remote one is downloaded into the cache.

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
    # The hash is known only after the download, so the file gets a name with zeros first. A file of that name
    # is left from an interrupted call.
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
    """Bytes [start, stop) of a file of the dataset, without downloading all of it.

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
    """Call a function of the store's file system; for a remote store with retries, see `retry.retrying`."""
    if store.cache is None:
        return call()
    if store.url.partition("://")[0] in SFTP:
        return retrying(lambda: sftp.call_serialized(store.fs, call), url, store.stop)
    return retrying(call, url, store.stop)


def map_files(store: Store, call: Callable[[A], T], files: Iterable[A]) -> Iterator[T]:
    """The results of calls that each read a small file of the dataset, in order.

    A remote store is asked for several files at a time, since each call waits for its answer. Local files are
    read one after the other: their threads would wait for the interpreter's lock.
    """
    if store.cache is None:
        yield from map(call, files)
        return
    with DaemonThreads(REQUESTS, "shards-index") as threads:
        yield from threads.map(call, files)


def _download(store: Store, name: str, path: Path, size: int, sha256: str | None) -> None:
    store.fs.get_file(f"{store.root}/{name}", str(path))
    found = path.stat().st_size
    if found != size:
        raise WrongContent(f"it has {found} bytes, {size} are expected: cut short or replaced")
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
