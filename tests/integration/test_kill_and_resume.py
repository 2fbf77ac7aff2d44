"""Real launches that are stopped or killed at some moment, started again, and end as if nothing had been."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from ranks_support import run_ranks
from support import LIMIT, arguments, assert_same_results, assert_same_run, launched, metrics, run, status

from awtpn.model import files
from awtpn.run import checkpoint, position

SETTINGS = {
    "model.shared_dim": 16,
    "model.dropout": 0.2,
    "loss.negative_group": 4,
    "optim.lr": 1e-3,
    "train.epochs": 20,
    "train.global_batch_size": 8,
    "train.log_every": 1,
    "train.checkpoint_every": 10,
    "train.validate_every": 10,
}
LAUNCHERS = {
    "python": [sys.executable],
    "torchrun": ["torchrun", "--standalone", "--nproc-per-node", "2"],
}
RANKS = {"python": 1, "torchrun": 2}


def of_run(corpus: str, run_dir: Path) -> list[str]:
    settings: dict[str, Any] = SETTINGS | {"data.train": corpus, "run.dir": run_dir}
    return arguments(settings)


def command(launcher: str, corpus: str, run_dir: Path) -> list[str]:
    return [*LAUNCHERS[launcher], "launch/train.py", *of_run(corpus, run_dir)]


def wait_for_line(run_dir: Path, lines: int, log: Path) -> None:
    """Wait until the run has done so many steps."""
    path, deadline = run_dir / "metrics.jsonl", time.monotonic() + LIMIT
    while not path.exists() or path.read_text().count("\n") < lines:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("launcher", "number"),
    [("python", signal.SIGKILL), ("torchrun", signal.SIGTERM)],
    ids=["python killed", "torchrun told to stop"],
)
def test_a_stopped_run_ends_as_if_it_had_not_been(
    launcher: str, number: signal.Signals, corpus: str, tmp_path: Path
) -> None:
    stopped, undisturbed = tmp_path / "stopped", tmp_path / "undisturbed"
    with launched(command(launcher, corpus, stopped), tmp_path / "first.log") as process:
        wait_for_line(stopped, 23, tmp_path / "first.log")
        os.kill(process.pid, number)
        process.wait(LIMIT)
    steps = 20 * 7
    assert len(metrics_whole(stopped)) < steps, "it was stopped before its end"
    assert not (stopped / "results.json").exists()
    if number == signal.SIGTERM:
        assert status(stopped)["status"] == "preempted"

    code, log = run(command(launcher, corpus, stopped), tmp_path / "second.log")
    assert code == 0, log
    assert "resumed at step" in log
    run_ranks([{"train": of_run(corpus, undisturbed)}], RANKS[launcher], tmp_path)
    assert "resumed at step" not in (tmp_path / f"rank-0-of-{RANKS[launcher]}.log").read_text()
    assert status(stopped)["status"] == status(undisturbed)["status"] == "done"
    assert [x["step"] for x in metrics(stopped)] == list(range(1, steps + 1))
    assert_same_run(stopped, undisturbed)
    assert_same_results(stopped / "results.json", undisturbed / "results.json")


def test_ctrl_c_at_torchrun_saves_on_all_ranks(corpus: str, tmp_path: Path) -> None:
    """A terminal sends it to every process, and torchrun sends it to its ranks once more."""
    with launched(command("torchrun", corpus, tmp_path / "run"), tmp_path / "log") as process:
        wait_for_line(tmp_path / "run", 3, tmp_path / "log")
        everyone = psutil.Process(process.pid)
        for each in (*everyone.children(recursive=True), everyone):
            each.send_signal(signal.SIGINT)
        process.wait(LIMIT)
    assert status(tmp_path / "run")["status"] == "preempted"
    latest = checkpoint.find_latest(tmp_path / "run" / "checkpoints")
    assert latest is not None
    assert files.find_corruption(latest) is None
    assert position.load_position(latest).step == status(tmp_path / "run")["step"]


def metrics_whole(run_dir: Path) -> list[str]:
    """The whole lines of a file that may end in a torn one."""
    return (run_dir / "metrics.jsonl").read_text().split("\n")[:-1]
