"""The folder that a dataset is written to: what it may hold before, and in which order files arrive.

The manifest is the commit point: a folder with a manifest holds a complete dataset. A dataset that is
replaced stays complete until the new manifest is there (`replacement`). While a packing or an extraction
runs, a marker file says so (`marker`). Each file is built in a working folder and moved into place when it
is finished.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from shards.format.manifest import parse_manifest
from shards.format.schema import MANIFEST, Manifest, dump_manifest, read_in_place
from shards.packing.marker import (
    MARKER,
    check_no_other_packing,
    is_extraction,
    is_same_extraction,
    lock_marker,
    packing_token,
    read_token,
    write_marker,
)
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
from shards.storage.store import NoManifest, Store, call_store, open_store, read_manifest

SKIPPED_FILE = "skipped.jsonl"
RECORD_SUFFIX = ".part.json"  # of an extraction's record of a finished shard (`shard_records`)

# Files and folders that packing and extraction write. Nothing else is ever removed.
WRITTEN_NAME = re.compile(
    r".+-\d{6,}(-g\d+)?\.(tar|index\.npz|part\.json)|manifest\.json|skipped\.jsonl|\.packing(-.+)?"
)

logger = get_logger(__name__)


@dataclass(frozen=True)
class OutputFolder:
    """An output folder that this process, or this rank of an extraction, writes to.

    Attributes:
        store: the folder.
        token: in its marker.
        workdir: a local folder to build files in.
        generation: of the shards; above 0 where they replace a dataset, which stays until they are complete.
        lock: the locked marker; None where it is not locked.
    """

    store: Store
    token: bytes
    workdir: Path
    generation: int = 0
    lock: BinaryIO | None = None


# --- Start ---------------------------------------------------------------------------------------


def acquire(out: str, overwrite: bool, storage_options: dict[str, Any] | None) -> OutputFolder:
    """Lock and mark the folder of a packing, and empty it except for a dataset that is to be replaced.

    Args:
        out: any fsspec URL of a folder.
        overwrite: replace a finished dataset, or remove an unfinished extraction.
        storage_options: for the fsspec file system.

    Raises:
        ValueError: as `check_available`.
        OSError: the store cannot be reached.
    """
    store = open_output_store(out, storage_options)
    token = packing_token()
    check_available(store, token, overwrite)
    lock = lock_marker(store)
    try:
        generation = clear_and_mark(store, token, overwrite)
        return open_workdir(store, token, generation, lock)
    except BaseException:
        if lock is not None:
            lock.close()
        raise


def open_output_store(out: str, storage_options: dict[str, Any] | None) -> Store:
    """The store of an output folder; nothing is read or changed there.

    Raises:
        ValueError: no file system for this URL, or a dataset there could not be read.
    """
    if "#" in out:
        raise ValueError(
            f"{redact_url(out)}: '#' begins the name of a split, so a dataset there could not be read; "
            "pack into a folder without it in its name"
        )
    return open_store(out, storage_options=storage_options)


def check_available(store: Store, token: bytes, overwrite: bool) -> int | None:
    """Check, without changing the folder, that a packing or extraction with this token may begin there.

    Returns:
        If the same extraction began here and has not ended, the generation of its shards: it can continue.
        None otherwise.

    Raises:
        ValueError: the folder holds a finished dataset, an unfinished extraction or files of others, or
            another packing is running there.
        OSError: the store cannot be reached.
    """
    names = list_names(store)
    of_others = sorted(name for name in names if not WRITTEN_NAME.fullmatch(name))
    is_finished, is_marked = MANIFEST in names, MARKER in names
    if of_others or (names and not is_finished and not is_marked):
        raise ValueError(
            f"{store.url}: holds files that packing did not write ({(of_others or sorted(names))[0]!r}); "
            "pack into a new or empty folder"
        )
    found = read_token(store) if is_marked else b""
    continues = is_same_extraction(found, token)
    replacement = read_replacement(store) if is_finished else None
    if is_finished:
        continues = continues and replacement is not None and is_unfinished(replacement, read_manifest(store))
        if not overwrite and not continues:
            raise _finished_dataset(store)
        _check_no_other_tars(store, names, replacement)
    if is_marked:
        check_no_other_packing(store, overwrite)
    if is_extraction(found) and not continues and not overwrite:
        raise ValueError(
            f"{store.url}: holds an unfinished extraction of other clips or settings; finish it, "
            "choose another folder, or pass overwrite (--overwrite) to remove it"
        )
    if not continues:
        return None
    return replacement.generation if replacement else 0


def clear_and_mark(store: Store, token: bytes, overwrite: bool) -> int:
    """Write the marker and remove what an interrupted packing left. A finished dataset stays.

    Returns:
        The generation of the shards to be written: 0 where they replace none.

    Raises:
        ValueError: another packing has finished a dataset there since `check_available`.
        OSError: the store cannot be reached.
    """
    store.fs.makedirs(store.root, exist_ok=True)
    write_marker(store, token)
    # List only now: with our marker there, no other process finishes a dataset here any more.
    names = list_names(store) - {MARKER}
    if MANIFEST in names and not overwrite:
        store.fs.rm(f"{store.root}/{MARKER}")
        raise _finished_dataset(store)
    dataset = _files_of_dataset(store)
    left_over = {name for name in names - dataset if WRITTEN_NAME.fullmatch(name)}
    if left_over:
        logger.warning("%s: an earlier packing was interrupted; its files are removed", store.url)
    # REPLACES goes last, because it says which of the others may be removed.
    for name in sorted(left_over, key=lambda name: name == REPLACES):
        store.fs.rm(f"{store.root}/{name}", recursive=True)
    return begin_replacement(store, read_manifest(store)).generation if dataset else 0


def open_workdir(
    store: Store, token: bytes, generation: int = 0, lock: BinaryIO | None = None
) -> OutputFolder:
    """Create a working folder for an output folder that is marked with `token`."""
    # On the same disk, so that a finished file moves by a rename.
    parent = store.root if store.cache is None else None
    workdir = Path(tempfile.mkdtemp(prefix=f"{MARKER}-", dir=parent))
    return OutputFolder(store, token, workdir, generation, lock)


def release(folder: OutputFolder) -> None:
    """Remove the working folder and unlock the marker."""
    shutil.rmtree(folder.workdir, ignore_errors=True)
    if folder.lock is not None:
        folder.lock.close()


# --- Write ---------------------------------------------------------------------------------------


def check_still_ours(folder: OutputFolder) -> None:
    """Check that no other packing or extraction has taken the folder over.

    Raises:
        OSError: one has, or the store cannot be reached.
    """
    found = read_token(folder.store)
    if found != folder.token:
        other = "extraction" if is_extraction(found) else "packing"
        raise OSError(f"{folder.store.url}: another {other} has begun here; this one stops")


def publish(folder: OutputFolder, path: Path) -> None:
    """Move a finished file from the working folder into the output folder.

    Raises:
        OSError: another packing has taken the folder over, or the store cannot be reached.
    """
    check_still_ours(folder)
    store = folder.store
    if store.cache is None:
        os.replace(path, Path(store.root) / path.name)
        return
    size, remote = path.stat().st_size, f"{store.root}/{path.name}"
    call_store(store, lambda: _upload(store, path, remote, size), f"{store.url}/{path.name}")
    path.unlink()


def _upload(store: Store, path: Path, remote: str, size: int) -> None:
    store.fs.put_file(str(path), remote)
    store.fs.invalidate_cache()
    if store.fs.size(remote) != size:
        raise OSError(f"the store holds {store.fs.size(remote)} bytes of {size}")


def write_json_lines(path: Path, records: list[Any]) -> None:
    """Write one JSON document per line, in UTF-8; bytes of a file name that are not UTF-8 are escaped."""
    lines = "".join(json_text(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text(lines, encoding="utf-8", errors="backslashreplace")


# --- End -----------------------------------------------------------------------------------------


def commit(folder: OutputFolder, manifest: Manifest, skipped: list[dict[str, str]]) -> None:
    """Write the list of skipped samples and the manifest, then remove temporary and replaced files.

    Args:
        skipped: key and cause of each bad sample.

    Raises:
        OSError: another packing has taken the folder over, or the store cannot be reached.
    """
    store = folder.store
    text = dump_manifest(manifest)
    parse_manifest(text, f"{store.url}/{MANIFEST}")
    (folder.workdir / MANIFEST).write_text(text)
    files = [MANIFEST]
    if skipped:
        write_json_lines(folder.workdir / SKIPPED_FILE, skipped)
        # The replaced dataset keeps its own list as long as it keeps its manifest.
        files = [MANIFEST, SKIPPED_FILE] if folder.generation else [SKIPPED_FILE, MANIFEST]
        logger.warning("%s: %d bad samples skipped, listed in %s", store.url, len(skipped), SKIPPED_FILE)
    for name in files:
        publish(folder, folder.workdir / name)
    remove_temporary(store)


def remove_temporary(store: Store) -> None:
    """Remove from a complete dataset's folder replaced shards and temporary files, the marker last."""
    manifest, replacement = read_manifest(store), read_replacement(store)
    names = list_names(store)
    temporary = {name for name in names if name.endswith(RECORD_SUFFIX) or name.startswith(f"{MARKER}-")}
    temporary -= {REPLACES}
    if replacement:
        replaced = replacement.old - named_files(manifest)
        temporary |= {name for name in replaced if WRITTEN_NAME.fullmatch(name)} & names
    if not manifest.skipped:
        temporary |= {SKIPPED_FILE} & names
    for name in [*sorted(temporary), REPLACES, MARKER]:
        with contextlib.suppress(FileNotFoundError):
            store.fs.rm(f"{store.root}/{name}", recursive=True)


