"""The background thread of the main rank that writes checkpoints while training goes on.

At most one checkpoint is being written: whoever starts the next one waits for it first. The thread calls no
collective. If it fails, `failure` says why, and the trainer raises that on all ranks at their next point of
agreement. A process that is killed leaves a temporary folder, which the next start deletes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from awtpn.distributed.host_copies import HostCopies


class CheckpointWriter:
    """Runs one call at a time in a thread.

    Attributes:
        copies: the state of the run on the host; empty before the first checkpoint, and on other ranks.
        failure: why a checkpoint could not be written; None while all is well.
    """

    def __init__(self) -> None:
        self.copies = HostCopies()
        self.failure: str | None = None
        self._thread: threading.Thread | None = None

    def start(self, write: Callable[[], str | None]) -> None:
        """Call `write` in the thread.

        Args:
            write: returns why it failed; None if it did not.
        """
        assert self._thread is None, "one checkpoint is being written already"

        def run() -> None:
            try:
                self.failure = write()
            except Exception as error:  # of any kind: a thread that ends would do so without a word
                self.failure = f"{type(error).__name__}: {error}"

        # A daemon: after a second Ctrl-C, the process ends without waiting for it.
        self._thread = threading.Thread(target=run, name="checkpoint writer", daemon=True)
        self._thread.start()

    def wait(self) -> str | None:
        """Wait until nothing is being written; returns `failure`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return self.failure
