"""`awtpn shards verify`: check every file of a dataset against its manifest, and name what is damaged.

1. The SHA-256 of every shard and index. If that of a shard is wrong, the CRC-32s in its index show which
   utterances are damaged.
2. Hashes prove that a file is the one that the manifest names, but not that its content is consistent. So a
   shard that packing made is indexed again, and compared with its index, also the columns of metadata, and
   the values of the declared targets with the ranges in the manifest.
   For tars of other programs, the CRC-32s in the index are compared with the bytes.
   Pictures that are stored as JPEG are decoded.
3. Labels are compared with those of the metadata, the manifest's class counts with the labels, and its
   statistics, by which training standardizes features, with the values in the shards. Recordings have none.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.format.class_checks import (
    WrongManifest,
    check_class_counts,
    count_labels,
    label_field,
    parse_metadata,
)
from shards.format.hashing import hash_file
from shards.format.index import ShardIndex, index_tar
from shards.format.index_file import load_index
from shards.format.schema import MANIFEST, Manifest, Modality, ShardEntry, read_in_place
from shards.format.statistics import Statistics
from shards.format.targets import NUMBERS
from shards.progress import progress_bar
from shards.safe_io.printable import join_lines
from shards.storage.store import Store, call_store, open_dataset
from shards.streaming.target_columns import values_of_index
from shards.tools.info import format_bytes
from shards.tools.recording_checks import part_fault, parts_of, recording_differences, undecodable
from shards.tools.statistics_checks import shard_statistics, statistics_mismatch
from shards.tools.target_summary import targets_of

# Faults that the text shows; the result has all of them.
SHOWN = 50


@dataclass(frozen=True)
class Fault:
    """A file that differs from the manifest; or, if `key` is set, a damaged utterance in it."""

    file: str
    key: str | None
    cause: str


@dataclass(frozen=True)
class Verified:
    """The result of `verify`: how much was checked, and every fault."""

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
    """Check every file of a dataset at its URL. Remote files are downloaded, and not read from the cache.

    Args:
        url: of its folder or manifest.
        workers: shards that are checked at a time; remote ones need so much space on the cache's disk.
        progress: show it on stderr: a bar on a terminal, lines in a log.
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
        progress_bar("verify", "B", size, show=progress) as bar,
        ThreadPoolExecutor(workers) as threads,
    ):

        def check(entry: ShardEntry) -> tuple[_ShardFacts | None, list[Fault]]:
            index, statistics, faults = _check_shard(store, entry, manifest)
            with lock:  # a bar of tqdm has none
                bar.update(entry.bytes + entry.index_bytes)
            return None if index is None else _shard_facts(index, statistics, len(manifest.classes)), faults

        checked = dict(zip((entry.name for entry in entries), threads.map(check, entries), strict=True))
    faults = [fault for _, found in checked.values() for fault in found]
    facts = {name: found for name, (found, _) in checked.items() if found is not None}
    faults += [*_check_counts(facts, manifest), *_check_statistics(facts, manifest), *_check_keys(facts)]
    utterances = sum(entry.utterances for entry in entries)
    return Verified(store.url, 2 * len(entries), size, utterances, faults)


def format_verified(found: Verified) -> str:
    """The result of `verify` as text."""
    checked = (
        f"{found.url}: {found.files:,} files, {format_bytes(found.bytes)}, {found.utterances:,} utterances"
    )
    if not found.faults:
        return f"{checked}: all as in the manifest"
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
    """A shard's index, if it is valid; its statistics, if the shard is valid too; and the faults of both."""
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
        if index is not None:
            faults += _target_faults(entry.index, index, manifest)
    with _local(store, entry.name, entry.bytes) as path:
        cause = _wrong(path, entry.bytes, entry.sha256)
        if path is None:
            return index, None, [*faults, Fault(entry.name, None, cause)]
        if not cause:
            if index is None:
                return None, None, faults
            if differing := _index_mismatches(path, entry.name, index, manifest):
                return index, None, [*faults, *differing]
            failed = undecodable(path, index, manifest.modalities)
            faults += [Fault(entry.name, key, cause) for key, cause in failed]
            features = {name: m for name, m in manifest.modalities.items() if m.recording is None}
            try:
                return index, shard_statistics(path, index, features), faults
            except ValueError as error:
                cause = str(error).removeprefix(f"{path}: ")
                return index, None, [*faults, Fault(entry.name, None, cause)]
        if index is None or not index.crc:
            unknown = f"{cause}; none of its {entry.utterances} utterances can be checked"
            return index, None, [*faults, Fault(entry.name, None, unknown)]
        damaged = list(_damaged(path, entry.name, index, manifest.modalities))
        keys = len({fault.key for fault in damaged})
        extent = (
            f"{keys} of its {entry.utterances} utterances are damaged"
            if damaged
            else "none of its utterances is damaged, the damage is between them"
        )
        return index, None, [*faults, Fault(entry.name, None, f"{cause}; {extent}"), *damaged]


def _index_mismatches(path: Path, name: str, index: ShardIndex, manifest: Manifest) -> list[Fault]:
    """Differences between an index and its shard, whose hash is right."""
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
    differing = recording_differences(index, now, manifest.modalities)
    pairs |= {f"CRC-32 of {part}": (crc, now.crc[part]) for part, crc in index.crc.items()}
    pairs |= {f"column {column!r:.60}": pair for column, pair in _column_pairs(index, now, manifest)}
    # Where both are NaN, the value is missing in both.
    unequal = {
        part: (ours != found) & ((ours == ours) | (found == found)) for part, (ours, found) in pairs.items()
    }
    return [
        Fault(name, str(index.key[row]), f"{part}: the index differs from the shard; pack it again")
        for part, differs in (unequal | dict(differing)).items()
        for row in np.flatnonzero(differs).tolist()
    ]


