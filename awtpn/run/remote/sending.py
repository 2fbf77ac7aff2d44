"""The background thread of the main rank: it sends what a run writes to the URL of its run folder.

Records are sent every `every_s` seconds, if they changed; a checkpoint as soon as it is saved, and before
`latest` names it the records that changed. The thread calls no collective and has an fsspec file system of
its own. Of a checkpoint it keeps hard links, so that the run may remove or replace it meanwhile. If
checkpoints are saved faster than they are sent, those between are left out, except the best.

A checkpoint that cannot be sent is a failure of the run: `failure` says why, and the trainer raises it on all
ranks at their next point of agreement. Records that cannot be sent are a warning, and are tried again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from awtpn.run.remote import checkpoints
from awtpn.run.remote.checkpoints import Pointer
from awtpn.run.remote.lease import LeaseLost
from awtpn.run.remote.records import RecordSender
from shards.safe_io.printable import printable
from shards.storage.credentials import redact
from shards.storage.store import Store

STAGING = ".sending"  # in the local run folder: hard links to the files of checkpoints that wait
# Each attempt of a checkpoint repeats its requests by itself (`shards.storage.retry`), and does not send
# again the files that arrived.
ATTEMPTS = 3
PAUSE_S = 10.0


class UploadFailed(RuntimeError):
    """A checkpoint could not be sent to the URL of the run, or another job took the run folder."""


@dataclass
class Job:
    """A checkpoint that waits to be sent.

    Attributes:
        name: of its folder, "step-00000120".
        staged: folder with links to its files.
        best: name of the best checkpoint then.
        kept: names of the checkpoints then in the local folder.
        sent: sha256 of the files that are at the URL already.
    """

    name: str
    staged: Path
    best: str | None
    kept: frozenset[str]
    sent: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path in self.staged.iterdir())


class Sender:
    """Sends what is written in a local run folder, in a thread of its own.

    Args:
        records: sends the small files; its store, which no other thread may use, gets the checkpoints, too.
        pointer: the content of `latest.json` at the URL.
        every_s: between two looks at the records.
        check_lease: raises LeaseLost if another job has the run folder; called before `latest` is moved.
        lost: the reason if another job is known to have it; makes no request.
        pause_s: between two attempts of a checkpoint; default: PAUSE_S.
    """

    def __init__(
        self,
        records: RecordSender,
        pointer: Pointer,
        every_s: float,
        check_lease: Callable[[Store], None],
        lost: Callable[[], str | None] = lambda: None,
        pause_s: float | None = None,
    ) -> None:
        self.records, self.store, self.folder = records, records.store, records.folder
        self.pointer, self.every_s = pointer, every_s
        self.pause_s = PAUSE_S if pause_s is None else pause_s
        self.check_lease, self.lost = check_lease, lost
        self.failure: str | None = None
        """Why a checkpoint could not be sent; None while all is well."""
        self.waiting: list[Job] = []
        self.current: Job | None = None
        self.stopping, self.numbers, self.warned = False, 0, False
        self.changed = threading.Condition()
        self.stop = threading.Event()  # ends pauses
        shutil.rmtree(self.folder / STAGING, ignore_errors=True)
        self.thread = threading.Thread(target=self._run, name="run folder upload", daemon=True)

    def start(self) -> None:
        self.thread.start()

    # --- Called by the run -----------------------------------------------------------------------

    def add_checkpoint(self, folder: Path, best: str | None, kept: Collection[str]) -> None:
        """Let a checkpoint be sent, which is complete; returns at once.

        Args:
            folder: of the checkpoint.
            best: name of the best one.
            kept: names of those in the local folder; others are deleted at the URL.

        Raises:
            OSError: its files cannot be linked or copied.
        """
        if self.failure is not None:
            return
        self.numbers += 1
        staged = self.folder / STAGING / f"{folder.name}-{self.numbers}"
        link_files(folder, staged)
        with self.changed:
            job = Job(folder.name, staged, best, frozenset(kept))
            for other in [job for job in self.waiting if job.name not in (best, folder.name)]:
                self.waiting.remove(other)
                shutil.rmtree(other.staged, ignore_errors=True)
            self.waiting = [other for other in self.waiting if other.name != folder.name] + [job]
            self.changed.notify_all()

    def wait(self, limit_s: float) -> str | None:
        """Wait until all checkpoints are sent.

        Args:
            limit_s: longest time in seconds.

        Returns:
            Why they are not; None if they are.
        """
        with self.changed:
            if (pending := self._pending()) and self.failure is None:
                total = sum(job.size for job in pending)
                print(
                    printable(
                        f"waiting until {', '.join(job.name for job in pending)} ({total / 1e6:.1f} MB) is "
                        f"at the URL of the run, at most {limit_s:.0f} s"
                    ),
                    flush=True,
                )
            done = self.changed.wait_for(
                lambda: self.failure is not None or not self._pending(), timeout=limit_s
            )
            if self.failure is None and not done:
                names = ", ".join(job.name for job in self._pending())
                return f"{names} could not be sent within {limit_s:.0f} s"
            return self.failure

    def close(self, limit_s: float) -> None:
        """Send what is left, and end the thread; wait for at most so many seconds."""
        with self.changed:
            self.stopping = True
            self.changed.notify_all()
        self.thread.join(limit_s)
        if self.thread.is_alive():
            self.stop.set()
            print(f"the records of the run could not be sent within {limit_s:.0f} s", flush=True)

    def _pending(self) -> list[Job]:
        return [*([self.current] if self.current else []), *self.waiting]

    # --- In the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            with self.changed:
                self.changed.wait_for(
                    lambda: (self.waiting and self.failure is None) or self.stopping,
                    timeout=max(0.0, due - time.monotonic()),
                )
                self.current = self.waiting.pop(0) if self.waiting and self.failure is None else None
                last = self.stopping and self.current is None
            try:
                if self.current is not None:
                    self._send(self.current)
                if last or time.monotonic() >= due:
                    due = time.monotonic() + self.every_s
                    if reason := self.lost():
                        raise LeaseLost(reason)
                    self.records.send_changed()
                    self.warned = False
            except LeaseLost as error:
                self._fail(str(error))
                return
            except Exception as error:
                # Of any kind: libraries of stores have their own errors, and a thread that ends would do so
                # without a word.
                if self.current is not None:
                    self._fail(
                        f"{self.current.name} could not be sent to the URL of the run: {redact(error)}"
                    )
                elif not self.warned:
                    self.warned = True
                    print(
                        printable(f"warning: records of the run were not sent: {redact(error)}"), flush=True
                    )
            finally:
                with self.changed:
                    if self.current is not None:
                        shutil.rmtree(self.current.staged, ignore_errors=True)
                    self.current = None
                    self.changed.notify_all()
            if last:
                return

    def _send(self, job: Job) -> None:
        store = self.store
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if reason := self.lost():
                    raise LeaseLost(reason)
                entry = checkpoints.send_files(store, job.name, job.staged, job.sent)
                # Metrics up to this checkpoint, without which a run that goes on from it would have a gap.
                with contextlib.suppress(Exception):  # the next look at the records warns
                    self.records.send_changed()
                self.check_lease(store)
                pointer = checkpoints.with_entry(self.pointer, entry, job.best, job.kept)
                checkpoints.write_pointer(store, pointer)
                self.pointer = pointer
                break
            except (LeaseLost, PermissionError, FileNotFoundError):
                raise
            except Exception:
                if attempt == ATTEMPTS or self.stop.wait(self.pause_s):
                    raise
        with contextlib.suppress(OSError, ValueError):  # what is left is deleted the next time
            checkpoints.delete_unnamed(store, self.pointer)

    def _fail(self, reason: str) -> None:
        with self.changed:
            self.failure = reason
            self.changed.notify_all()


def link_files(folder: Path, target: Path) -> None:
    """Keep the files of a folder, which are never changed in place, also under `target`.

    Raises:
        OSError: they can be neither linked nor copied.
    """
    target.mkdir(parents=True)
    for path in folder.iterdir():
        try:
            os.link(path, target / path.name)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, target / path.name)
