"""One rank that runs a list of jobs, so that many small comparisons share the cost of the imports.

`support.run_ranks` starts it with RANKS and ME in the environment and a JSON list of jobs. Each runs in a
fork, since Accelerate and DeepSpeed keep what they found at their first start for the life of a process, and
has a port of its own:

- {"train": ARGV}: train as `launch/train.py ARGV` would; with "sigterm": {"rank": R, "step": S}, rank R gets
  SIGTERM while it does step S, or with "during": NAME, when it comes to that function of the trainer at step
  S; with "nan": {"rank": R, "step": S}, its batch of step S has one; with "copy": [FROM, TO], the main rank
  copies a run folder before.
- {"check": NAME, ...}: call a function of rank_checks.py, which judges for itself.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import rank_checks
from support import LIMIT, poison

from awtpn.training import setup, trainer
from shards import FeatureBatch

# Slow to import, and otherwise imported late: once, before the forks, instead of once for every job.
for module in (
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.stage_1_and_2",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "transformers",
):
    importlib.import_module(module)

HUNG_S = LIMIT / 2


def main(plan: Path, ranks: int, me: int) -> None:
    for job in json.loads(plan.read_text()):
        print(f"=== {job}", flush=True)
        if (child := os.fork()) == 0:
            # Where the threads stand says more than a time-out.
            faulthandler.dump_traceback_later(HUNG_S, exit=True)
            try:
                work(job, ranks, me)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            # Not an ordinary exit: what others registered for it belongs to the parent.
            os._exit(0)
        _, code = os.waitpid(child, 0)
        if code != 0:
            sys.exit(f"failed: {job}")


def work(job: dict[str, Any], ranks: int, me: int) -> None:
    if ranks > 1:
        os.environ.update(
            RANK=str(me),
            LOCAL_RANK=str(me),
            WORLD_SIZE=str(ranks),
            LOCAL_WORLD_SIZE=str(ranks),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(job["port"]),
        )
    if "copy" in job and me == 0:
        source, target = job["copy"]
        shutil.copytree(source, target, symlinks=True)
    if "check" in job:
        getattr(rank_checks, job["check"])(job)
    else:
        for fault, bring in {"sigterm": send_sigterm, "nan": poison_batch}.items():
            if job.get(fault, {}).pop("rank", None) == me:
                bring(**job[fault])
        trainer.main(job["train"])


def send_sigterm(step: int, during: str = "train_step") -> None:
    module = trainer if hasattr(trainer, during) else setup
    function = getattr(module, during)

    def with_signal(*args: Any, **kwargs: Any) -> Any:
        run = args[0]
        if not isinstance(run, trainer.Run) or run.position.step + (during == "train_step") == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*args, **kwargs)

    setattr(module, during, with_signal)


def poison_batch(step: int) -> None:
    whole_step = trainer.train_step

    def poisoned(run: trainer.Run, batch: FeatureBatch, data_wait: float) -> Any:
        return whole_step(run, poison(batch) if run.position.step + 1 == step else batch, data_wait)

    trainer.train_step = poisoned


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(os.environ["RANKS"]), int(os.environ["ME"]))
