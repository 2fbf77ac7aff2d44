"""One job at a time in a run folder, whatever became of the last one."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from awtpn.run import lock
from awtpn.run.lock import LOCK_FILE, run_lock


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.02)


@contextmanager
def job_elsewhere(file: Path, beats: bool) -> Iterator[None]:
    """What a job on another host shows where the disk carries no locks: its name, and heartbeats."""
    file.write_text("far-away 42\n")
    ended = threading.Event()

    def beat() -> None:
        while beats and not ended.wait(0.02):
            os.utime(file)

    thread = threading.Thread(target=beat)
    thread.start()
    yield
    ended.set()
    thread.join()


def test_a_second_job_is_refused(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        owner = f"process {os.getpid()} on {os.uname().nodename}"
        with pytest.raises(ValueError, match=f"is in use: {re.escape(owner)} trains there. Choose another"):
            run_lock(tmp_path).__enter__()
    with run_lock(tmp_path):
        pass
    assert (tmp_path / LOCK_FILE).read_text() == "", "an ended job leaves nothing to wait for, on any host"


def test_a_killed_job_of_this_host_is_not_waited_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if (child := os.fork()) == 0:
        with run_lock(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / LOCK_FILE).read_text().split()[1] == str(child)
    with run_lock(tmp_path):
        assert "may be in use" not in capfd.readouterr().out


@pytest.mark.parametrize("locks", [True, False], ids=["locks end at the host", "no locks"])
def test_a_job_on_another_host_is_refused_while_it_lives(
    tmp_path: Path, locks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not locks:
        monkeypatch.setattr(lock, "_try_lock", lambda descriptor: None)
    with (
        job_elsewhere(tmp_path / LOCK_FILE, beats=True),
        pytest.raises(ValueError, match="is in use: process 42 on far-away trains there"),
    ):
        run_lock(tmp_path).__enter__()
    monkeypatch.setattr(lock, "STALE_S", 0.2)
    with job_elsewhere(tmp_path / LOCK_FILE, beats=False), run_lock(tmp_path):
        assert (tmp_path / LOCK_FILE).read_text() == f"{os.uname().nodename} {os.getpid()}\n"


def test_a_lock_without_a_heartbeat_is_not_waited_for_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_try_lock", lambda descriptor: False)
    monkeypatch.setattr(lock, "STALE_S", 0.2)
    with (
        job_elsewhere(tmp_path / LOCK_FILE, beats=False),
        pytest.raises(ValueError, match="far-away holds its lock, but has had no heartbeat") as refusal,
    ):
        run_lock(tmp_path).__enter__()
    assert f"remove {tmp_path / LOCK_FILE}" in str(refusal.value)


def test_a_lock_is_kept_alive(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        first = (tmp_path / LOCK_FILE).stat().st_mtime_ns
        while (tmp_path / LOCK_FILE).stat().st_mtime_ns == first:
            time.sleep(0.01)
