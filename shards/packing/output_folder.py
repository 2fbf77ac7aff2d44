"""The folder that a dataset is packed into: what may be there, and the order in which files arrive.

The manifest is the commit point: a folder with one holds a complete dataset. A dataset that is replaced stays
whole until the new manifest is there (`replacement`). A marker file says that a packing began and has not
ended; it carries a token, so that a second packing into the same folder cannot go unnoticed. An extraction's
token begins with a digest of what it makes: the same extraction, started again, knows its folder by it and
goes on, under a token of its own: the one that it follows, should it still run, stops. A packing's tells when
it began and where. On this machine's disks it holds a lock on the marker, which the kernel drops when it
dies; in a store only the marker's age tells whether it may still be at work.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from shards.format.manifest import parse_manifest
from shards.format.schema import MANIFEST, Manifest, dump_manifest, read_in_place
from shards.packing.replacement import (
    REPLACES,
    Replacement,
    begin_replacement,
    is_unfinished,
    named_files,
    read_replacement,
)
from shards.safe_io.json_text import json_text
from shards.safe_io.printable import get_logger
from shards.storage.credentials import redact_url
from shards.storage.file_lock import NoFileLocks, open_locked
from shards.storage.store import NoManifest, Store, call_store, open_store, read_manifest

MARKER = ".packing"
SKIPPED = "skipped.jsonl"
PART = ".part.json"
PACKING = re.compile(rb"packing \S+ since (\d+) by (process \d+ on \S+)")  # a packing's token
# A packing in a store that began less than this ago is taken to be at work.
YOUNG_S = 600
EXTRACTION = b"extraction "  # an extraction's token is this, a digest, a space, and what tells launches apart

# Files and the working folder that packing makes: nothing else is ever removed.
OURS = re.compile(
    r".+-\d{6,}(-g\d+)?\.(tar|index\.npz|part\.json)|manifest\.json|skipped\.jsonl|\.packing(-.+)?"
)

logger = get_logger(__name__)


@dataclass(frozen=True)
class Target:
    """An output folder that a packing holds.

    Attributes:
        store: the folder.
        token: in the marker.
        work: a local folder to build files in.
        generation: of the shards; above 0 where they replace a dataset, which stays until they are complete.
        lock: the locked marker.
    """

    store: Store
    token: bytes
    work: Path
    generation: int = 0
    lock: BinaryIO | None = None


def acquire(out: str, overwrite: bool, storage_options: dict[str, Any] | None) -> Target:
    """Make `out` ready: empty but for the marker, and the dataset that is to be replaced.

    Args:
        out: any fsspec URL of a folder.
        overwrite: replace a finished dataset, or remove an unfinished extraction, that is there.
        storage_options: for the fsspec file system.

    Raises:
        ValueError: a finished dataset, an unfinished extraction or files of others are there, or another
            packing is at work there.
        OSError: the store cannot be reached.
    """
    store = open_folder(out, storage_options)
    by = f"process {os.getpid()} on {socket.gethostname()}"
    token = f"packing {uuid.uuid4().hex} since {int(time.time())} by {by}".encode()
    check_available(store, token, overwrite)
    lock = _lock_marker(store)
    try:
        generation = clear_and_mark(store, token, overwrite)
        return open_workdir(store, token, generation, lock)
    except BaseException:
        if lock is not None:
            lock.close()
        raise


def open_folder(out: str, storage_options: dict[str, Any] | None) -> Store:
    """The store of an output folder; as `claim`, but nothing is looked at or changed.

    Raises:
        ValueError: no file system for this URL, or one that could not be read again.
    """
    if "#" in out:
        raise ValueError(
            f"{redact_url(out)}: '#' begins the name of a split, so a dataset there could not be read; "
            "pack into a folder without it in its name"
        )
    return open_store(out, storage_options=storage_options)


def check_available(store: Store, token: bytes, overwrite: bool) -> int | None:
    """Look at the folder, without changing it: may a packing with this token begin here?

    Returns:
        If the extraction of this token began here and has not ended, the generation of its shards: it can go
        on. None otherwise.

    Raises:
        ValueError: a finished dataset, an unfinished extraction or files of others are there, or a packing is
            at work there.
        OSError: the store cannot be reached.
    """
    names = names_in(store)
    foreign = sorted(name for name in names if not OURS.fullmatch(name))
    finished, interrupted = MANIFEST in names, MARKER in names
    if foreign or (names and not finished and not interrupted):
        raise ValueError(
            f"{store.url}: holds files that packing did not make ({(foreign or sorted(names))[0]!r}); "
            "pack into a new or empty folder"
        )
    there = token_in(store) if interrupted else b""
    same = there.startswith(EXTRACTION) and there.split()[1:2] == token.split()[1:2]
    replacement = read_replacement(store) if finished else None
    if finished:
        same = same and replacement is not None and is_unfinished(replacement, read_manifest(store))
        if not overwrite and not same:
            raise _finished(store)
        _check_made_by_packing(store, names, replacement)
    if interrupted:
        _check_nobody_packs(store, overwrite)
    if there.startswith(EXTRACTION) and not same and not overwrite:
        raise ValueError(
            f"{store.url}: holds an unfinished extraction of other clips or settings; finish that one, "
            "choose another folder, or pass overwrite (--overwrite) to throw it away"
        )
    if not same:
        return None
    return replacement.generation if replacement else 0


def clear_and_mark(store: Store, token: bytes, overwrite: bool) -> int:
    """Mark the folder as ours and empty it of what packing made, but for a finished dataset.

    Returns:
        The generation of the shards to be made: 0 where they replace none.

    Raises:
        ValueError: another packing has finished a dataset there since we looked.
        OSError: the store cannot be reached.
    """
    store.fs.makedirs(store.root, exist_ok=True)
    write_marker(store, token)
    # Not before: from now on nobody else finishes anything here.
    names = names_in(store) - {MARKER}
    if MANIFEST in names and not overwrite:
        store.fs.rm(f"{store.root}/{MARKER}")
        raise _finished(store)
    kept = _kept(store)
    left = {name for name in names - kept if OURS.fullmatch(name)}
    if left:
        logger.warning(
            "%s: an earlier packing was interrupted; removing its files, starting afresh", store.url
        )
    # The record of what it replaced goes last: it tells whose the others are.
    for name in sorted(left, key=lambda name: name == REPLACES):
        store.fs.rm(f"{store.root}/{name}", recursive=True)
    return begin_replacement(store, read_manifest(store)).generation if kept else 0


def write_marker(store: Store, token: bytes) -> None:
    """Let the folder be ours from now on; whoever held it before stops."""
    call_store(store, lambda: store.fs.pipe_file(f"{store.root}/{MARKER}", token), f"{store.url}/{MARKER}")


def open_workdir(store: Store, token: bytes, generation: int = 0, lock: BinaryIO | None = None) -> Target:
    """A folder that is marked as ours, and a new working folder to build files in."""
    # On the same disk a finished file moves in one step.
    beside = store.root if store.cache is None else None
    work = Path(tempfile.mkdtemp(prefix=f"{MARKER}-", dir=beside))
    return Target(store, token, work, generation, lock)


def release(target: Target) -> None:
    """Remove the working folder and let others in."""
    shutil.rmtree(target.work, ignore_errors=True)
    if target.lock is not None:
        target.lock.close()


def check_ours(target: Target) -> None:
    """Make sure that no other packing has claimed the folder since.

    Raises:
        OSError: one has; or the store cannot be reached.
    """
    there = token_in(target.store)
    if there != target.token:
        other = "extraction" if there.startswith(EXTRACTION) else "packing"
        raise OSError(f"{target.store.url}: another {other} has begun here; this one stops")


def publish(target: Target, path: Path) -> None:
    """Move a finished file of the working folder into the output folder.

    Raises:
        OSError: another packing has taken the folder over, or the store cannot be reached.
    """
    check_ours(target)
    store = target.store
    if store.cache is None:
        os.replace(path, Path(store.root) / path.name)
        return
    size, remote = path.stat().st_size, f"{store.root}/{path.name}"
    call_store(store, lambda: _upload(store, path, remote, size), f"{store.url}/{path.name}")
    path.unlink()


def complete(target: Target, manifest: Manifest, skipped: list[dict[str, str]]) -> None:
    """List what was skipped, write the manifest, and take away what only the making needed.

    Args:
        skipped: key and cause of each bad sample.

    Raises:
        OSError: another packing has taken the folder over, or the store cannot be reached.
    """
    store = target.store
    text = dump_manifest(manifest)
    parse_manifest(text, f"{store.url}/{MANIFEST}")
    (target.work / MANIFEST).write_text(text)
    last = [MANIFEST]
    if skipped:
        write_json_lines(target.work / SKIPPED, skipped)
        # The list of the dataset that is replaced stays as long as its manifest does.
        last = [MANIFEST, SKIPPED] if target.generation else [SKIPPED, MANIFEST]
        logger.warning("%s: %d bad samples skipped, listed in %s", store.url, len(skipped), SKIPPED)
    for name in last:
        publish(target, target.work / name)
    remove_temporary(store)


def remove_temporary(store: Store) -> None:
    """With the manifest there, remove what it has replaced and what only packing needed, the marker last."""
    manifest, replacement = read_manifest(store), read_replacement(store)
    names = names_in(store)
    gone = {name for name in names if name.endswith(PART) or name.startswith(f"{MARKER}-")} - {REPLACES}
    if replacement:
        gone |= {name for name in replacement.old - named_files(manifest) if OURS.fullmatch(name)} & names
    if not manifest.skipped:
        gone |= {SKIPPED} & names
    for name in [*sorted(gone), REPLACES, MARKER]:
        with contextlib.suppress(FileNotFoundError):
            store.fs.rm(f"{store.root}/{name}", recursive=True)


def unfinished_replacement(store: Store) -> bool:
    """Whether the finished dataset there is being replaced, or the replacing was interrupted."""
    return is_unfinished(read_replacement(store), read_manifest(store))


def write_json_lines(path: Path, records: list[Any]) -> None:
    """Write a JSON document a line: letters as they are, bytes of a file's name that are none escaped."""
    lines = "".join(json_text(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text(lines, encoding="utf-8", errors="backslashreplace")


def discard(target: Target) -> None:
    """Leave the folder as if nothing had begun, but for the folder itself; untouched where another began.

    A finished dataset stays: the one that was to be replaced, or, if its manifest is there, the new one.
    """
    store = target.store
    if token_in(store) != target.token:
        return
    ours = {name for name in names_in(store) if OURS.fullmatch(name)} - _kept(store)
    for name in sorted(ours, key=lambda name: (name == MARKER, name == REPLACES)):
        store.fs.rm(f"{store.root}/{name}", recursive=True)


def _kept(store: Store) -> set[str]:
    """Names of the finished dataset's files; none where there is no finished dataset."""
    try:
        return {MANIFEST, SKIPPED, *named_files(read_manifest(store))}
    except NoManifest:
        return set()


def token_in(store: Store) -> bytes:
    """Token of the packing that holds the folder; empty where none does."""
    try:
        return call_store(store, lambda: store.fs.cat_file(f"{store.root}/{MARKER}"), f"{store.url}/{MARKER}")
    except FileNotFoundError:
        return b""


def _finished(store: Store) -> ValueError:
    return ValueError(
        f"{store.url}: holds a finished dataset; pack elsewhere, or pass overwrite (--overwrite) to replace "
        "it"
    )


def _check_made_by_packing(store: Store, names: set[str], replacement: Replacement | None) -> None:
    """Refuse to replace a dataset whose folder holds tars of others, which may well be named as ours are."""
    try:
        manifest = read_manifest(store)
    except ValueError as error:
        raise ValueError(
            f"{error}; whose files these are cannot be told: remove them, or pack elsewhere"
        ) from None
    if read_in_place(manifest):
        raise ValueError(f"{store.url}: holds tars that others made, indexed in place; pack elsewhere")
    unnamed = {name for name in names - named_files(manifest) if name.endswith((".tar", ".index.npz"))}
    if others := sorted(name for name in unnamed if not (replacement and replacement.has_left(name))):
        raise ValueError(
            f"{store.url}: holds files that its manifest does not name ({others[0]!r}); move them away, or "
            "pack elsewhere"
        )


def _check_nobody_packs(store: Store, overwrite: bool) -> None:
    """Refuse a folder whose marker is held, or in a store young."""
    if (probe := _lock_marker(store, shared=True)) is not None:
        probe.close()
    began = PACKING.fullmatch(token_in(store))
    if store.cache is None or overwrite or began is None:
        return
    age = max(0, int(time.time()) - int(began[1]))
    if age < YOUNG_S:
        raise ValueError(
            f"{store.url}: another packing began here {age} s ago, {began[2].decode()}; if it is dead wait "
            f"{YOUNG_S - age} s, or pass overwrite (--overwrite)"
        )


def _lock_marker(store: Store, shared: bool = False) -> BinaryIO | None:
    """Lock the marker; for an exclusive lock create it first.

    Returns:
        The locked file. None where there is no marker to share, in a store, and on a file system without
        locks.

    Raises:
        ValueError: another packing holds it.
        OSError: it cannot be created.
    """
    path = Path(store.root) / MARKER
    if store.cache is not None:
        return None
    if not shared:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return open_locked(path, os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT, shared=shared)
    except BlockingIOError:
        began = PACKING.fullmatch(token_in(store))
        who = f", {began[2].decode()}" if began else ""
        raise ValueError(
            f"{store.url}: another packing is at work here{who}; wait for it, or pack elsewhere"
        ) from None
    except (FileNotFoundError, NoFileLocks):
        return None


def _upload(store: Store, path: Path, remote: str, size: int) -> None:
    store.fs.put_file(str(path), remote)
    store.fs.invalidate_cache()
    if store.fs.size(remote) != size:
        raise OSError(f"the store holds {store.fs.size(remote)} bytes of {size}")


def names_in(store: Store) -> set[str]:
    """Names in the folder; none where there is no folder yet."""
    store.fs.invalidate_cache()
    if call_store(store, lambda: store.fs.isfile(store.root), store.url):
        raise ValueError(f"{store.url}: is a file; pack into a folder")
    try:
        found = call_store(store, lambda: store.fs.ls(store.root, detail=False), store.url)
    except FileNotFoundError:
        return set()
    # Object stores list the folder's own placeholder, too.
    paths = {path.rstrip("/") for path in found} - {store.root.rstrip("/")}
    return {path.rpartition("/")[2] for path in paths}
