"""A hang ends the process, with its stacks somewhere, even where the disk fails or hangs, too."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import LIMIT

from awtpn.distributed import watchdog
from awtpn.distributed.watchdog import EXIT_CODE, STDERR, Watchdog


def nothing() -> None:
    pass


def full_disk() -> None:
    raise OSError(28, "No space left on device")


def hang(stacks: Path, on_hang: Callable[[], None], stderr: Path) -> int:
    """Hang in a process of its own; its exit code."""
    if (child := os.fork()) == 0:
        os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT), STDERR)
        watchdog.GRACE_S = 1.0
        Watchdog(0.1, stacks, on_hang)
        time.sleep(LIMIT)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("on_hang", [nothing, full_disk])
def test_stacks_are_left_behind(tmp_path: Path, on_hang: Callable[[], None]) -> None:
    assert hang(tmp_path / "stacks" / "rank-0.txt", on_hang, tmp_path / "stderr") == EXIT_CODE
    assert "in hang" in (tmp_path / "stacks" / "rank-0.txt").read_text()


def test_stacks_that_cannot_be_written_go_to_stderr(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert hang(tmp_path / "file" / "rank-0.txt", nothing, tmp_path / "stderr") == EXIT_CODE
    assert "in hang" in (tmp_path / "stderr").read_text()


def test_a_disk_that_hangs_does_not_keep_the_process(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "stacks")  # which nobody reads: to open it takes for ever
    assert hang(tmp_path / "stacks", nothing, tmp_path / "stderr") != 0
    assert "in hang" in (tmp_path / "stderr").read_text()