def discard(folder: OutputFolder) -> None:
    """Remove all that was written to the folder; nothing where another packing has taken it over.

    A finished dataset stays: the one to be replaced or, if its manifest is there already, the new one.
    """
    store = folder.store
    if read_token(store) != folder.token:
        return
    written = {name for name in list_names(store) if WRITTEN_NAME.fullmatch(name)} - _files_of_dataset(store)
    for name in sorted(written, key=lambda name: (name == MARKER, name == REPLACES)):
        store.fs.rm(f"{store.root}/{name}", recursive=True)


# --- State of the folder -------------------------------------------------------------------------


def list_names(store: Store) -> set[str]:
    """Names in the folder; none where there is no folder yet."""
    store.fs.invalidate_cache()
    if call_store(store, lambda: store.fs.isfile(store.root), store.url):
        raise ValueError(f"{store.url}: is a file; pack into a folder")
    try:
        found = call_store(store, lambda: store.fs.ls(store.root, detail=False), store.url)
    except FileNotFoundError:
        return set()
    # Object stores also list the placeholder of the folder itself.
    paths = {path.rstrip("/") for path in found} - {store.root.rstrip("/")}
    return {path.rpartition("/")[2] for path in paths}


def is_being_replaced(store: Store) -> bool:
    """Whether the finished dataset there is being replaced, or a replacement was interrupted."""
    return is_unfinished(read_replacement(store), read_manifest(store))


