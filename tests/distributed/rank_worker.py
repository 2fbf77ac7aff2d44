"""A process that has imported everything and forks the ranks of many small jobs.

`ranks_support.run_ranks` starts it and writes lists of jobs to its standard input. Each rank of each job is a
fork of its own, since Accelerate and DeepSpeed keep what they found at their first start for the life of a
process. Each job has a port of its own, and is one of these:

- {"train": ARGV}: train as `launch/train.py ARGV` would; with "sigterm": {"rank": R, "step": S}, rank R gets
  SIGTERM while it does step S, or with "during": NAME, when it comes to that function of the trainer at step
  S; with "sigkill" it gets SIGKILL, and the job has to fail; with "nan": {"rank": R, "step": S}, its batch of
  step S has one; with "fault": NAME, it has that one of faulty_train.py; with "fails", all ranks have to end
  with an error; with "copy": [FROM, TO], the main rank copies a run folder before; with "environment", the
  ranks have these variables, too.
- {"check": NAME, ...}: call a function of rank_checks.py, which judges for itself.
"""

from __future__ import annotations

import faulthandler
import functools
import gc
import importlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from typing import Any

import rank_checks
from ranks_support import DONE
from support import LIMIT, poison

from awtpn.config import command_line
from awtpn.distributed.engines.deepspeed import import_deepspeed
from awtpn.run import provenance
from awtpn.training import setup, trainer
from shards import FeatureBatch

import_deepspeed()
# Slow to import, and otherwise imported late: once, before the forks, instead of once for every job.
for module in (
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.stage_1_and_2",
    "numpy.ma",
    "tensorboard.plugins.hparams.metadata",
    "torch._dynamo",
    "torch.distributed.algorithms.ddp_comm_hooks.default_hooks",
    "torch.utils.cpp_extension",
    "transformers",
    "transformers.integrations.deepspeed",
):
    importlib.import_module(module)
# The same for jobs with encoders, where they take a rank a second or two.
OF_ENCODERS = (
    "peft",
    "transformers.models.vit.image_processing_pil_vit",
    "transformers.models.vit.modeling_vit",
    "transformers.models.wav2vec2.feature_extraction_wav2vec2",
    "transformers.models.wav2vec2.modeling_wav2vec2",
)

HUNG_S = LIMIT / 2
ERROR = 3  # exit code of a rank; no other error has it


def main(answers: int) -> None:
    """Run the jobs that each line of the standard input asks for, until it is closed."""
    # Once, as the imports: reading all docstrings takes as long as a small training.
    command_line.make_parser(command_line.TRAIN)
    provenance.commit()
    for line in sys.stdin:
        request = json.loads(line)
        if any(word.startswith("--encoder.") for job in request["jobs"] for word in job.get("train", ())):
            for module in OF_ENCODERS:
                importlib.import_module(module)
        # DeepSpeed collects garbage while it builds ZeRO-3. The objects of all these imports are left out: to
        # visit them takes time, and copies their memory, which a rank shares with the others.
        gc.freeze()
        failed = next((job for job in request["jobs"] if not run_job(job, request["logs"])), None)
        os.write(answers, f"failed: {failed}\n".encode() if failed else f"{DONE}\n".encode())


def run_job(job: dict[str, Any], logs: list[str]) -> bool:
    """Run a job on as many ranks as there are logs; whether it ended as it should."""
    running = {start_rank(job, me, logs) for me in range(len(logs))}
    codes = []
    while running:
        child, status = os.wait()
        running.discard(child)
        codes.append(os.waitstatus_to_exitcode(status))
        if codes[-1] != 0 and "fails" not in job:
            # The others wait for this one in a collective: do not wait for them.
            time.sleep(1)  # so that other failing ranks can write their errors
            for other in running:
                os.kill(other, signal.SIGKILL)
                os.waitpid(other, 0)
            return "sigkill" in job
    if "fails" in job:
        return set(codes) == {ERROR}
    return "sigkill" not in job


def start_rank(job: dict[str, Any], me: int, logs: list[str]) -> int:
    """Fork a rank; its process id."""
    if child := os.fork():
        return child
    output = os.open(logs[me], os.O_WRONLY | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # Where the threads stand says more than a time-out.
    faulthandler.dump_traceback_later(HUNG_S, exit=True)
    try:
        print(f"=== {job}", flush=True)
        work(job, len(logs), me)
    except BaseException:
        traceback.print_exc()
        os._exit(ERROR)
    # Not an ordinary exit: what others registered for it belongs to the parent.
    os._exit(0)


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
    os.environ.update(job.get("environment", {}))
    if "copy" in job and me == 0:
        source, target = job["copy"]
        shutil.copytree(source, target, symlinks=True)
    if "check" in job:
        getattr(rank_checks, job["check"])(job)
    elif "fault" in job:
        importlib.import_module("faulty_train").main(
            job["fault"], job["train"]
        )  # it reads the variables above
    else:
        for fault, bring in FAULTS.items():
            if job.get(fault, {}).pop("rank", None) == me:
                bring(**job[fault])
        trainer.main(job["train"])


def send_signal(number: signal.Signals, step: int, during: str = "train_step") -> None:
    module = trainer if hasattr(trainer, during) else setup
    function = getattr(module, during)

    def with_signal(*args: Any, **kwargs: Any) -> Any:
        run = args[0]
        if not isinstance(run, trainer.Run) or run.position.step + (during == "train_step") == step:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    setattr(module, during, with_signal)


def poison_batch(step: int) -> None:
    whole_step = trainer.train_step

    def poisoned(run: trainer.Run, batch: FeatureBatch, data_wait: float) -> Any:
        return whole_step(run, poison(batch) if run.position.step + 1 == step else batch, data_wait)

    trainer.train_step = poisoned


FAULTS = {
    "sigterm": functools.partial(send_signal, signal.SIGTERM),
    "sigkill": functools.partial(send_signal, signal.SIGKILL),
    "nan": poison_batch,
}


if __name__ == "__main__":
    main(int(sys.argv[1]))