def _column_pairs(
    index: ShardIndex, now: ShardIndex, manifest: Manifest
) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """Each column by an index, and by the metadata of the shard; as text where both must be equal."""
    for column, kind in manifest.columns.items():
        ours = index.columns[column]
        found = now.columns.get(column, np.broadcast_to(np.nan, len(ours)))
        numbers = kind in NUMBERS and found.dtype.kind != "U"
        yield column, (ours, found) if numbers else (ours.astype(np.str_), found.astype(np.str_))


def _target_faults(name: str, index: ShardIndex, manifest: Manifest) -> Iterator[Fault]:
    """Values of declared targets that the manifest excludes, and utterances without the dataset's own one."""
    for target in targets_of(manifest).values():
        try:
            values = values_of_index(index, target, manifest, name)
        except WrongManifest as error:
            yield Fault(name, None, str(error).removeprefix(f"{name}: "))
            continue
        if target is manifest.target:
            for row in np.flatnonzero(np.isnan(values).all(axis=1)).tolist():
                yield Fault(name, str(index.key[row]), "it has no value of the target; pack it again")


def _mislabeled(path: Path, name: str, index: ShardIndex, manifest: Manifest) -> list[Fault]:
    """Utterances whose metadata are damaged, or name another class than the index and the manifest do."""
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
class _ShardFacts:
    """What is kept of a shard until all shards are read.

    Attributes:
        counts: [C] utterances per class, by its index.
        hashes: [U] of keys.
        keys: joined by zero bytes, since a million Python strings would take much more memory.
        statistics: by modality; None if the shard is damaged.
    """

    counts: np.ndarray
    hashes: np.ndarray
    keys: bytes
    statistics: dict[str, Statistics] | None


def _shard_facts(index: ShardIndex, statistics: dict[str, Statistics] | None, classes: int) -> _ShardFacts:
    keys = index.key.tolist()
    hashes = np.fromiter(map(hash, keys), np.int64, len(keys))
    counts = count_labels(index.label, classes)
    return _ShardFacts(counts, hashes, "\0".join(keys).encode(errors="replace"), statistics)


def _check_counts(facts: dict[str, _ShardFacts], manifest: Manifest) -> Iterator[Fault]:
    """Check the class counts of each split whose indexes are all valid."""
    for name, split in manifest.splits.items():
        if all(shard.name in facts for shard in split.shards):
            try:
                check_class_counts(
                    (facts[shard.name].counts for shard in split.shards), split, f"splits.{name}"
                )
            except WrongManifest as error:
                yield Fault(MANIFEST, None, str(error))


def _check_statistics(facts: dict[str, _ShardFacts], manifest: Manifest) -> Iterator[Fault]:
    """Check the statistics of each split whose shards are all valid."""
    for name, split in manifest.splits.items():
        shards = [facts[shard.name].statistics if shard.name in facts else None for shard in split.shards]
        sound = [statistics for statistics in shards if statistics is not None]
        if not sound or len(sound) < len(shards):
            continue
        for modality, statistics in split.moments.items():
            if wrong := statistics_mismatch(statistics, (shard[modality] for shard in sound)):
                at = f"splits.{name}.moments.{modality}"
                yield Fault(MANIFEST, None, f"{at}: {wrong}; pack the dataset again")


def _check_keys(facts: dict[str, _ShardFacts]) -> Iterator[Fault]:
    """Keys that are in two shards. (Within a shard, reading the index has refused duplicates.)"""
    names = list(facts)
    hashes = np.concatenate([each.hashes for each in facts.values()] or [np.zeros(0, np.int64)])
    sizes = [len(each.hashes) for each in facts.values()]
    shard = np.repeat(np.arange(len(names)), sizes)
    row = np.arange(len(hashes)) - np.repeat(np.cumsum(sizes) - sizes, sizes) if names else hashes
    order = np.argsort(hashes, kind="stable")
    again = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    for first, second in zip(order[again].tolist(), order[again + 1].tolist(), strict=True):
        name, other = names[shard[second]], names[shard[first]]
        key = facts[name].keys.split(b"\0")[row[second]].decode()
        yield Fault(name, key, f"this key is also in {other}; pack it again")


@contextlib.contextmanager
def _local(store: Store, name: str, size: int) -> Iterator[Path | None]:
    """The file as it is in the store now, on local disk; None if it does not exist."""
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
    """How a file differs from the manifest's entry; empty if it does not."""
    if path is None:
        return "missing"
    found = path.stat().st_size
    if found != size:
        return f"{found} bytes, {size} by the manifest"
    return "" if hash_file(path) == sha256 else "its hash is not the manifest's"


def _damaged(path: Path, name: str, index: ShardIndex, modalities: dict[str, Modality]) -> Iterator[Fault]:
    """The arrays and JSON members of a shard whose CRC-32 is not that of the index."""
    parts = {part: pieces for part, pieces in parts_of(index, modalities).items() if part in index.crc}
    with open(path, "rb") as file:
        for row, key in enumerate(index.key):
            for part, pieces in parts.items():
                offset, size = pieces[row]
                if len(offset) and (wrong := part_fault(file, offset, size, int(index.crc[part][row]))):
                    yield Fault(name, str(key), f"{part} {wrong}")
