"""Locks on open files: exclusive or shared, gone with the last process that has the file open."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shards.storage import file_lock
from shards.storage.file_lock import NoFileLocks, open_locked

CREATE = os.O_RDWR | os.O_CREAT


def test_an_exclusive_lock_keeps_all_others_out(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with open_locked(path, CREATE) as file:
        file.write(b"content")
        for shared in (False, True):
            with pytest.raises(BlockingIOError):
                open_locked(path, shared=shared)
    with open_locked(path) as file:
        assert file.read() == b"content"


def test_shared_locks_of_a_read_only_file_keep_exclusive_ones_out(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"")
    path.chmod(0o400)
    with (
        open_locked(path, os.O_RDONLY, shared=True),
        open_locked(path, os.O_RDONLY, shared=True),
        pytest.raises(BlockingIOError),
    ):
        open_locked(path, os.O_RDONLY)
    open_locked(path, os.O_RDONLY).close()


def test_a_lock_lives_as_long_as_a_child_that_inherited_it(tmp_path: Path) -> None:
    with open_locked(tmp_path / "a", CREATE) as file:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, pass_fds=(file.fileno(),))
    with pytest.raises(BlockingIOError):
        open_locked(tmp_path / "a")
    child.send_signal(signal.SIGKILL)
    child.communicate()
    open_locked(tmp_path / "a").close()


def test_a_file_that_its_owner_removed_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else two processes would hold the lock of one name."""
    lock, removed = file_lock.lock, []

    def lock_too_late(file: object, **how: bool) -> None:
        if not removed:
            removed.append((tmp_path / "a").unlink())
        lock(file, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(file_lock, "lock", lock_too_late)
    with open_locked(tmp_path / "a", CREATE) as file:
        assert os.path.samestat(os.fstat(file.fileno()), (tmp_path / "a").stat())
    (tmp_path / "a").unlink()
    with pytest.raises(FileNotFoundError):
        open_locked(tmp_path / "a")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EIO])
def test_a_file_system_without_locks_is_told_from_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(file: object, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OSError, match=os.strerror(number) if number == errno.EIO else "no locks") as error:
        open_locked(tmp_path / "a", CREATE)
    assert isinstance(error.value, NoFileLocks) == (number != errno.EIO)
