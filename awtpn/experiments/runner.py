"""Trains many runs, one after another or in parallel: each is a process with its own run folder.

A finished run is not trained again; an interrupted one resumes from its checkpoint. A process that trains a
run holds a lock beside the run's folder. So several terminals, batch jobs or nodes that share the disk can be
given the same list: each trains runs that no other has locked, and all wait until every run is done.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from awtpn.config.command_line import parse_command_line
from awtpn.config.private_words import hand_over, hands_on_environment
from awtpn.config.project_files import TRAIN_SCRIPT
from awtpn.config.schema import differing_keys, dump
from awtpn.model.files import model_folder
from awtpn.run.record import CONFIG_FILE, STATUS_FILE, read_settings, read_status
from awtpn.run.results import RESULTS_FILE, read_results
from shards.cores import usable_cores
from shards.progress import Progress, progress_bar
from shards.safe_io.printable import get_logger
from shards.storage.credentials import redact
from shards.storage.file_lock import open_locked

PYTHON = (sys.executable,)
LOG_FILE = "train.log"
LOG_TAIL = 2_000  # characters of a failed run's output to show
POLL_S = 1.0  # between checks of runs that other processes are training
# Keys that may differ between two trainings of the same run: places and access.
PLACE_KEYS = ("run.dir", "run.local_dir", "data.cache_dir", "data.cache_limit", "data.storage_options")

logger = get_logger(__name__)


@dataclass(frozen=True)
class Job:
    """One training: the arguments of `awtpn train`, `run.dir` included."""

    arguments: tuple[str, ...]
    run_dir: Path


def place_job(arguments: Sequence[str], run_dir: Path, former: Path) -> Job:
    """The training of `arguments` in `run_dir`, or in `former` if an older version trained this run there."""
    job, before = (Job((*arguments, f"--run.dir={place}"), place) for place in (run_dir, former))
    if former != run_dir and not run_dir.exists() and (former / CONFIG_FILE).is_file():
        return job if other_settings(before) else before
    return job


def train_all(
    jobs: Sequence[Job],
    parallel: int = 1,
    launcher: Sequence[str] = PYTHON,
    what: str = "runs",
    place: Callable[[Job], Job] = lambda job: job,
) -> None:
    """Train all jobs that are not done yet, `parallel` runs at a time; return when all are done.

    Args:
        jobs: each with its own folder.
        parallel: processes at a time on this machine; they share its cores, and each gets one of its GPUs.
        launcher: the command that starts launch/train.py, e.g. ["torchrun", "--nproc-per-node", "8"].
        what: for the progress shown.
        place: gives a job the URL of its run folder, where it has one.

    Raises:
        ValueError: a folder holds a run of other settings, or two jobs have the same folder.
        RuntimeError: a run failed; the message ends with its output. The others stop; they can resume.
    """
    if parallel < 1:
        raise ValueError(f"at least one run at a time, not {parallel}")
    check_own_folders(jobs)
    jobs = [place(job) for job in jobs]
    for job in jobs:
        check_same_settings(job)
        # Not in the threads: creating the same parent folder concurrently fails on some network file systems.
        job.run_dir.mkdir(parents=True, exist_ok=True)
    queue = _Queue(jobs)
    with progress_bar(what, "run", len(jobs), first_s=0) as bar, ThreadPoolExecutor(parallel) as pool:
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
    """Waiting jobs and running processes, shared by the worker threads."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.waiting = list(jobs)
        self.processes: set[subprocess.Popen[Any]] = set()
        self.guard = threading.Lock()
        self.stopped = threading.Event()

    def take(self) -> tuple[Job, BinaryIO] | None:
        """The next job that no other process is training, and its lock; None if no jobs are left."""
        while not self.stopped.is_set():
            with self.guard:
                if not self.waiting:
                    return None
                for job in self.waiting:
                    if (lock := try_lock(lock_file(job.run_dir))) is not None:
                        self.waiting.remove(job)
                        return job, lock
            self.stopped.wait(POLL_S)  # other processes are training all remaining jobs
        return None

    def run(self, command: Sequence[str], log: Path, env: Mapping[str, str], lock: BinaryIO) -> int | None:
        """Run `command` to its end and return the exit status; None if the queue was stopped meanwhile."""
        with log.open("w") as output:
            with self.guard:
                if self.stopped.is_set():
                    return None
                # In its own session, so that Ctrl-C in the terminal does not reach it: `stop` sends SIGTERM
                # instead, on which it saves. It inherits the lock, so the run stays locked if we are killed.
                process = subprocess.Popen(
                    command,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=dict(env),
                    start_new_session=True,
                    pass_fds=(lock.fileno(),),
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


def _work(queue: _Queue, launcher: Sequence[str], env: Mapping[str, str], bar: Progress) -> None:
    """One worker thread: takes jobs and trains them until none is left."""
    while taken := queue.take():
        job, lock = taken
        try:
            bar.set_postfix_str(job.run_dir.name)
            if not is_done(job.run_dir):
                log = job.run_dir / LOG_FILE
                words, private = hand_over(job.arguments)
                if private and not hands_on_environment(launcher):
                    logger.warning(
                        "deepspeed starts ranks by ssh, so other users of the hosts can see credentials of "
                        "the command line; better store them on the hosts, where the file system finds them"
                    )
                    words, private = [*job.arguments], {}
                code = queue.run([*launcher, str(TRAIN_SCRIPT), *words], log, {**env, **private}, lock)
                if code is None:
                    return
                if not is_done(job.run_dir):
                    end = redact(log.read_text(errors="replace"))[-LOG_TAIL:]
                    raise RuntimeError(f"{job.run_dir} ended with status {code}; {log} ends:\n{end}")
            # Check again: meanwhile another process may have trained other settings in this folder.
            check_same_settings(job)
            bar.update(1)
        except BaseException:
            queue.stop()  # immediately, since the main thread may be waiting for another worker
            raise
        finally:
            lock.close()


def environment(base: Mapping[str, str], slot: int, parallel: int, gpus: Sequence[str]) -> dict[str, str]:
    """The environment of the run in this slot: a share of the cores, and one GPU if runs are parallel."""
    env = dict(base)
    env.pop("SLURM_STEP_NUM_TASKS", None)  # it describes this process's job step, not the run
    if parallel > 1:
        env.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // parallel)))
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return env


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(i) for i in range(count)]


