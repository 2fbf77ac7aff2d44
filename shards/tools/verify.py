"""Every byte of a dataset checked against the hashes of its manifest, and what is damaged named.

A shard whose hash is wrong is looked into: its index knows where every array lies and the CRC-32 of its
bytes, so the utterances that are hit can be told from those that are whole.

Hashes prove that the files belong together, not that they agree. So a shard that packing made is indexed
again and compared; of tars that others made the index's CRC-32s are compared with the bytes that it names.
Labels are compared with those of the metadata, and the manifest's class counts with the labels. The
manifest's moments, with which training standardizes, are compared with those of the values in the shards.
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

from shards.format.class_checks import WrongManifest, check_class_counts, label_field, parse_metadata
from shards.format.hashing import hash_file
from shards.format.index import ShardIndex, index_tar
from shards.format.index_file import load_index
from shards.format.schema import MANIFEST, Manifest, Modality, ShardEntry, read_in_place
from shards.format.statistics import Statistics
from shards.safe_io.printable import join_lines
from shards.storage.store import Store, call_store, open_dataset
from shards.tools.info import format_bytes
from shards.tools.statistics_checks import shard_statistics, statistics_mismatch

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

        def check(entry: ShardEntry) -> tuple[_Told | None, list[Fault]]:
            index, moments, faults = _check_shard(store, entry, manifest)
            with lock:
                bar.update(entry.bytes + entry.index_bytes)
            return None if index is None else _told(index, moments, len(manifest.classes)), faults

        checked = dict(zip((entry.name for entry in entries), threads.map(check, entries), strict=True))
    faults = [fault for _, found in checked.values() for fault in found]
    told = {name: found for name, (found, _) in checked.items() if found is not None}
    faults += [*_check_counts(told, manifest), *_check_moments(told, manifest), *_check_keys(told)]
    utterances = sum(entry.utterances for entry in entries)
    return Verified(store.url, 2 * len(entries), size, utterances, faults)


def format_verified(found: Verified) -> str:
    """`verify` as a text."""
    checked = (
        f"{found.url}: {found.files:,} files, {format_bytes(found.bytes)}, {found.utterances:,} utterances"
    )
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


def _check_shard(
    store: Store, entry: ShardEntry, manifest: Manifest
) -> tuple[ShardIndex | None, dict[str, Statistics] | None, list[Fault]]:
    """A shard's index, where that is sound, its moments, where both are, and the faults of both."""
    index, faults = None, []
    with _local(store, entry.index, entry.index_bytes) as path:
        cause = _wrong(path, entry.index_bytes, entry.index_sha256)
        if path is not None and not cause:
            try:
                with open(path, "rb") as file:
                    index = load_index(file, entry, manifest)
            except ValueError as error:
                cause = str(error).removeprefix(f"{path}: ")
        if cause:
            faults.append(Fault(entry.index, None, cause))
    with _local(store, entry.name, entry.bytes) as path:
        cause = _wrong(path, entry.bytes, entry.sha256)
        if path is None:
            return index, None, [*faults, Fault(entry.name, None, cause)]
        if not cause:
            if index is None:
                return None, None, faults
            if differing := _told_otherwise(path, entry.name, index, manifest):
                return index, None, [*faults, *differing]
            try:
                return index, shard_statistics(path, index, manifest.modalities), faults
            except ValueError as error:
                cause = str(error).removeprefix(f"{path}: ")
                return index, None, [*faults, Fault(entry.name, None, cause)]
        if index is None or not index.crc:
            unknown = f"{cause}; none of its {entry.utterances} utterances can be vouched for"
            return index, None, [*faults, Fault(entry.name, None, unknown)]
        hit = list(_damaged(path, entry.name, index, manifest.modalities))
        keys = len({fault.key for fault in hit})
        tells = (
            f"{keys} of its {entry.utterances} utterances are hit"
            if hit
            else ("all its utterances are whole, the damage lies between them")
        )
        return index, None, [*faults, Fault(entry.name, None, f"{cause}; {tells}"), *hit]


