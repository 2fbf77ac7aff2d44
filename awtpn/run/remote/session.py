"""A training run whose folder is at a URL: from the lease to the last upload.

At the start the nodes tell which jobs have ended (`membership`). The main rank takes the lease (`lease`),
decides between the local folder and the URL (`pulling.decide`), deletes what a killed job left, and brings
records and checkpoints into its local folder. It broadcasts which checkpoint is the latest, and local rank 0
of every other node fetches that for itself.
From then on the run works in the local folders, and the main rank's thread sends (`sending`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock

from awtpn.config.schema import Config
from awtpn.distributed.world import World
from awtpn.run.atomic_write import write_atomically
from awtpn.run.remote import checkpoints, files, lease, pulling
from awtpn.run.remote.checkpoints import Pointer
from awtpn.run.remote.heartbeat import Heartbeat, keep_lease
from awtpn.run.remote.membership import take_part
from awtpn.run.remote.records import RUN_FILE, RecordSender
from awtpn.run.remote.sending import Sender, UploadFailed
from shards.safe_io.printable import printable
from shards.storage.credentials import redact, redact_url
from shards.storage.local_path import is_remote, local_path
from shards.storage.store import Store

# In the local run folder: IDs of jobs of this host that hold the lease or asked for it, and have ended if
# their lock of the folder is free.
HOLDER_FILE = ".lease"
# Longest time at the end of a run, by a signal too, for what is still to be sent.
LAST_UPLOAD_S = 600.0
LAST_RECORDS_S = 150.0
# After an error of the run, and after a second Ctrl-C, which ends it at once.
LAST_AFTER_ERROR_S = 30.0


def folder_on_this_host(config: Config) -> Path:
    """Where a run whose `run.dir` is a URL works on this host."""
    if config.run.local_dir:
        return local_path(config.run.local_dir, "run.local_dir")
    return files.local_copy(str(config.run.dir), config.run.storage_options)


@dataclass
class RemoteRun:
    """The folder at the URL while a run works; on every rank.

    Attributes:
        url: without credentials.
        sender: on the main rank; else None.
        heartbeat: of the lease, on the main rank; else None.
    """

    url: str
    sender: Sender | None = None
    heartbeat: Heartbeat | None = None

    @property
    def job(self) -> str | None:
        """On the main rank the ID of this job; else None."""
        return None if self.heartbeat is None else self.heartbeat.own

    @property
    def failure(self) -> str | None:
        """On the main rank why the run cannot go on; else None."""
        if self.heartbeat is not None and self.heartbeat.lost is not None:
            return self.heartbeat.lost
        return None if self.sender is None else self.sender.failure

    def send_checkpoint(self, root: Path) -> None:
        """Let the latest checkpoint in the local folder `root` be sent; other ranks do nothing.

        Raises:
            OSError: its files cannot be linked.
        """
        if self.sender is not None:
            latest, best = ((root / name).resolve() for name in ("latest", "best"))
            self.sender.add_checkpoint(latest, best.name, pulling.kept_names(root.parent))

    def wait_for_checkpoints(self, world: World, limit_s: float = LAST_UPLOAD_S) -> None:
        """Wait until all checkpoints are at the URL; every rank calls.

        Raises:
            UploadFailed: they are not; on every rank.
        """
        failure = None
        if self.sender is not None:
            failure = self.failure or self.sender.wait(limit_s)
        if failure := world.broadcast_object(failure):
            raise UploadFailed(self.explain(failure))

    def explain(self, failure: str) -> str:
        """The error of a run that cannot go on."""
        return (
            f"{failure}; what is at {self.url} is whole, and the local folder of the main rank has the "
            "newest checkpoint: the same command there sends it and resumes"
        )


@contextlib.contextmanager
def remote_run(
    config: Config, run_dir: Path, world: World, times: lease.Times | None = None
) -> Iterator[RemoteRun | None]:
    """Hold the run folder at the URL `run.dir` in the block; None where it is local. Every rank calls.

    Args:
        config: of the run.
        run_dir: the local folder on this host.
        world: the ranks.
        times: of the lease; default: `lease.TIMES`.

    Raises:
        ValueError: another job has the run folder, the store refuses, or a checkpoint there is damaged; on
            every rank.
    """
    url = config.run.dir
    if url is None or not is_remote(url):
        yield None
        return
    open_store = partial(files.open_remote, url, config.run.storage_options)
    with contextlib.ExitStack() as stack:
        started, failure = None, None
        former, record_job = (
            stack.enter_context(take_part(run_dir)) if world.local_rank == 0 else (None, None)
        )
        ended = {job for job in world.all_gather_object(former) if job}
        if world.is_main:
            try:
                every_s = config.run.upload_every
                started = begin(open_store, run_dir, every_s, stack, times or lease.TIMES, ended)
            except Exception as error:  # of any kind, because the other ranks wait for the broadcast
                failure = redact(error)
        pointer, job, failure = world.broadcast_object(
            (started and started[1], started and started[0].job, failure)
        )
        if record_job is not None and job is not None:
            record_job(job)
        if failure is None:
            # On each node; the main rank has it already, and so have nodes that share its disk.
            problem = fetch_latest(open_store, run_dir, pointer, world)
            failure = next(filter(None, world.all_gather_object(problem)), None)
        if failure is not None:
            raise ValueError(failure)
        if started is None:
            yield RemoteRun(redact_url(url))
            return
        run = started[0]
        assert run.sender is not None
        run.sender.start()
        try:
            yield run
        except BaseException:
            run.sender.close(LAST_AFTER_ERROR_S)
            raise
        run.sender.close(LAST_RECORDS_S)


def begin(
    open_store: Callable[[], Store],
    folder: Path,
    every_s: float,
    stack: contextlib.ExitStack,
    times: lease.Times = lease.TIMES,
    ended: Collection[str] = (),
) -> tuple[RemoteRun, Pointer]:
    """Take the lease and make the local folder and the URL agree; the main rank calls.

    Args:
        open_store: opens the run folder at its URL.
        folder: the local run folder, locked by this process.
        every_s: `run.upload_every`.
        stack: gives the lease back.
        times: of the lease.
        ended: IDs of jobs that are known to have ended, besides those of this host.

    Returns:
        What sends, not yet started, and the content of `latest.json`.

    Raises:
        ValueError: another job has the run folder, or it is damaged.
        OSError: the store cannot be reached, or refuses.
    """
    store, own = open_store(), lease.new_id()
    folder.mkdir(parents=True, exist_ok=True)
    held = folder / HOLDER_FILE
    # This process holds the lock of the local folder, so the jobs that held the lease from here have ended.
    ended = {*ended, *(held.read_text().split() if held.is_file() else ())}
    write_atomically(held, "\n".join([*sorted(ended), own]))  # this process may be killed while it waits
    lease.acquire(store, own, times, ended)
    heartbeat = stack.enter_context(keep_lease(open_store, own, times, ended))
    write_atomically(held, own)
    pointer, is_same = agree(store, folder)
    records = RecordSender(open_store(), folder, files.list_files(store))
    if is_same:
        records.assume_sent()

    def check_lease(store: Store) -> None:
        lease.check_held(store, own, times, ended)

    sender = Sender(records, pointer, every_s, check_lease, lambda: heartbeat.lost)
    return RemoteRun(store.url, sender, heartbeat), pointer


def agree(store: Store, folder: Path) -> tuple[Pointer, bool]:
    """Make the local folder and the URL the same run at the same checkpoint: see `pulling`.

    Returns:
        The content of `latest.json`, and whether the records are the same, too.

    Raises:
        ValueError: a checkpoint at the URL is damaged, or it holds no run but something else.
        OSError: the store cannot be reached, or refuses.
    """
    pointer = checkpoints.read_pointer(store)
    url, local = pulling.url_side(store, pointer), pulling.local_side(folder)
    if url.run is None and (others := files.list_top(store)):
        raise ValueError(
            f"{store.url} holds {others[0]!r:.80}, but no run ({RUN_FILE}): choose another run.dir; to move "
            "a run there that was local so far, name its folder as run.local_dir and an empty URL as run.dir"
        )
    decision, aside = pulling.decide(url, local)
    if aside:
        moved = pulling.move_aside(folder)
        print(printable(f"{folder} held another run than {store.url}; it is now in {moved}"), flush=True)
    if left := checkpoints.delete_unnamed(store, pointer):
        print(printable(f"{store.url}: deleted what a killed job left: {', '.join(left)}"), flush=True)
    if decision == "url":
        pulling.pull_records(store, folder)
        pulling.pull_checkpoints(store, folder, pointer)
        pulling.pull_run_file(store, folder)
        return pointer, True
    if decision == "new":
        # First at the URL: if that fails, the local folder is as it was.
        content = pulling.new_run_file()
        files.put_bytes(store, RUN_FILE, content)
        pulling.write_run_file(folder, content)
        pointer = Pointer()
    return send_newer(store, folder, pointer), False


def send_newer(store: Store, folder: Path, pointer: Pointer) -> Pointer:
    """Send the best and the latest local checkpoint, which the URL lacks, and move `latest`.

    Raises:
        OSError: the store cannot be reached, or refuses.
    """
    root = folder / checkpoints.FOLDER
    latest = root / "latest"
    if not latest.exists():
        return pointer
    kept, best = pulling.kept_names(folder), (root / "best").resolve()
    wanted = [latest.resolve()]
    if best.is_dir() and best != wanted[0] and pointer.find(best.name) is None:
        wanted.insert(0, best)
    print(printable(f"sending {', '.join(path.name for path in wanted)} to {store.url}"), flush=True)
    for path in wanted:
        entry = checkpoints.send_files(store, path.name, path)
        pointer = checkpoints.with_entry(pointer, entry, best.name, kept)
    checkpoints.write_pointer(store, pointer)
    checkpoints.delete_unnamed(store, pointer)
    return pointer


def fetch_latest(open_store: Callable[[], Store], folder: Path, pointer: Pointer, world: World) -> str | None:
    """Make the folder of this host one of the run, with its latest checkpoint, on its local rank 0.

    It has run.json, so that this host can become that of the main rank when another node is lost.

    Returns:
        What went wrong; None if nothing did.
    """
    entry = pointer.find(pointer.latest)
    if world.is_main or world.local_rank != 0:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".fetching"):  # nodes may share this disk
            store = open_store()
            pulling.follow(store, folder)
            if entry is not None:
                pulling.pull_checkpoint(store, folder / checkpoints.FOLDER, entry)
    except Exception as error:  # of any kind, because the other ranks wait
        return redact(error)
    return None


def on_this_host(path: Path | None, main_dir: Path, run_dir: Path) -> Path | None:
    """A path in the main rank's run folder, as it is on this host; other paths stay.

    Args:
        path: on the main rank, resolved.
        main_dir: the run folder there, resolved.
        run_dir: here.
    """
    if path is None or not path.is_relative_to(main_dir):
        return path
    return Path(os.path.abspath(run_dir)) / path.relative_to(main_dir)
