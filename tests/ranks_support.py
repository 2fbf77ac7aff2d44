"""Run jobs on several ranks, without starting Python anew for each of them.

Importing torch, DeepSpeed and what they need takes about ten seconds of a core, far longer than a small
training. So one process of tests/distributed/rank_worker.py, which has imported everything, forks the ranks
of every job of every test of this process.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from support import LIMIT, REPO, environment, free_port, kill_tree

DONE = "done"


class Worker(NamedTuple):
    """The process; a line to its standard input is a request, a line of `answers` the answer."""

    process: subprocess.Popen[str]
    answers: IO[str]
    output: IO[bytes]  # a file without a name, which nobody need remove


_workers: list[Worker] = []  # none or one


def run_ranks(jobs: Sequence[dict[str, Any]], ranks: int, folder: Path, timeout: float = 2 * LIMIT) -> None:
    """Run `jobs` one after another, each on `ranks` new processes: see tests/distributed/rank_worker.py.

    What rank R prints, over all jobs, is in `folder`/rank-R-of-`ranks`.log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan = [job | {"port": free_port()} for job in jobs]
    logs = [folder / f"rank-{rank}-of-{ranks}.log" for rank in range(ranks)]
    for log in logs:
        log.write_text("")
    worker = _workers[0] if _workers else _start()
    assert worker.process.stdin is not None
    worker.process.stdin.write(json.dumps({"jobs": plan, "logs": [str(log) for log in logs]}) + "\n")
    worker.process.stdin.flush()
    answered, _, _ = select.select([worker.answers], [], [], timeout)
    answer = worker.answers.readline().strip() if answered else f"no end after {timeout} s"
    if answer != DONE:
        size = os.fstat(worker.output.fileno()).st_size
        texts = {"worker": os.pread(worker.output.fileno(), size, 0).decode()}
        texts |= {log.name: log.read_text() for log in logs}
        _end()
        tails = "\n".join(f"--- {name}\n{text[-3000:]}" for name, text in texts.items())
        raise AssertionError(f"{answer or 'the worker died'}\n{tails}")


def _start() -> Worker:
    output = tempfile.TemporaryFile()  # noqa: SIM115 (closed at the end)
    theirs, ours = os.pipe()
    process = subprocess.Popen(
        [sys.executable, str(REPO / "tests" / "distributed" / "rank_worker.py"), str(ours)],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        pass_fds=(ours,),
        cwd=REPO,
        env=environment(TORCHINDUCTOR_COMPILE_THREADS="1"),
        text=True,
    )
    os.close(ours)
    _workers.append(Worker(process, os.fdopen(theirs), output))
    return _workers[0]


@atexit.register  # a worker whose parent is killed ends as well: its standard input does
def _end() -> None:
    while _workers:
        worker = _workers.pop()
        kill_tree(worker.process)
        worker.answers.close()
        worker.output.close()
