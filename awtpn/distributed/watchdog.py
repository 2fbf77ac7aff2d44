"""End a rank that hangs: where one rank stops, all others wait in a collective without an error."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

# A launcher kills all ranks when the first one ends. All ranks time out at nearly the same moment, so this
# wait lets each of them write its stacks first.
GRACE_S = 5.0
EXIT_CODE = 70
STDERR = 2


class Watchdog:
    """Ends this process if `beat` is not called for `timeout` seconds, leaving all threads' stacks behind.

    Args:
        timeout: seconds.
        stacks: file to write the stacks to.
        on_hang: called before the process ends (the main rank writes its status).
    """

    def __init__(self, timeout: float, stacks: Path, on_hang: Callable[[], None]) -> None:
        self.timeout, self.stacks, self.on_hang = timeout, stacks, on_hang
        self.last = time.monotonic()
        self.closed = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self) -> None:
        """Reset the time-out: the process has made progress."""
        self.last = time.monotonic()

    def close(self) -> None:
        self.closed.set()

    def _watch(self) -> None:
        while not self.closed.wait(min(1.0, self.timeout / 4)):
            if time.monotonic() - self.last > self.timeout:
                self._end()

    def _end(self) -> None:
        try:
            # The disk itself may hang: then this writes the stacks to stderr and ends the process.
            faulthandler.dump_traceback_later(2 * GRACE_S, exit=True, file=STDERR)
            try:
                self._write_stacks()
            except OSError:
                faulthandler.dump_traceback(STDERR, all_threads=True)
            with contextlib.suppress(OSError):
                self.on_hang()
            time.sleep(GRACE_S)
        finally:
            os._exit(EXIT_CODE)  # the main thread may never return from its collective

    def _write_stacks(self) -> None:
        self.stacks.parent.mkdir(parents=True, exist_ok=True)
        with self.stacks.open("w") as file:
            where = f"{os.uname().nodename}, process {os.getpid()}"
            file.write(f"no progress for {self.timeout:.0f} s on {where}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
