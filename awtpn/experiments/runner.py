"""Many trainings, one after another or side by side: each a process with a run folder of its own.

A run that is done is not trained again, one that was interrupted goes on from its checkpoint. Whoever trains
a run holds a lock beside its folder, so several terminals, batch jobs or nodes that share the disk may be
given the same list: each takes what nobody else has, and all of them wait for the whole.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from awtpn.config.command_line import parse_command_line
from awtpn.config.private_words import hand_over, hands_on_environment
from awtpn.config.schema import differing_keys, dump
from awtpn.distributed.cpu_threads import usable_cores
from awtpn.model.files import model_folder
from awtpn.run.record import CONFIG_FILE, STATUS_FILE, read_settings, read_status
from awtpn.run.results import RESULTS_FILE, read_results
from shards.safe_io.printable import get_logger
from shards.storage.credentials import redact

TRAIN_SCRIPT = Path(__file__).parents[2] / "launch" / "train.py"
PYTHON = (sys.executable,)
LOG_FILE = "train.log"
LOG_TAIL = 2_000  # characters of a failed run's output to show
POLL_S = 1.0  # between looks at runs that others are training
# What may differ between two trainings of the same run: where it and its cache lie.
ELSEWHERE = ("run.dir", "data.cache_dir", "data.cache_limit", "data.storage_options")

logger = get_logger(__name__)


@dataclass(frozen=True)
class Job:
    """One training: the arguments of launch/train.py, `run.dir` included."""

    arguments: tuple[str, ...]
    run_dir: Path


def place_job(arguments: Sequence[str], run_dir: Path, former: Path) -> Job:
    """The training of `arguments` in `run_dir`; or in `former`, if an older version placed this run there."""
    job, before = (Job((*arguments, f"--run.dir={place}"), place) for place in (run_dir, former))
    if former != run_dir and not run_dir.exists() and (former / CONFIG_FILE).is_file():
        return job if other_settings(before) else before
    return job


def train_all(
    jobs: Sequence[Job], parallel: int = 1, launcher: Sequence[str] = PYTHON, what: str = "runs"
) -> None:
    """Train what is not done yet, `parallel` runs at a time, and return when all is done.

    Args:
        jobs: each with a folder of its own.
        parallel: processes at a time on this machine; they share its cores, and take its GPUs in turn.
        launcher: what starts launch/train.py, e.g. ["torchrun", "--nproc-per-node", "8"].
        what: for the progress bar.

    Raises:
        ValueError: a folder holds a run of other settings, or two jobs have the same folder.
        RuntimeError: a run failed; the message ends with its output. The others are stopped, and can go on.
    """
    if parallel < 1:
        raise ValueError(f"at least one run at a time, not {parallel}")
    check_own_folders(jobs)
    for job in jobs:
        check_same_settings(job)
        # Before the pool: threads that make the same parent at once are a race on some network disks.
        job.run_dir.mkdir(parents=True, exist_ok=True)
    queue = _Queue(jobs)
    with tqdm(total=len(jobs), desc=what, unit="run") as bar, ThreadPoolExecutor(parallel) as pool:
        workers = [
            pool.submit(_work, queue, launcher, environment(os.environ, slot, parallel, _gpus()), bar)
            for slot in range(parallel)
        ]
        try:
            for worker in workers:
                worker.result()
        except BaseException:
            queue.stop()
            raise


class _Queue:
    """Jobs that wait, and the processes of those that run, shared by the worker threads."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.waiting = list(jobs)
        self.processes: set[subprocess.Popen[Any]] = set()
        self.guard = threading.Lock()
        self.stopped = threading.Event()

    def take(self) -> tuple[Job, int] | None:
        """The next job that nobody else trains, with its lock; None when there are no more."""
        while not self.stopped.is_set():
            with self.guard:
                if not self.waiting:
                    return None
                for job in self.waiting:
                    if (lock := try_lock(lock_file(job.run_dir))) is not None:
                        self.waiting.remove(job)
                        return job, lock
            self.stopped.wait(POLL_S)  # all that is left is being trained elsewhere
        return None

    def run(self, command: Sequence[str], log: Path, env: Mapping[str, str], lock: int) -> int | None:
        """Run to the end and return the exit status; None if the queue was stopped meanwhile."""
        with log.open("w") as output:
            with self.guard:
                if self.stopped.is_set():
                    return None
                # Out of reach of the terminal's Ctrl-C: it is asked to save and stop (SIGTERM) instead. It
                # inherits the lock, so the run stays taken even if this process is killed.
                process = subprocess.Popen(
                    command,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=dict(env),
                    start_new_session=True,
                    pass_fds=(lock,),
                )
                self.processes.add(process)
            code = process.wait()
        with self.guard:
            self.processes.discard(process)
        return None if self.stopped.is_set() else code

    def stop(self) -> None:
        with self.guard:
            self.stopped.set()
            for process in self.processes:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)


