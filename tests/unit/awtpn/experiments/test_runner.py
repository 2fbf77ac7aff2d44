"""Many runs: shared between processes by locks, stopped together, never trained twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support import LIMIT
from support import environment as environment_of_a_child

from awtpn.experiments import runner
from awtpn.experiments.runner import Job, environment, lock_file, train_all, try_lock

# A stand-in for launch/train.py: it notes that it ran, and does what its second argument says.
SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
run_dir, what = Path(sys.argv[1]), sys.argv[2]
(run_dir / "pid").write_text(str(os.getpid()))
with (run_dir / "ran").open("a") as file:
    file.write("x")
def stop(*_):
    (run_dir / "status.json").write_text(json.dumps({"status": "preempted"}))
    sys.exit(1)
if what == "wait":
    signal.signal(signal.SIGTERM, stop)
    (run_dir / "waiting").touch()
    time.sleep(1e6)
if what == "fail":
    while not (run_dir.parent / "b" / "waiting").exists():
        time.sleep(0.01)
    sys.exit("no such luck")
(run_dir / "status.json").write_text(json.dumps({"status": "done"}))
"""


@pytest.fixture(autouse=True)
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setattr(runner, "TRAIN_SCRIPT", tmp_path / "script.py")
    monkeypatch.setattr(runner, "POLL_S", 0.05)


def job(tmp_path: Path, name: str, what: str = "work") -> Job:
    run_dir = tmp_path / "runs" / name
    return Job((str(run_dir), what), run_dir)


def times_trained(one: Job) -> int:
    file = one.run_dir / "ran"
    return len(file.read_text()) if file.exists() else 0


def test_each_run_is_trained_once(tmp_path: Path) -> None:
    jobs = [job(tmp_path, name) for name in "abc"]
    train_all(jobs, parallel=2)
    train_all(jobs, parallel=3)
    assert [times_trained(one) for one in jobs] == [1, 1, 1]


def test_a_run_that_another_process_trains_is_left_to_it(tmp_path: Path) -> None:
    jobs = [job(tmp_path, name) for name in "ab"]
    jobs[0].run_dir.mkdir(parents=True)
    lock = try_lock(lock_file(jobs[0].run_dir))
    assert lock is not None
    assert try_lock(lock_file(jobs[0].run_dir)) is None
    everything = threading.Thread(target=train_all, args=(jobs,))
    everything.start()
    while not runner.is_done(jobs[1].run_dir):
        time.sleep(0.01)
    time.sleep(0.2)
    assert everything.is_alive(), "it waits for the run that is trained elsewhere"
    (jobs[0].run_dir / "status.json").write_text(json.dumps({"status": "done"}))
    lock.close()
    everything.join(LIMIT)
    assert not everything.is_alive()
    assert [times_trained(one) for one in jobs] == [0, 1]


def test_two_processes_share_a_list(tmp_path: Path) -> None:
    """The same command twice: every run is trained by one of them, and both end when all is done."""
    code = (
        "import sys; from pathlib import Path; from awtpn.experiments import runner\n"
        "folder = Path(sys.argv[1]); runner.TRAIN_SCRIPT = folder / 'script.py'; runner.POLL_S = 0.05\n"
        "dirs = [folder / 'runs' / str(i) for i in range(6)]\n"
        "runner.train_all([runner.Job((str(d), 'work'), d) for d in dirs])\n"
        "sys.exit(not all(runner.is_done(d) for d in dirs))\n"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment_of_a_child())
        for _ in range(2)
    ]
    assert [process.wait(LIMIT) for process in both] == [0, 0]
    assert [times_trained(job(tmp_path, str(i))) for i in range(6)] == [1] * 6


def test_a_run_whose_trainer_died_is_taken_up(tmp_path: Path) -> None:
    one = job(tmp_path, "a")
    one.run_dir.mkdir(parents=True)
    (one.run_dir / "status.json").write_text(json.dumps({"status": "running"}))
    lock_file(one.run_dir).touch()  # nobody holds it any more
    train_all([one])
    assert times_trained(one) == 1


def test_a_failure_stops_the_others_which_can_go_on(tmp_path: Path) -> None:
    failing, waiting = job(tmp_path, "a", "fail"), job(tmp_path, "b", "wait")
    with pytest.raises(RuntimeError, match=r"(?s)runs/a ended with status 1; .*no such luck"):
        train_all([waiting, failing, job(tmp_path, "c", "wait")], parallel=2)
    assert json.loads((waiting.run_dir / "status.json").read_text()) == {"status": "preempted"}
    assert times_trained(job(tmp_path, "c")) == 0
    pid = int((waiting.run_dir / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    train_all([job(tmp_path, name) for name in "abc"])
    assert times_trained(waiting) == 2


def test_runs_side_by_side_share_cores_and_gpus() -> None:
    cores = os.cpu_count() or 1
    assert environment({"A": "1"}, 0, 1, ["0", "1"]) == {"A": "1"}, "alone, a run has all there is"
    share = str(max(1, cores // 3))
    assert [environment({}, slot, 3, ["4", "6"]) for slot in range(3)] == [
        {"OMP_NUM_THREADS": share, "CUDA_VISIBLE_DEVICES": gpu} for gpu in ("4", "6", "4")
    ]
    assert environment({"OMP_NUM_THREADS": "7"}, 0, 2, [])["OMP_NUM_THREADS"] == "7"


def test_another_launcher_starts_the_script(tmp_path: Path) -> None:
    one = job(tmp_path, "a")
    train_all([one], launcher=[sys.executable, "-u"])
    assert times_trained(one) == 1
    with pytest.raises(ValueError, match="at least one run at a time"):
        train_all([one], parallel=0)
