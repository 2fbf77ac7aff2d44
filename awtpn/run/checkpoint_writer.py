"""The background thread of the main rank that writes checkpoints while training goes on.

At most one checkpoint is being written: whoever starts the next one waits for it first. The thread calls no
collective. If it fails, `failure` says why, and the trainer raises that on all ranks at their next point of
agreement. A process that is killed leaves a temporary folder, which the next start deletes.

Why not `torch.distributed.checkpoint`, with `async_save` and its stagers: by default its files hold shards of
one engine's state dict, and their metadata is a pickle, which this project never loads. Partitions of
DeepSpeed's ZeRO 1-3 are flat buffers, not DTensors, so it cannot reshard them: they would be gathered all the
same, by collectives of the engine in the step, and that is what holds the step up. `async_save` plans by
collectives in its thread, for which it wants a gloo group of its own. It has no pointer that moves when all
is there, no `best`, and no digests of files. For a model of this size, files that rank 0 writes are enough.
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