def _told_otherwise(path: Path, name: str, index: ShardIndex, manifest: Manifest) -> list[Fault]:
    """What an index tells otherwise than its shard, whose bytes are those that the manifest names."""
    if read_in_place(manifest):
        return [*_damaged(path, name, index, manifest.modalities), *_mislabeled(path, name, index, manifest)]
    if mislabeled := _mislabeled(path, name, index, manifest):
        return mislabeled
    try:
        now = index_tar(path, manifest.modalities, manifest.classes)
    except ValueError as error:
        return [Fault(name, None, str(error).removeprefix(f"{path}: "))]
    if now.key.tolist() != index.key.tolist():
        return [Fault(name, None, "its utterances are not those of its index; pack it again")]
    pairs = {"label": (index.label, now.label), "json": (index.json_offset, now.json_offset)}
    pairs["size of json"] = index.json_size, now.json_size
    for modality in manifest.modalities:
        pairs[modality] = index.offset[modality], now.offset[modality]
        pairs[f"steps of {modality}"] = index.steps[modality], now.steps[modality]
    pairs |= {f"CRC-32 of {part}": (crc, now.crc[part]) for part, crc in index.crc.items()}
    return [
        Fault(name, str(index.key[row]), f"{part}: the index points elsewhere than the shard; pack it again")
        for part, (ours, found) in pairs.items()
        for row in np.flatnonzero(ours != found).tolist()
    ]


def _mislabeled(path: Path, name: str, index: ShardIndex, manifest: Manifest) -> list[Fault]:
    """Utterances whose metadata have another label than the index gives them by the manifest's classes."""
    faults: list[Fault] = []
    if label_field(manifest) is None:
        return faults
    with open(path, "rb") as file:
        for row in np.flatnonzero(index.json_size).tolist():
            key, label = str(index.key[row]), int(index.label[row])
            file.seek(int(index.json_offset[row]))
            try:
                parse_metadata(file.read(int(index.json_size[row])), key, label, manifest, name)
            except ValueError as error:
                faults.append(Fault(name, key, str(error).removeprefix(f"{name}: {key!r:.80}: ")))
    return faults


@dataclass(frozen=True)
class _Told:
    """What of a shard is kept until all are read.

    Class counts [C], hashes [U] of keys and the keys by its index, and its moments, where it is sound.
    """

    counts: np.ndarray
    hashes: np.ndarray
    keys: bytes
    moments: dict[str, Statistics] | None


def _told(index: ShardIndex, moments: dict[str, Statistics] | None, classes: int) -> _Told:
    keys = index.key.tolist()
    hashes = np.fromiter(map(hash, keys), np.int64, len(keys))
    counts = np.bincount(index.label, minlength=classes)
    return _Told(counts, hashes, "\0".join(keys).encode(errors="replace"), moments)


def _check_counts(told: dict[str, _Told], manifest: Manifest) -> Iterator[Fault]:
    """Class counts of a split, where all its indexes are sound."""
    for name, split in manifest.splits.items():
        if all(shard.name in told for shard in split.shards):
            try:
                check_class_counts(
                    (told[shard.name].counts for shard in split.shards), split, f"splits.{name}"
                )
            except WrongManifest as error:
                yield Fault(MANIFEST, None, str(error))


def _check_moments(told: dict[str, _Told], manifest: Manifest) -> Iterator[Fault]:
    """Statistics of a split, where all its shards are sound."""
    for name, split in manifest.splits.items():
        shards = [told[shard.name].moments if shard.name in told else None for shard in split.shards]
        sound = [moments for moments in shards if moments is not None]
        if not sound or len(sound) < len(shards):
            continue
        for modality, moments in split.moments.items():
            if wrong := statistics_mismatch(moments, (shard[modality] for shard in sound)):
                at = f"splits.{name}.moments.{modality}"
                yield Fault(MANIFEST, None, f"{at}: {wrong}; pack the dataset again")


def _check_keys(told: dict[str, _Told]) -> Iterator[Fault]:
    """Keys that are in two shards; an index has each but once."""
    names = list(told)
    hashes = np.concatenate([each.hashes for each in told.values()] or [np.zeros(0, np.int64)])
    sizes = [len(each.hashes) for each in told.values()]
    shard = np.repeat(np.arange(len(names)), sizes)
    row = np.arange(len(hashes)) - np.repeat(np.cumsum(sizes) - sizes, sizes) if names else hashes
    order = np.argsort(hashes, kind="stable")
    again = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    for first, second in zip(order[again].tolist(), order[again + 1].tolist(), strict=True):
        name, other = names[shard[second]], names[shard[first]]
        key = told[name].keys.split(b"\0")[row[second]].decode()
        yield Fault(name, key, f"this key is in {other}, too; pack it again")


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
                call_store(store, lambda: store.fs.get_file(f"{store.root}/{name}", str(path)), url)
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
