"""Signals that stop a run: it first saves a checkpoint on all ranks, and can be resumed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# A terminal sends Ctrl-C to every process, and launchers forward it once more. Within these seconds, both
# signals are one Ctrl-C.
FORWARDED_S = 10.0
NOTICE = b"\ninterrupted: stopping with a checkpoint; Ctrl-C again stops at once, without one\n"


class StopFlag:
    """Whether this process got a stop signal; the step's all-reduce passes it on to every rank.

    Not a threading.Event: a signal may arrive while the main thread is inside the handler of another one, and
    would then wait for the Event's lock, which the same thread holds.
    """

    def __init__(self) -> None:
        self.asked = False
        self.by_user = False
        """A signal that users send came: SIGUSR1 or Ctrl-C. torchrun and schedulers send SIGTERM."""
        self.at_once = False
        """A second Ctrl-C came, and KeyboardInterrupt was raised."""
        self._asked_at = 0.0

    def is_set(self) -> bool:
        return self.asked

    def set(self) -> None:
        self.asked = True

    def handle(self, number: int, frame: Any = None) -> None:
        """The handler of `SIGNALS`.

        Raises:
            KeyboardInterrupt: by a second Ctrl-C.
        """
        if number == signal.SIGINT and self.asked:
            launched = bool(os.environ.get("LOCAL_RANK"))
            if launched and time.monotonic() - self._asked_at < FORWARDED_S:
                return
            self.at_once = True
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a third one ends the process
            raise KeyboardInterrupt
        self.by_user |= number != signal.SIGTERM
        if not self.asked:
            self._asked_at = time.monotonic()
            if number == signal.SIGINT and os.environ.get("RANK") in (None, "", "0"):
                os.write(2, NOTICE)  # not print(): a handler may run inside another print()
        self.asked = True


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Within the block, SIGTERM, SIGUSR1 and a first Ctrl-C (SIGINT) only set the flag."""
    stop = StopFlag()
    before = {number: signal.signal(number, stop.handle) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
