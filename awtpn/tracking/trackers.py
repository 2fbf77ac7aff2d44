"""Send a run's settings and scalars to the services of `track.to`, beside the TensorBoard event file.

Each service is called on a thread of its own: a server that is slow or gone does not make training wait. A
service that fails in a running training gets nothing more, after one warning; its run is whole in the event
file. Only the main rank has trackers, and they make no collective call.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, TimeoutError, wait
from functools import partial
from pathlib import Path
from typing import Any

from awtpn.config.schema import Config, dump, flatten
from awtpn.run.atomic_write import write_json
from awtpn.tracking.services import FINISH_S, OPENERS, Service
from shards.progress import write_line
from shards.safe_io.bounded_json import read_json
from shards.safe_io.printable import printable
from shards.storage.credentials import redact
from shards.storage.daemon_threads import DaemonThreads

RECORD = "trackers.json"  # in the run folder: the ids of its runs at the services
OPEN_S = 120.0  # for a service to answer
MOST_WAITING = 10_000  # calls that a service has not taken yet


class Tracker:
    """One service, called on a thread of its own, in the order of the calls.

    Args:
        name: of the service.
        open_service: opens the run; on the thread, since MLflow keeps its run by thread.
    """

    def __init__(self, name: str, open_service: Callable[[], Service]) -> None:
        self.name, self.failed = name, False
        self._threads = DaemonThreads(1, name)
        self._opening = self._threads.submit(open_service)
        self._waiting: deque[Future[Any]] = deque()

    def wait_until_open(self, timeout: float = OPEN_S) -> Service:
        """The open run.

        Raises:
            ValueError: it could not be opened; says why.
        """
        try:
            return self._opening.result(timeout)
        except TimeoutError:
            reason = f"no answer in {timeout:.0f} s"
        except (Exception, SystemExit) as error:
            reason = _line(error)
        self.failed = True
        raise ValueError(
            f"track.to: {self.name} could not be opened: {reason}; check its variables, or leave it out of "
            "track.to"
        )

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Send scalars by tag; returns at once, and warns if an earlier call has failed."""
        self._check()
        if not self.failed:
            self._waiting.append(self._threads.submit(self._opening.result().log, step, scalars))

    def close(self, timeout: float = FINISH_S) -> None:
        """Send what is left, and end the run at the service."""
        self._check()
        if not self.failed:
            self._waiting.append(self._threads.submit(self._opening.result().finish))
            self.wait_until_sent(timeout)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def wait_until_sent(self, timeout: float = FINISH_S) -> None:
        """Wait until the service has taken all calls; warns if it has not done so in time."""
        until = time.monotonic() + timeout
        while self._waiting and not self.failed:
            if not wait([self._waiting[0]], max(0.0, until - time.monotonic())).done:
                self._fail(f"it did not take everything in {timeout:.0f} s")
            self._check()

    def _check(self) -> None:
        """Warn of a call that has failed, or of too many that wait."""
        while self._waiting and self._waiting[0].done() and not self.failed:
            if (error := self._waiting.popleft().exception()) is not None:
                self._fail(_line(error))
        if len(self._waiting) > MOST_WAITING and not self.failed:
            self._fail(f"{len(self._waiting)} calls wait for it")

    def _fail(self, reason: str) -> None:
        self.failed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        write_line(
            f"warning: {self.name} gets no more of this run: {reason}; training continues, and TensorBoard's "
            "file has everything"
        )


class Trackers:
    """All services of a run; without any, every method does nothing."""

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self.trackers = list(trackers)

    def log(self, step: int, scalars: Mapping[str, float | None]) -> None:
        """Send scalars by tag, as they go to TensorBoard; those without a finite value are left out."""
        known = {tag: float(x) for tag, x in scalars.items() if x is not None and math.isfinite(x)}
        for tracker in self.trackers if known else ():
            tracker.log(step, known)

    def close(self) -> None:
        """Send what is left, and end the runs."""
        for tracker in self.trackers:
            tracker.close()


def open_trackers(config: Config, run_dir: Path, resumes: bool) -> Trackers:
    """Open a run at each service, or continue the one that the run folder records; on the main rank only.

    Args:
        config: of the run. It is sent without what may hold credentials.
        run_dir: the run folder.
        resumes: training goes on from a checkpoint. Then a service that does not answer is left out with a
            warning, since no one may be there to repeat the command.

    Raises:
        ValueError: a service could not be opened; says why.
    """
    settings = {key: redact(x) if isinstance(x, str) else x for key, x in flatten(dump(config)).items()}
    recorded = _read_record(run_dir) if resumes else {}
    opened: list[Tracker] = []
    record = dict(recorded)
    for name in config.track.services:
        run_id = recorded.get(name)
        tracker = Tracker(name, partial(OPENERS[name], config.track.project, run_dir, run_id, settings))
        try:
            # Before the watchdog takes this rank for hung, also with two services.
            service = tracker.wait_until_open(min(OPEN_S, config.train.timeout / 4))
        except ValueError as error:
            tracker.close()
            if not resumes:
                for other in opened:
                    other.close()
                raise
            write_line(f"warning: {error}; training continues without it")
            continue
        opened.append(tracker)
        record[name] = service.run_id
        write_line(f"{name}: {redact(service.where)}")
    if record != recorded:
        write_json(run_dir / RECORD, record)
    return Trackers(opened)


def _read_record(run_dir: Path) -> dict[str, str]:
    """Run ids by service; empty if there is no record, or it is damaged: then new runs begin there."""
    try:
        record = read_json(run_dir / RECORD)
    except (OSError, ValueError):
        return {}
    entries = record.items() if isinstance(record, dict) else ()
    return {name: x for name, x in entries if name in OPENERS and isinstance(x, str)}


def _line(error: BaseException) -> str:
    """An error in one line without secrets: libraries' messages may have many."""
    text = " ".join(redact(error).split()) or type(error).__name__
    return printable(text[:300])
