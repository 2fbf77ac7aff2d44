"""Checkpoints at the URL of a run: whole or not there.

    checkpoints/step-00000120.1f3a9c02/   the files, and manifest.json with the size and sha256 of each
    checkpoints/latest.json               which checkpoints there are; `latest` and `best` among them

All files of a checkpoint are sent to a folder of its own, then its manifest; only then `latest.json` is
replaced, in one write. Readers begin with `latest.json`: what it does not name is not there. Files of a
checkpoint that it no longer names are deleted afterwards, and what a killed job left at the next start.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from awtpn.model.files import FILES, STATE_FILE, STEP, find_corruption, fingerprint, parse_files
from awtpn.run.remote import files
from shards.format.schema import SHA256
from shards.safe_io.bounded_json import parse_json
from shards.safe_io.json_text import json_text
from shards.storage.store import Store

FOLDER = "checkpoints"
LATEST = f"{FOLDER}/latest.json"
MANIFEST = "manifest.json"
TAG = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True)
class Entry:
    """A checkpoint at the URL.

    Attributes:
        name: "step-00000120", of its folder in a local run folder.
        folder: "step-00000120.1f3a9c02", at the URL. The same step saved again has another one.
        manifest: sha256 of its manifest.json.
    """

    name: str
    folder: str
    manifest: str

    @property
    def step(self) -> int:
        return int(self.name.removeprefix("step-"))


@dataclass(frozen=True)
class Pointer:
    """The content of `latest.json`.

    Attributes:
        latest: name of the checkpoint that a run resumes from; None before the first.
        best: name of the best one, if it is among them.
        entries: all checkpoints, in order of their steps.
    """

    latest: str | None = None
    best: str | None = None
    entries: tuple[Entry, ...] = ()

    def find(self, name: str | None) -> Entry | None:
        return next((entry for entry in self.entries if entry.name == name), None)


def read_pointer(store: Store) -> Pointer:
    """Read `latest.json`; without one there are no checkpoints.

    Raises:
        ValueError: it is not such a file.
        OSError: the store cannot be reached, or refuses.
    """
    content = files.read_bytes(store, LATEST)
    return Pointer() if content is None else parse_pointer(content, f"{store.url}/{LATEST}")


def parse_pointer(content: bytes, at: str) -> Pointer:
    """Check the content of `latest.json`.

    Raises:
        ValueError: a field is missing or malformed; begins with `at`.
    """
    record = _parse(content, at)
    listed = record.get("checkpoints")
    entries = []
    for entry in listed if isinstance(listed, list) else [None]:
        given = entry if isinstance(entry, dict) else {}
        name, folder, digest = (str(given.get(key)) for key in ("name", "folder", "manifest"))
        tag = folder.removeprefix(f"{name}.")
        if not (STEP.fullmatch(name) and TAG.fullmatch(tag) and SHA256.fullmatch(digest)):
            raise ValueError(f"{at}: checkpoints must be a list of name, folder and manifest")
        entries.append(Entry(name, folder, digest))
    pointer = Pointer(record.get("latest"), record.get("best"), tuple(entries))
    for key in ("latest", "best"):
        if (named := getattr(pointer, key)) is not None and pointer.find(named) is None:
            raise ValueError(f"{at}: {key} names {named!r:.60}, which is not among its checkpoints")
    return pointer


def write_pointer(store: Store, pointer: Pointer) -> None:
    """Replace `latest.json`.

    Raises:
        OSError: the store cannot be reached, or refuses.
    """
    record = {
        "format_version": 1,
        "latest": pointer.latest,
        "best": pointer.best,
        "checkpoints": [
            {"name": entry.name, "folder": entry.folder, "manifest": entry.manifest}
            for entry in pointer.entries
        ],
    }
    files.put_bytes(store, LATEST, (json_text(record, indent=1) + "\n").encode())


def send_files(store: Store, name: str, folder: Path, sent: dict[str, str] | None = None) -> Entry:
    """Send the files of a checkpoint and then their manifest. `latest.json` does not name it yet.

    Args:
        store: the run folder at its URL.
        name: "step-00000120".
        folder: the local files.
        sent: of an earlier attempt, files that need not be sent again; those sent now are added.

    Raises:
        OSError: the store cannot be reached, or refuses.
    """
    sent = {} if sent is None else sent
    prints = {path.name: fingerprint(path) for path in sorted(folder.iterdir())}
    manifest = (json_text({"format_version": 1, "files": prints}, indent=1) + "\n").encode()
    digest = hashlib.sha256(manifest).hexdigest()
    entry = Entry(name, f"{name}.{digest[:8]}", digest)
    for file, of in prints.items():
        if sent.get(file) != of["sha256"]:
            files.put_file(store, f"{FOLDER}/{entry.folder}/{file}", folder / file)
            sent[file] = of["sha256"]
    files.put_bytes(store, f"{FOLDER}/{entry.folder}/{MANIFEST}", manifest)
    return entry


def with_entry(pointer: Pointer, entry: Entry, best: str | None, kept: Collection[str]) -> Pointer:
    """The pointer after a checkpoint was sent.

    Args:
        pointer: before.
        entry: the checkpoint, which becomes the latest.
        best: name of the best one.
        kept: names of those that are kept, as in the local folder.
    """
    others = [e for e in pointer.entries if e.name in kept and e.name != entry.name]
    entries = tuple(sorted([*others, entry], key=lambda e: e.step))
    after = Pointer(entry.name, None, entries)
    return replace(after, best=best) if after.find(best) else after


def delete_unnamed(store: Store, pointer: Pointer) -> list[str]:
    """Delete files of checkpoints that `latest.json` does not name: partial and old ones.

    Returns:
        The folders that were deleted.

    Raises:
        OSError: the store cannot be reached, or refuses.
    """
    named = {entry.folder for entry in pointer.entries}
    found = files.list_files(store, FOLDER)
    unnamed = [name for name in found if name != LATEST and name.split("/")[1] not in named]
    files.delete(store, unnamed)
    return sorted({name.split("/")[1] for name in unnamed})


def read_manifest(store: Store, entry: Entry) -> dict[str, dict[str, Any]]:
    """Sizes and hashes of a checkpoint's files.

    Raises:
        ValueError: it is missing, or not the one that `latest.json` names.
        OSError: the store cannot be reached, or refuses.
    """
    name = f"{FOLDER}/{entry.folder}/{MANIFEST}"
    at = f"{store.url}/{name}"
    content = files.read_bytes(store, name)
    if content is None:
        raise ValueError(f"{at} is missing, though {LATEST} names this checkpoint: was it deleted?")
    if hashlib.sha256(content).hexdigest() != entry.manifest:
        raise ValueError(f"{at} is not the one that {LATEST} names (another sha256)")
    manifest = parse_files(_parse(content, at).get("files"), at)
    if missing := {*FILES, STATE_FILE} - manifest.keys():
        raise ValueError(f"{at} does not name {min(missing)}, which a checkpoint has")
    return manifest


def fetch(store: Store, entry: Entry, root: Path) -> Path:
    """Bring a checkpoint into the local folder `root`, unless it is there already.

    Returns:
        Its folder.

    Raises:
        ValueError: it is not whole at the URL; names the file.
        OSError: the store cannot be reached, or the disk is full.
    """
    manifest = read_manifest(store, entry)
    folder = root / entry.name
    if all((folder / name).is_file() and fingerprint(folder / name) == of for name, of in manifest.items()):
        return folder
    temporary = root / f".{entry.name}.fetched"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for name, of in manifest.items():
            at = f"{FOLDER}/{entry.folder}/{name}"
            try:
                files.get_file(store, at, temporary / name, of["bytes"], of["sha256"])
            except FileNotFoundError:
                raise ValueError(
                    f"{store.url}/{at} is missing, though the checkpoint's manifest names it"
                ) from None
        if problem := find_corruption(temporary):
            raise ValueError(problem)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _parse(content: bytes, at: str) -> dict[str, Any]:
    try:
        record = parse_json(content.decode(), at)
    except UnicodeDecodeError:
        record = None
    if not isinstance(record, dict) or record.get("format_version") != 1:
        raise ValueError(f"{at}: not a file of format version 1; a newer version may have written it")
    return record