def _files_of_dataset(store: Store) -> set[str]:
    """Names of the finished dataset's files; none where there is no finished dataset."""
    try:
        return {MANIFEST, SKIPPED_FILE, *named_files(read_manifest(store))}
    except NoManifest:
        return set()


def _finished_dataset(store: Store) -> ValueError:
    return ValueError(
        f"{store.url}: holds a finished dataset; pack elsewhere, or pass overwrite (--overwrite) to replace "
        "it"
    )


def _check_no_other_tars(store: Store, names: set[str], replacement: Replacement | None) -> None:
    """Refuse to replace a dataset whose folder holds tars of others, whose names may look like ours."""
    try:
        manifest = read_manifest(store)
    except ValueError as error:
        raise ValueError(
            f"{error}; without it packing does not know which files it may replace: remove them, or pack "
            "elsewhere"
        ) from None
    if read_in_place(manifest):
        raise ValueError(f"{store.url}: holds tars that others made, indexed in place; pack elsewhere")
    unnamed = {name for name in names - named_files(manifest) if name.endswith((".tar", ".index.npz"))}
    if others := sorted(name for name in unnamed if not (replacement and replacement.accounts_for(name))):
        raise ValueError(
            f"{store.url}: holds files that its manifest does not name ({others[0]!r}); move them away, or "
            "pack elsewhere"
        )