def _work(queue: _Queue, launcher: Sequence[str], env: Mapping[str, str], bar: tqdm[Any]) -> None:
    """One worker: take, train, and on to the next."""
    while taken := queue.take():
        job, lock = taken
        try:
            bar.set_postfix_str(job.run_dir.name)
            if not is_done(job.run_dir):
                log = job.run_dir / LOG_FILE
                words, private = hand_over(job.arguments)
                if private and not hands_on_environment(launcher):
                    logger.warning(
                        "deepspeed starts ranks by ssh, which shows credentials of the command line to other "
                        "users of the hosts; better have the file system find them there"
                    )
                    words, private = [*job.arguments], {}
                code = queue.run([*launcher, str(TRAIN_SCRIPT), *words], log, {**env, **private}, lock)
                if code is None:
                    return
                if not is_done(job.run_dir):
                    # A progress bar returns to the line's beginning instead of ending it.
                    end = redact(log.read_text(errors="replace"))[-LOG_TAIL:].replace("\r", "\n")
                    raise RuntimeError(f"{job.run_dir} ended with status {code}; {log} ends:\n{end}")
            # Again: since the first look, another process may have trained something else in the folder.
            check_same_settings(job)
            bar.update(1)
        except BaseException:
            queue.stop()  # at once: the main thread may be waiting for another worker
            raise
        finally:
            os.close(lock)


def environment(base: Mapping[str, str], slot: int, parallel: int, gpus: Sequence[str]) -> dict[str, str]:
    """`base` for the run in this slot: its share of the cores, and one of the GPUs where several run."""
    env = dict(base)
    env.pop("SLURM_STEP_NUM_TASKS", None)  # of this process's step: the run is one of its own
    if parallel > 1:
        env.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // parallel)))
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return env


def _gpus() -> list[str]:
    """The devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(i) for i in range(count)]


# --- Locks ---------------------------------------------------------------------------------------


def lock_file(run_dir: Path) -> Path:
    return run_dir.with_name(f".{run_dir.name}.lock")


def try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock until it is closed, or None if another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


# --- What is on disk -----------------------------------------------------------------------------


def is_done(run_dir: Path) -> bool:
    return (run_dir / STATUS_FILE).is_file() and read_status(run_dir)["status"] == "done"


def figures(run_dir: Path, role: str = "test") -> dict[str, Any]:
    """A finished run's figures on its "test" or "val" utterances.

    Raises:
        ValueError: the run had none, or they are not those of its best checkpoint.
    """
    stored = read_results(run_dir, model_folder(run_dir))
    if stored.results is None:
        why = stored.note or f"{run_dir} has no {RESULTS_FILE}"
        raise ValueError(f"{why}: train it to its end again, with the command that began it")
    results = stored.results
    if role not in results:
        raise ValueError(f"{run_dir} has no figures of {role} utterances: give data.{role} or select them")
    found: dict[str, Any] = results[role]
    return found


def check_own_folders(jobs: Sequence[Job]) -> None:
    """Refuse two jobs that would share a folder, where one would take the other's results.

    Raises:
        ValueError: names the folder.
    """
    first: dict[Path, Job] = {}
    for job in jobs:
        other = first.setdefault(job.run_dir, job)
        if other.arguments != job.arguments:
            raise ValueError(f"two runs of different settings would share the folder {job.run_dir}")


def check_same_settings(job: Job) -> None:
    """Refuse to take an older run of other settings for the one that is asked for.

    Raises:
        ValueError: the folder's run has other settings; names them.
    """
    if changed := other_settings(job):
        raise ValueError(f"{job.run_dir} holds a run with another {', '.join(changed)}: give another --dir")


def other_settings(job: Job) -> list[str]:
    """The keys that the folder's run has otherwise, its utterances included; none where it has no run yet."""
    if (before := read_settings(job.run_dir)) is None:
        return []
    now = dump(parse_command_line(job.arguments)[0])
    return [key for key in differing_keys(before, now) if key not in ELSEWHERE]
