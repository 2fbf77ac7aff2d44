"""What `awtpn` commands do with the URL of a run: fetch what they read, list, copy and delete runs.

A command that reads a run works on a copy in the cache, apart from the folder in which a run trains on this
machine. Only what changed is fetched again. A copy that no command has used for `UNUSED_DAYS` is deleted by
the next command that fetches a run.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from awtpn.distributed.world import World
from awtpn.model.files import CARD_FILE, STATE_FILE, STEP
from awtpn.run.atomic_write import write_json
from awtpn.run.record import STATUS_FILE
from awtpn.run.record import read_status as read_local_status
from awtpn.run.remote import checkpoints, files, lease, pulling
from awtpn.run.remote.checkpoints import Entry, Pointer
from awtpn.run.remote.records import RUN_FILE, is_record
from shards.safe_io.bounded_json import parse_json, read_json
from shards.storage.credentials import redact, redact_url
from shards.storage.local_path import is_remote
from shards.storage.store import Store

# What a command reads of a run besides its records: the cards of its checkpoints, the best one (or the latest
# where there is none), or both.
Needs = Literal["cards", "best", "checkpoints"]
KNOWN_FILE = ".at-url.json"  # in a copy: size and time of each record at the URL when it was fetched
SMALL_FILES = (CARD_FILE, STATE_FILE)
COPY = "copy"  # ends the names of copies in the cache
LOCK_FILE = ".fetching"
UNUSED_DAYS = 30


def run_folder(given: str | Path, needs: Needs, storage_options: dict[str, Any] | None = None) -> Path:
    """The local folder of a run or checkpoint that a user named: a path as it is, of a URL its copy.

    Args:
        given: a path, the URL of a run folder, or URL/checkpoints/NAME.
        needs: what is fetched besides the records.
        storage_options: for the URL.

    Raises:
        ValueError: there is no run at the URL, or a checkpoint is damaged.
        OSError: the store cannot be reached, or refuses.
    """
    if not is_remote(str(given)):
        return Path(given)
    store, name = open_run(str(given), storage_options)
    return fetch_run(store, checkpoints.read_pointer(store), needs, name, storage_options)


def run_folder_on_ranks(
    given: str | Path, needs: Needs, storage_options: dict[str, Any] | None, world: World
) -> Path:
    """The same on every rank: all have the same checkpoint, also if the run saves another one meanwhile.

    Raises:
        ValueError: as `run_folder`, or the store cannot be reached; on every rank.
    """
    if not is_remote(str(given)):
        return Path(given)
    pointer, problem, folder = None, None, Path()
    if world.is_main:
        try:
            pointer = checkpoints.read_pointer(open_run(str(given), storage_options)[0])
        except Exception as error:  # of any kind, because the other ranks wait for the broadcast
            problem = redact(error)
    pointer, problem = world.broadcast_object((pointer, problem))
    if problem is None:
        try:
            store, name = open_run(str(given), storage_options)
            folder = fetch_run(store, pointer, needs, name, storage_options)
        except Exception as error:
            problem = redact(error)
    if problems := [text for text in world.all_gather_object(problem) if text is not None]:
        raise ValueError(problems[0])
    return folder


def open_run(url: str, storage_options: dict[str, Any] | None = None) -> tuple[Store, str | None]:
    """Open the run folder at a URL; also the name of a checkpoint, if the URL is of one.

    Raises:
        ValueError: there is no run.
        OSError: the store cannot be reached, or refuses.
    """
    folder, _, name = url.rstrip("/").partition(f"/{checkpoints.FOLDER}/")
    store = files.open_remote(folder, storage_options)
    if files.read_bytes(store, RUN_FILE) is None:
        raise ValueError(
            f"{redact_url(url)} is not a run: it has no {RUN_FILE}; `awtpn runs list URL` shows the runs in "
            "a folder"
        )
    return store, name or None


def fetch_run(
    store: Store,
    pointer: Pointer,
    needs: Needs,
    name: str | None = None,
    storage_options: dict[str, Any] | None = None,
) -> Path:
    """Bring a run's copy in the cache up to date.

    Args:
        store: the run folder at its URL.
        pointer: the content of its `latest.json`.
        needs: what is fetched besides the records.
        name: of a checkpoint: "step-00000120", "best" or "latest". None: what `needs` says.
        storage_options: for the URL.

    Returns:
        The local run folder; with a name that of the checkpoint.

    Raises:
        ValueError: the run has no such checkpoint, or it is damaged.
        OSError: the store cannot be reached, or the disk is full.
    """
    folder = files.local_copy(store.url, storage_options, COPY)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK_FILE):  # other processes may bring it up to date, too
        update_records(store, folder)
        delete_unused_copies(folder)
        root = folder / checkpoints.FOLDER
        if name is not None:
            return checkpoints.fetch(store, find_entry(store, pointer, name), root)
        links = {"best": pointer.find(pointer.best), "latest": pointer.find(pointer.latest)}
        if needs == "best" and pointer.best is not None:
            links["latest"] = None
        bring = fetch_cards if needs == "cards" else checkpoints.fetch
        pulling.link_checkpoints(root, links, lambda entry: bring(store, entry, root))
    return folder


def delete_unused_copies(but: Path) -> None:
    """Delete other copies that no command has used for `UNUSED_DAYS`. Folders in which runs train stay."""
    for known in but.parent.parent.glob(f"*.{COPY}/*/{KNOWN_FILE}"):
        with contextlib.suppress(OSError, Timeout):  # of another user, in use, or gone meanwhile
            # Every use writes this file again.
            if known.parent != but and time.time() - known.stat().st_mtime > UNUSED_DAYS * 24 * 3600:
                with FileLock(known.with_name(LOCK_FILE), timeout=0):
                    shutil.rmtree(known.parent.parent)


def fetch_cards(store: Store, entry: Entry, root: Path) -> Path:
    """Bring only the small files of a checkpoint into the local folder `root`; returns its folder."""
    for file in SMALL_FILES:
        at = f"{checkpoints.FOLDER}/{entry.folder}/{file}"
        files.get_file(store, at, root / entry.name / file)
    return root / entry.name


def update_records(store: Store, folder: Path) -> None:
    """Fetch the records that changed since the last call."""
    file = folder / KNOWN_FILE
    known: dict[str, files.Stored] = {}
    if file.is_file():
        known = {name: files.Stored(*values) for name, values in read_json(file).items()}
    at_url = pulling.pull_records(store, folder, known)
    write_json(file, {name: [stored.size, stored.modified] for name, stored in at_url.items()})
    pulling.pull_run_file(store, folder)


def find_entry(store: Store, pointer: Pointer, name: str) -> Entry:
    """A checkpoint at the URL by its name.

    Raises:
        ValueError: there is none; names those that there are.
    """
    named = {"best": pointer.best, "latest": pointer.latest}.get(name, name.partition(".")[0])
    if (entry := pointer.find(named)) is not None:
        return entry
    there = ", ".join(entry.name for entry in pointer.entries) or "none"
    raise ValueError(f"{store.url} has no checkpoint {name!r:.60}; there are: {there}")


def send_back(given: str | Path, written: Path, storage_options: dict[str, Any] | None = None) -> str:
    """Send a file, which a command wrote into the copy of a run, to the run's URL.

    Returns:
        Where it is: its URL, or its path if the run is local.

    Raises:
        OSError: the store cannot be reached, or refuses.
    """
    if not is_remote(str(given)):
        return str(written)
    store, _ = open_run(str(given), storage_options)
    files.put_bytes(store, written.name, written.read_bytes())
    return f"{store.url}/{written.name}"


# --- awtpn runs ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listed:
    """A run at a URL."""

    url: str
    status: str
    checkpoint: str
    in_use: str


def list_runs(url: str, storage_options: dict[str, Any] | None = None) -> list[Listed]:
    """The run at a URL, or the runs in folders directly within it, in order of their names.

    Raises:
        ValueError: there is none.
        OSError: the store cannot be reached, or refuses.
    """
    store = files.open_remote(url.rstrip("/"), storage_options)
    urls = [store.url]
    if files.read_bytes(store, RUN_FILE) is None:
        urls = [f"{store.url}/{name}" for name in files.list_top(store)]
    found = (describe(each, storage_options) for each in urls)
    if runs := [run for run in found if run is not None]:
        return runs
    raise ValueError(f"{store.url} is no run and contains none: no {RUN_FILE} in it or in a folder within it")


def describe(url: str, storage_options: dict[str, Any] | None = None) -> Listed | None:
    """What `awtpn runs list` shows of a run; None where there is no run."""
    store = files.open_remote(url, storage_options)
    if files.read_bytes(store, RUN_FILE) is None:
        return None
    try:
        record = parse_json(files.read_bytes(store, STATUS_FILE) or b"{}", STATUS_FILE)
        status = str(record.get("status", "no status")) if isinstance(record, dict) else "no status"
        latest = checkpoints.read_pointer(store).latest or "none"
    except ValueError:
        status, latest = "damaged records", ""
    try:
        holder = lease.held_by(store)
        in_use = "in use" if holder else "no job"
    except PermissionError:  # the probe that tells the store's time cannot be written
        in_use = "unknown"
    return Listed(store.url, status, latest, in_use)


def read_status(given: str | Path, storage_options: dict[str, Any] | None = None) -> str:
    """What status.json of a run says: "running", "preempted", "done" or "failed".

    Args:
        given: a run folder, or the URL of one.
        storage_options: for the URL.

    Raises:
        ValueError: there is no run, or its record is damaged.
        OSError: the store cannot be reached, or refuses.
    """
    if is_remote(str(given)):
        store, name = open_run(str(given), storage_options)
        if name is not None:
            raise ValueError(f"{redact_url(str(given))} is a checkpoint: give the run")
        record = parse_json(files.read_bytes(store, STATUS_FILE) or b"{}", STATUS_FILE)
    elif (Path(given) / STATUS_FILE).is_file():
        record = read_local_status(Path(given))
    else:
        raise ValueError(f"{given} is not a run: it has no {STATUS_FILE}")
    if isinstance(record, dict) and isinstance(status := record.get("status"), str):
        return status
    raise ValueError(f"{redact_url(str(given))} has no status yet: no attempt has begun to train")


def pull_run(
    url: str, out: Path, names: Iterable[str] = (), storage_options: dict[str, Any] | None = None
) -> Path:
    """Copy a run into a local folder: its records, and the latest and best checkpoint, or those named.

    Raises:
        ValueError: there is no run, the folder exists, or a checkpoint is damaged.
        OSError: the store cannot be reached, or the disk is full.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists already: name a folder that does not exist")
    store, _ = open_run(url, storage_options)
    pointer = checkpoints.read_pointer(store)
    entries = [find_entry(store, pointer, name) for name in names]
    out.mkdir(parents=True, exist_ok=True)
    pulling.pull_records(store, out)
    pulling.pull_run_file(store, out)
    for entry in entries:
        checkpoints.fetch(store, entry, out / checkpoints.FOLDER)
    if not entries:
        pulling.pull_checkpoints(store, out, pointer)
    return out


