"""Every byte of a dataset checked against the hashes of its manifest, and what is damaged named.

A shard whose hash is wrong is looked into: its index knows where every array lies and the CRC-32 of its
bytes, so the utterances that are hit can be told from those that are whole.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from shards.index import ShardIndex, load_index
from shards.inspect import human
from shards.printable import join_lines
from shards.schema import Manifest, Modality, ShardEntry
from shards.store import Store, asking, hash_file, open_dataset

# Faults shown in the text; all are in the result.
SHOWN = 50


@dataclass(frozen=True)
class Fault:
    """A file that is not what the manifest names; or, where `key` is set, an utterance in it that is hit."""

    file: str
    key: str | None
    cause: str


@dataclass(frozen=True)
class Verified:
    """What `verify` found: how much was checked, and every fault."""

    url: str
    files: int
    bytes: int
    utterances: int
    faults: list[Fault]


def verify(
    url: str,
    *,
    workers: int = 4,
    progress: bool = True,
    cache_dir: str | Path | None = None,
    storage_options: dict[str, Any] | None = None,
) -> Verified:
    """Check every file of a dataset where it lies: remote ones are fetched anew, past the cache.

    Args:
        url: of its folder or manifest.
        workers: shards that are checked at a time; remote ones take their room on the cache's disk meanwhile.
        progress: show a bar on stderr.
        cache_dir: where remote files are put while they are checked.
        storage_options: for the fsspec file system.

    Raises:
        ValueError: there is no dataset, or there are no workers.
        OSError: the store cannot be reached.
    """
    if workers < 1:
        raise ValueError(f"workers {workers}: there must be at least one")
    store, manifest, _ = open_dataset(url, cache_dir, storage_options)
    entries = [entry for split in manifest.splits.values() for entry in split.shards]
    size = sum(entry.bytes + entry.index_bytes for entry in entries)
    lock = threading.Lock()
    with (
        tqdm(total=size, desc="verify", unit="B", unit_scale=True, disable=not progress) as bar,
        ThreadPoolExecutor(workers) as threads,
    ):

        def check(entry: ShardEntry) -> list[Fault]:
            faults = _check_shard(store, entry, manifest)
            with lock:
                bar.update(entry.bytes + entry.index_bytes)
            return faults

        faults = [fault for found in threads.map(check, entries) for fault in found]
    utterances = sum(entry.utterances for entry in entries)
    return Verified(store.url, 2 * len(entries), size, utterances, faults)


def format_verified(found: Verified) -> str:
    """`verify` as a text."""
    checked = f"{found.url}: {found.files:,} files, {human(found.bytes)}, {found.utterances:,} utterances"
    if not found.faults:
        return f"{checked}: all as the manifest names them"
    keys = {(fault.file, fault.key) for fault in found.faults if fault.key is not None}
    files = {fault.file for fault in found.faults}
    lines = [f"{checked}: DAMAGED: {len(files):,} files, {len(keys):,} utterances named"]
    lines += [
        f"  {fault.file}{f': {fault.key}' if fault.key is not None else ''}: {fault.cause}"
        for fault in found.faults[:SHOWN]
    ]
    if len(found.faults) > SHOWN:
        lines.append(f"  and {len(found.faults) - SHOWN:,} more")
    return join_lines(lines)


def _check_shard(store: Store, entry: ShardEntry, manifest: Manifest) -> list[Fault]:
    """Faults of a shard and its index."""
    index, faults = None, []
    with _local(store, entry.index, entry.index_bytes) as path:
        cause = _wrong(path, entry.index_bytes, entry.index_sha256)
        if path is not None and not cause:
            try:
                with open(path, "rb") as file:
                    index = load_index(file, entry, manifest.modalities)
            except ValueError as error:
                cause = str(error).removeprefix(f"{path}: ")
        if cause:
            faults.append(Fault(entry.index, None, cause))
    with _local(store, entry.name, entry.bytes) as path:
        cause = _wrong(path, entry.bytes, entry.sha256)
        if path is None or not cause:
            return faults + ([Fault(entry.name, None, cause)] if cause else [])
        if index is None or not index.crc:
            unknown = f"{cause}; none of its {entry.utterances} utterances can be vouched for"
            return [*faults, Fault(entry.name, None, unknown)]
        hit = list(_damaged(path, entry.name, index, manifest.modalities))
        keys = len({fault.key for fault in hit})
        tells = (
            f"{keys} of its {entry.utterances} utterances are hit"
            if hit
            else ("all its utterances are whole, the damage lies between them")
        )
        return [*faults, Fault(entry.name, None, f"{cause}; {tells}"), *hit]


@contextlib.contextmanager
def _local(store: Store, name: str, size: int) -> Iterator[Path | None]:
    """The file as it is in the store now, on local disk; None where there is none."""
    overlay = store.overlay / name if store.overlay else None
    if overlay and overlay.is_file():
        yield overlay
    elif store.cache is None:
        path = Path(store.root) / name
        yield path if path.is_file() else None
    else:
        store.cache.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=store.cache.root, prefix="verify-") as folder:
            path = Path(folder) / name
            with contextlib.suppress(FileNotFoundError):
                url = f"{store.url}/{name}"
                asking(store, lambda: store.fs.get_file(f"{store.root}/{name}", str(path)), url)
            yield path if path.is_file() else None


def _wrong(path: Path | None, size: int, sha256: str) -> str:
    """How a file differs from what the manifest names; empty if it does not."""
    if path is None:
        return "missing"
    found = path.stat().st_size
    if found != size:
        return f"{found} bytes, {size} by the manifest"
    return "" if hash_file(path) == sha256 else "its hash is not the manifest's"


def _damaged(path: Path, name: str, index: ShardIndex, modalities: dict[str, Modality]) -> Iterator[Fault]:
    """The arrays and JSON members of a shard whose bytes are not those that were packed."""
    parts = {"json": (index.json_offset, index.json_size.astype(np.int64))}
    for modality, form in modalities.items():
        row_bytes = form.dim * np.dtype(form.dtype).itemsize
        parts[modality] = index.offset[modality], index.steps[modality].astype(np.int64) * row_bytes
    with open(path, "rb") as file:
        for row, key in enumerate(index.key):
            for part, (offset, size) in parts.items():
                wanted = int(size[row])
                if not wanted or part not in index.crc:
                    continue
                file.seek(int(offset[row]))
                data = file.read(wanted)
                if len(data) < wanted:
                    yield Fault(name, str(key), f"{part} is cut short")
                elif zlib.crc32(data) != index.crc[part][row]:
                    yield Fault(name, str(key), f"{part} is damaged")