# --- Locks ---------------------------------------------------------------------------------------


def lock_file(run_dir: Path) -> Path:
    return run_dir.with_name(f".{run_dir.name}.lock")


def try_lock(path: Path) -> BinaryIO | None:
    """A file that holds the lock until it is closed, or None if another process holds it."""
    try:
        return open_locked(path, os.O_RDWR | os.O_CREAT)
    except BlockingIOError:
        return None


# --- Run folders ---------------------------------------------------------------------------------


def is_done(run_dir: Path) -> bool:
    return (run_dir / STATUS_FILE).is_file() and read_status(run_dir)["status"] == "done"


def read_metrics(run_dir: Path, role: str = "test") -> dict[str, Any]:
    """A finished run's metrics on its "test" or "val" utterances.

    Raises:
        ValueError: the run has none, or they are not of its best checkpoint.
    """
    stored = read_results(run_dir, model_folder(run_dir))
    if stored.results is None:
        why = stored.note or f"{run_dir} has no {RESULTS_FILE}"
        raise ValueError(f"{why}: to finish it, repeat the command that began it")
    results = stored.results
    if role not in results:
        raise ValueError(
            f"{run_dir} has no metrics of {role} utterances: set data.{role} or data.select.{role}"
        )
    found: dict[str, Any] = results[role]
    return found


def check_own_folders(jobs: Sequence[Job]) -> None:
    """Refuse two different jobs with the same folder, since one would use the other's results.

    Raises:
        ValueError: names the folder.
    """
    first: dict[Path, Job] = {}
    for job in jobs:
        other = first.setdefault(job.run_dir, job)
        if other.arguments != job.arguments:
            raise ValueError(f"two runs of different settings would share the folder {job.run_dir}")


def check_same_settings(job: Job) -> None:
    """Refuse a folder that holds a run of other settings than the job's.

    Raises:
        ValueError: names the keys that differ.
    """
    if changed := other_settings(job):
        raise ValueError(f"{job.run_dir} holds a run with another {', '.join(changed)}: give another --dir")


def other_settings(job: Job) -> list[str]:
    """Keys whose values differ between the job and the run in its folder; none if there is no run yet."""
    if (before := read_settings(job.run_dir)) is None:
        return []
    now = dump(parse_command_line(job.arguments)[0])
    return [key for key in differing_keys(before, now) if key not in PLACE_KEYS]
