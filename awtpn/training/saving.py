"""Save the state of a run, beside the training: gather it in the step, write and send it in the background.

A step is held up only while the state is gathered and copied to the host of the main rank. All ranks wait
for the former checkpoint first, so at most one is being written. A checkpoint that could not be written ends
the run on all ranks together, at the next step (`Run.stops`), save or end.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from safetensors import SafetensorError

from awtpn.distributed.host_copies import HostCopies
from awtpn.run import checkpoint
from awtpn.run.checkpoint import Contents
from awtpn.run.position import load_position
from awtpn.run.remote.session import LAST_UPLOAD_S, RemoteRun
from awtpn.tracking.monitor import Monitor
from awtpn.training.run_state import Run


class CheckpointNotWritten(RuntimeError):
    """A checkpoint could not be written (a full disk); earlier ones are unchanged."""


def save(run: Run, monitor: Monitor, best: bool = False) -> None:
    """Save a checkpoint; every rank calls. `best` marks it as the best.

    With `train.async_checkpoint` it is written while training goes on: see `finish_checkpoint`. The monitor
    gets the seconds that this holds up the training.

    Raises:
        CheckpointNotWritten: this or the former one; on every rank.
    """
    began = time.perf_counter()
    run.watchdog.beat()
    count_time(run)
    finish_checkpoint(run)
    in_background = run.config.train.async_checkpoint
    copies = run.writer.copies if in_background else HostCopies()
    contents = checkpoint.gather(
        run.model, run.optimizer, run.position, run.card, run.world.is_main, run.engine, copies
    )
    if contents is not None:
        keep_last = run.config.train.keep_last
        run.writer.start(partial(write, run.checkpoints, contents, best, keep_last, run.remote))
    if not in_background:
        finish_checkpoint(run)
    monitor.log_scalars(run.position.step, {"system/checkpoint_s": time.perf_counter() - began})


def write(root: Path, contents: Contents, best: bool, keep_last: int, remote: RemoteRun | None) -> str | None:
    """Write a checkpoint, remove old ones, and let it be sent, in the thread of the main rank.

    Returns:
        Why it could not be written; None if it was.
    """
    try:
        checkpoint.write(root, contents, best)
        checkpoint.prune(root, keep_last)
        if remote is not None:
            remote.send_checkpoint(root)
    except (OSError, SafetensorError) as error:
        latest = checkpoint.find_latest(root)
        kept = f"{latest} is whole" if latest else "there is no earlier one"
        return f"the checkpoint of step {contents.step} could not be written: {error}; {kept}"
    return None


def finish_checkpoint(run: Run) -> None:
    """Wait until the checkpoint that is being written, if any, is whole; every rank calls.

    Raises:
        CheckpointNotWritten: it could not be written; on every rank.
    """
    # Only the main rank writes, so only it can fail; it tells the others, which raise the same error.
    if failure := run.world.broadcast_object(run.writer.wait()):
        raise CheckpointNotWritten(failure)


def wait_for_uploads(run: Run) -> None:
    """Wait until all checkpoints are at the URL of the run folder, if it has one; every rank calls.

    Raises:
        UploadFailed: one could not be sent.
    """
    if run.remote is not None:
        run.watchdog.close()
        # Collectives of the other ranks, which wait here, last longer than `train.timeout`.
        run.remote.wait_for_checkpoints(run.world, min(LAST_UPLOAD_S, run.config.train.timeout))


def saved_step(run: Run) -> int:
    """The step that the run would be resumed at."""
    latest = checkpoint.find_latest(run.checkpoints)
    return load_position(latest).step if latest else 0


def count_time(run: Run) -> dict[str, float]:
    """Add the time since the last call to `run.position`; returns the seconds of the whole run so far."""
    position, now = run.position, time.perf_counter()
    position.seconds += now - run.counted
    position.rank_seconds += run.world.size * (now - run.counted)
    run.counted = now
    return {"seconds": position.seconds, "rank_seconds": position.rank_seconds}
