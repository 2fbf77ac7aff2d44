"""What a node knows of the job that it took part in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import LIMIT, environment

from awtpn.run.remote.membership import take_part

# Takes part in job "a", says so, and waits to be killed.
MEMBER = """
import sys, time
from pathlib import Path
from awtpn.run.remote.membership import take_part
with take_part(Path(sys.argv[1])) as (former, record):
    record("a")
    print("in", flush=True)
    time.sleep(1e6)
"""


def test_a_job_has_ended_when_its_process_on_this_node_has(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEMBER, str(tmp_path)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as member:
        try:
            assert member.stdout is not None
            assert member.stdout.readline() == "in\n"
            with take_part(tmp_path) as (former, record):
                assert former is None, "it lives"
                record("b")
        finally:
            os.kill(member.pid, signal.SIGKILL)
            member.wait(LIMIT)
    with take_part(tmp_path) as (former, record):
        assert former == "a"
        record("c")


def test_only_an_error_leaves_a_job_that_is_known_to_have_ended(tmp_path: Path) -> None:
    """After a good end, the main rank may still send records."""

    def fail() -> None:
        with take_part(tmp_path) as (former, record):
            assert former is None
            record("a")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with take_part(tmp_path) as (former, record):
        assert former == "a"
        record("b")
    with take_part(tmp_path) as (former, _):
        assert former is None


def test_a_folder_that_cannot_be_written_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with take_part(tmp_path / "file") as (former, record):
        assert former is None
        record("a")
