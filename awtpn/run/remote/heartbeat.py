"""The thread that keeps the lease of a run folder while a job works there."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from awtpn.run.remote import lease
from awtpn.run.remote.lease import TIMES, LeaseLost, Times
from shards.storage.store import Store


@dataclass
class Heartbeat:
    """What the thread found.

    Attributes:
        own: ID of this job.
        times: of the lease.
        lost: the reason, when another job has taken the lease; else None.
    """

    own: str
    times: Times = TIMES
    lost: str | None = None
    ended: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def keep_lease(
    open_store: Callable[[], Store], own: str, times: Times = TIMES, ended: Collection[str] = ()
) -> Iterator[Heartbeat]:
    """Renew the lease, which this job holds, while the block runs; then give it back.

    Args:
        open_store: opens the run folder; called in the thread, which shares no connection.
        own: ID of this job.
        times: of the lease.
        ended: IDs of jobs that are known to have ended.
    """
    state = Heartbeat(own, times)

    def beat() -> None:
        store, beats = None, 0
        while not state.ended.wait(times.beat_s):
            # An error of the store is one of the next heartbeat, too, or it passes: the run goes on.
            with contextlib.suppress(OSError, ValueError):
                store = store or open_store()
                beats += 1
                try:
                    lease.renew(store, own, beats, times, ended)
                except LeaseLost as error:
                    state.lost = str(error)
                    return

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.ended.set()
        thread.join(times.beat_s)  # a heartbeat on its way must not come after the lease is given back
        if state.lost is None:
            with contextlib.suppress(OSError, ValueError):
                lease.release(open_store(), own)
