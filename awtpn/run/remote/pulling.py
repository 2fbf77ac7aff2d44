"""From the URL of a run into a local folder, and which of the two is right where they differ.

The rule: **the URL wins, unless the local folder holds a whole checkpoint of the same run with more steps.**
The local folder then is used as it is, and sent. Run folders are the same run if their `run.json` has the
same ID; a local folder with another one is moved aside, never deleted. A local folder without `run.json` (a
run that was local so far) becomes the run of a URL that holds none.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from awtpn.model.files import step_folders
from awtpn.run import checkpoint
from awtpn.run.atomic_write import write_atomically
from awtpn.run.remote import checkpoints, files
from awtpn.run.remote.checkpoints import Entry, Pointer
from awtpn.run.remote.records import METRICS, RUN_FILE, is_record, join_parts, local_records, part_number
from shards.safe_io.bounded_json import parse_json
from shards.safe_io.json_text import json_text
from shards.safe_io.printable import printable
from shards.storage.store import Store

# What can be in a local run folder that holds no run: its lock, and files of this package; and the output of
# a run of an experiment.
HIDDEN, OUTPUT = ".", "train.log"


@dataclass(frozen=True)
class Side:
    """What decides between a local folder and the URL.

    Attributes:
        run: ID of the run; None without run.json.
        step: of its newest whole checkpoint; -1 without one.
        empty: there is no file of a run.
    """

    run: str | None
    step: int
    empty: bool


Decision = Literal["url", "local", "new"]


def decide(url: Side, local: Side) -> tuple[Decision, bool]:
    """Which side a run begins from, and whether the local folder is moved aside first: see the module.

    "new": the URL holds no run, and gets one, of what is in the local folder, if it is not moved aside.
    """
    if url.run is None:
        return "new", local.run is not None
    if local.run != url.run:
        return "url", not local.empty
    return ("local" if local.step > url.step else "url"), False


def local_side(folder: Path) -> Side:
    """What is in a local run folder.

    Raises:
        ValueError: its run.json cannot be read.
    """
    latest = checkpoint.find_latest(folder / checkpoints.FOLDER) if folder.is_dir() else None
    whole = latest is not None and checkpoint.find_resume_problem(latest) is None
    step = int(latest.name.removeprefix("step-")) if latest is not None and whole else -1
    file = folder / RUN_FILE
    return Side(
        parse_run_id(file.read_bytes(), str(file)) if file.is_file() else None, step, is_empty(folder)
    )


def is_empty(folder: Path) -> bool:
    """There is no file of a run in a local folder."""
    if not folder.is_dir():
        return True
    return all(path.name.startswith(HIDDEN) or path.name == OUTPUT for path in folder.iterdir())


def url_side(store: Store, pointer: Pointer) -> Side:
    """What is at the URL.

    Raises:
        ValueError: its run.json cannot be read.
        OSError: the store cannot be reached, or refuses.
    """
    content = files.read_bytes(store, RUN_FILE)
    run = None if content is None else parse_run_id(content, f"{store.url}/{RUN_FILE}")
    latest = pointer.find(pointer.latest)
    return Side(run, latest.step if latest else -1, run is None)


def parse_run_id(content: bytes, at: str) -> str:
    record = parse_json(content, at)
    run = record.get("run") if isinstance(record, dict) else None
    if not isinstance(run, str) or not run:
        raise ValueError(f"{at} does not name a run: remove it, or choose another run.dir")
    return run


def new_run_file() -> bytes:
    """The content of run.json of a new run."""
    began = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    return (json_text({"run": secrets.token_hex(8), "began": began}) + "\n").encode()


def move_aside(folder: Path) -> Path:
    """Rename a local run folder that is of another run, but for its lock, which this process holds."""
    aside = folder.with_name(f"{folder.name}.aside-{time.strftime('%Y%m%d-%H%M%S')}")
    aside.mkdir()
    for path in folder.iterdir():
        if not path.name.startswith(HIDDEN):
            os.replace(path, aside / path.name)
    return aside


def pull_records(
    store: Store, folder: Path, known: Mapping[str, files.Stored] | None = None
) -> dict[str, files.Stored]:
    """Bring the records at the URL into a local folder, and remove those that the URL lacks.

    Args:
        store: the run folder at its URL.
        folder: the local one.
        known: what an earlier call returned for this folder; files that have not changed are not fetched.

    Returns:
        The records at the URL.

    Raises:
        OSError: the store cannot be reached, or the disk is full.
    """
    at_url = {name: stored for name, stored in files.list_files(store).items() if is_record(name)}
    known, present = known or {}, local_records(folder)
    for name, path in present.items():
        if name not in at_url:
            path.unlink()
    parts = {number: name for name in at_url if (number := part_number(name)) is not None}
    for name, stored in at_url.items():
        if name not in parts.values() and not (name in present and known.get(name) == stored):
            files.get_file(store, name, folder / name)
    same = METRICS in present and all(known.get(name) == at_url[name] for name in parts.values())
    if parts and not (same and len(parts) == sum(part_number(name) is not None for name in known)):
        contents = (files.read_bytes(store, parts[number]) for number in sorted(parts))
        join_parts(folder, (content or b"" for content in contents))
    return at_url


def pull_checkpoints(store: Store, folder: Path, pointer: Pointer) -> None:
    """Bring the latest and the best checkpoint into a local run folder, and let its links name them.

    Raises:
        ValueError: one is not whole at the URL; names the file, and another checkpoint that is there.
        OSError: the store cannot be reached, or the disk is full.
    """
    root = folder / checkpoints.FOLDER
    links = {"best": pointer.find(pointer.best), "latest": pointer.find(pointer.latest)}
    link_checkpoints(root, links, lambda entry: pull_checkpoint(store, root, entry))


def link_checkpoints(root: Path, links: Mapping[str, Entry | None], bring: Callable[[Entry], Path]) -> None:
    """Let the links of a local folder name checkpoints, which `bring` fetches; without one a link goes."""
    for link, entry in links.items():
        if entry is None:
            (root / link).unlink(missing_ok=True)
        else:
            checkpoint.update_symlink(root / link, bring(entry))


def pull_checkpoint(store: Store, root: Path, entry: Entry) -> Path:
    """`checkpoints.fetch`; the error says what to do."""
    try:
        return checkpoints.fetch(store, entry, root)
    except ValueError as error:
        raise ValueError(
            f"{error}; the run cannot go on from {entry.name}: choose another run.dir; with --run.resume it "
            "goes on from another checkpoint, which `awtpn runs pull --checkpoint NAME` fetches"
        ) from None


def follow(store: Store, folder: Path) -> None:
    """Make a local folder, of a node without the main rank, one of the run at the URL.

    A folder of another run is moved aside.

    Raises:
        ValueError: a run.json cannot be read.
        OSError: the store cannot be reached, or refuses; or the disk is full.
    """
    content, file = files.read_bytes(store, RUN_FILE) or b"", folder / RUN_FILE
    run = parse_run_id(content, f"{store.url}/{RUN_FILE}")
    if file.is_file() and parse_run_id(file.read_bytes(), str(file)) == run:
        return
    if not is_empty(folder):
        moved = move_aside(folder)
        print(printable(f"{folder} held another run than {store.url}; it is now in {moved}"), flush=True)
    write_run_file(folder, content)


def pull_run_file(store: Store, folder: Path) -> None:
    """Bring run.json into a local folder, which then holds the run of the URL."""
    write_run_file(folder, files.read_bytes(store, RUN_FILE) or b"")


def write_run_file(folder: Path, content: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / RUN_FILE, content)


def kept_names(folder: Path) -> list[str]:
    """Names of the checkpoints in a local run folder."""
    return [path.name for path in step_folders(folder / checkpoints.FOLDER)]
