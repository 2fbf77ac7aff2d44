"""launch/train.py with one fault built in: `faulty_train.py FAULT ARGV`, under torchrun or by rank_worker.py.

Each fault is what a bad night brings, at a fixed place: it patches the trainer from outside, which knows
nothing of it. A fault that kills does so once, where MARK (a file) does not exist yet.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from support import poison

from awtpn.distributed.engines import unwrap
from awtpn.model import files
from awtpn.run import checkpoint
from awtpn.training import trainer

RANK = int(os.environ.get("RANK", "0"))
LAST = int(os.environ.get("WORLD_SIZE", "1")) - 1
AT_STEP = 6  # steps done when the fault strikes: within the second epoch of the small corpus
MARK = Path(os.environ["MARK"])


def before_step(action: Callable[[trainer.Run, Any], Any]) -> None:
    """Call `action(run, batch)` before the step after AT_STEP; what it returns replaces the batch."""
    original = trainer.train_step

    def step(run: trainer.Run, batch: Any, data_wait: float) -> Any:
        if run.position.step == AT_STEP:
            batch = action(run, batch) or batch
        return original(run, batch, data_wait)

    trainer.train_step = step


def once(action: Callable[[], None]) -> None:
    if not MARK.exists():
        MARK.touch()
        action()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_all() -> None:
    """Every rank of this machine at once: torchrun's other children, and then this one."""
    agent = psutil.Process().parent()
    assert agent is not None
    for each in agent.children():
        if each.pid != os.getpid():
            each.kill()
    kill()


def nan(run: trainer.Run, batch: Any) -> Any:
    if RANK != LAST:
        return None
    print(f"poisoned {batch.key[0]}", flush=True)
    return poison(batch)


def alter(run: trainer.Run, batch: Any) -> None:
    if RANK == LAST:
        with torch.no_grad():
            unwrap(run.model).tpn.prototypes[0, 0] += 1e-3


def hang(run: trainer.Run, batch: Any) -> None:
    if RANK == LAST:
        time.sleep(1e6)


def kill_while_saving() -> None:
    """All ranks die with half a checkpoint on disk."""
    original = checkpoint._fingerprint

    def fingerprint(path: Path) -> Any:
        if path.name == files.OPTIMIZER_FILE and ".step-" in path.parent.name and "08" in path.parent.name:
            once(kill_all)
        return original(path)

    checkpoint._fingerprint = fingerprint


def fill_the_disk(run: trainer.Run, batch: Any) -> None:
    """Leave the (small) file system of the run folder without a free byte."""
    if RANK == 0:
        with (run.dir / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def signal_during(name: str, number: signal.Signals) -> None:
    """The last rank gets a signal within the trainer's function `name`, once."""
    original = getattr(trainer, name)

    def function(run: trainer.Run, *args: Any, **kwargs: Any) -> Any:
        if RANK == LAST and run.position.step >= AT_STEP:
            once(lambda: os.kill(os.getpid(), number))
        return original(run, *args, **kwargs)

    setattr(trainer, name, function)


FAULTS: dict[str, Callable[[], None]] = {
    "none": lambda: None,
    "nan": lambda: before_step(nan),
    "alter": lambda: before_step(alter),
    "hang": lambda: before_step(hang),
    "kill": lambda: before_step(lambda *_: once(kill) if RANK == LAST else None),
    "kill while saving": kill_while_saving,
    "fill": lambda: before_step(fill_the_disk),
    "SIGUSR1 in validation": lambda: signal_during("validate_epoch", signal.SIGUSR1),
    "SIGTERM in saving": lambda: signal_during("save", signal.SIGTERM),
    "SIGUSR1 in training": lambda: before_step(lambda *_: once(lambda: os.kill(os.getpid(), signal.SIGUSR1))),
}


def main(fault: str, argv: list[str]) -> None:
    """Train with a fault."""
    if fault == "other settings":
        argv = [*argv, "--run.seed", str(100 + RANK)]
    else:
        FAULTS[fault]()
    try:
        trainer.main(argv)
    except (ValueError, RuntimeError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