def delete_run(
    url: str, storage_options: dict[str, Any] | None = None, times: lease.Times | None = None
) -> tuple[int, list[str]]:
    """Delete a run: its checkpoints and records, and last run.json.

    Returns:
        How many files were deleted, and the names of files that are no part of a run and stay.

    Raises:
        ValueError: there is no run, or a job works there.
        OSError: the store cannot be reached, or refuses.
    """
    store, name = open_run(url, storage_options)
    if name is not None:
        raise ValueError(f"{redact_url(url)} is a checkpoint: runs are deleted whole")
    times = times or lease.TIMES
    if holder := lease.held_by(store, times):
        raise ValueError(f"{store.url} is in use: {holder}; end that job first")
    own = lease.new_id()
    lease.acquire(store, own, times)  # no job may start there meanwhile
    found = files.list_files(store)
    ours = [each for each in found if is_record(each) or _of_checkpoint(each)]
    # First what names the others, so that a reader finds no half run; last what this command finds it by.
    ours.sort(key=lambda each: each != checkpoints.LATEST)
    files.delete(store, [*ours, RUN_FILE])
    files.delete(store, files.list_files(store, lease.FOLDER))
    others = sorted(found.keys() - {*ours, RUN_FILE})
    return len(ours) + 1, [each for each in others if not each.startswith(f"{lease.FOLDER}/")]


def _of_checkpoint(name: str) -> bool:
    top, _, rest = name.partition("/")
    step = rest.partition("/")[0].partition(".")[0]
    return name == checkpoints.LATEST or (top == checkpoints.FOLDER and STEP.fullmatch(step) is not None)
