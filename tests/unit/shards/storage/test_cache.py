"""The cache: shared by processes, within its budget, and never taking a file from under anyone."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

import pytest
from cache_support import Fetches, cache_of, content, name
from support import REPO

from awtpn.config.settings import DataConfig
from awtpn.run.data import stream_source
from shards import FeatureStream
from shards.storage import file_lock
from shards.storage.cache import CacheFull, CacheUnwritable, open_cached, parse_bytes
from shards.storage.store import default_cache


def held(tmp_path: Path) -> set[int]:
    return {int(path.name[:16], 16) for path in tmp_path.rglob("*.tar")}


@pytest.mark.parametrize(
    ("size", "parsed"),
    [
        (0, 0),
        (12, 12),
        ("12", 12),
        ("200GB", 200 * 10**9),
        ("1.5 GiB", 3 << 29),
        ("10k", 10_000),
        ("2TiB", 2 << 40),
    ],
)
def test_sizes(size: int | str, parsed: int) -> None:
    assert parse_bytes(size) == parsed


@pytest.mark.parametrize("size", ["", "GB", "-3", "3 apples", "1e9", True, "5i"])
def test_no_sizes(size: int | str) -> None:
    with pytest.raises(ValueError, match="not a number of bytes; write"):
        parse_bytes(size)


def test_fetched_once_and_kept(tmp_path: Path) -> None:
    fetches = Fetches()
    for _ in range(2):
        with fetches.open(cache_of(tmp_path), 1) as file:
            assert file.read() == content(1, 100)
    assert fetches.asked == [1]
    assert not list(tmp_path.rglob("*.part"))


def test_longest_unused_goes_first(tmp_path: Path) -> None:
    fetches, cache = Fetches(), cache_of(tmp_path, 300)
    for i in (1, 2, 3, 1):
        fetches.open(cache, i).close()
        time.sleep(0.01)
    fetches.open(cache, 4).close()
    assert held(tmp_path) == {1, 3, 4}


def test_the_limit_is_over_all_datasets(tmp_path: Path) -> None:
    fetches = Fetches()
    for i, dataset in enumerate("abcd"):
        fetches.open(cache_of(tmp_path, 200, dataset), i).close()
        time.sleep(0.01)
    assert held(tmp_path) == {2, 3}


def test_open_files_stay(tmp_path: Path) -> None:
    fetches, cache = Fetches(), cache_of(tmp_path, 200)
    with fetches.open(cache, 1) as one, fetches.open(cache, 2):
        with pytest.raises(
            CacheFull, match=r"limit is 200 bytes, 200 of them in use .* set it to 300 or more"
        ):
            fetches.open(cache, 3)
        assert one.read() == content(1, 100)
    fetches.open(cache, 3).close()
    assert len(held(tmp_path)) == 2


def test_waits_for_room(tmp_path: Path) -> None:
    fetches, cache = Fetches(), cache_of(tmp_path, 100)
    one = fetches.open(cache, 1)
    threading.Timer(0.3, one.close).start()
    fetches.open(cache, 2, wait_s=10.0).close()
    assert held(tmp_path) == {2}


def test_a_failed_fetch_leaves_nothing(tmp_path: Path) -> None:
    def fetch(path: Path) -> None:
        path.write_bytes(b"part")
        raise OSError("died")

    with pytest.raises(OSError, match="died"):
        open_cached(cache_of(tmp_path), name(1), 100, fetch)
    assert not list((tmp_path / "d").iterdir())


def test_a_download_given_up_while_it_was_being_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its `.part` is no one's by then: who holds that must not fetch beside the next that makes one."""
    lock, others = file_lock.lock, [True]

    def lock_a_little_late(file: BinaryIO, **how: bool) -> None:
        if how == {"shared": False} and others:
            others.pop()
            next(tmp_path.rglob("*.part")).unlink()  # whose fetch failed
        lock(file, **how)

    def fetch(part: Path) -> None:
        with open(part, "r+b") as file:
            with pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(content(1, 100))

    monkeypatch.setattr(file_lock, "lock", lock_a_little_late)
    open_cached(cache_of(tmp_path), name(1), 100, fetch).close()
    assert not others


def test_a_damaged_file_is_fetched_again(tmp_path: Path) -> None:
    fetches, cache = Fetches(), cache_of(tmp_path)
    fetches.open(cache, 1).close()
    os.truncate(tmp_path / "d" / name(1), 7)
    with fetches.open(cache, 1) as file:
        assert len(file.read()) == 100


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.tex").write_bytes(bytes(1_000))
    Fetches().open(cache_of(tmp_path, 100), 1).close()
    assert (tmp_path / "d" / "thesis.tex").exists()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, how: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(
        OSError, match=r"lock: no locks on this file system; set cache_dir to one on a local disk"
    ):
        Fetches().open(cache_of(tmp_path), 1)


PROCESS = """
import random, sys, time
from pathlib import Path
from typing import BinaryIO
sys.path.insert(0, {tests!r})
from cache_support import Fetches, cache_of, content
fetches, rng = Fetches(0.002), random.Random(int(sys.argv[2]))
cache = cache_of(Path(sys.argv[1]), 500)
opened = []
for _ in range(int(sys.argv[3])):
    i = rng.randrange(12)
    opened.append((i, fetches.open(cache, i, wait_s=600.0)))
    time.sleep(0.002)
    while len(opened) > 1:
        i, file = opened.pop(0)
        # What was removed from under us would have no name any longer.
        assert Path(file.name).stat().st_ino == __import__("os").fstat(file.fileno()).st_ino
        assert file.read() == content(i, 100)
        file.close()
print(len(fetches.asked))
"""


def process(tmp_path: Path, seed: int, rounds: int) -> subprocess.Popen[str]:
    code = PROCESS.format(tests=str(REPO / "tests"))
    return subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), str(seed), str(rounds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_share_a_tight_budget(tmp_path: Path) -> None:
    """Two processes that hold up to two files each, and 500 bytes for them; one more is killed, and again."""
    workers = [process(tmp_path, seed, 150) for seed in range(2)]
    rng = random.Random(0)
    for seed in range(2):
        victim = process(tmp_path, 10 + seed, 10_000)
        deadline = time.monotonic() + 600
        while not list(tmp_path.rglob("*.tar")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3 + rng.random() / 2)
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
    most = 0
    while any(worker.poll() is None for worker in workers):
        most = max(most, len(held(tmp_path)))
        time.sleep(0.005)
    for worker in workers:
        _, errors = worker.communicate()
        assert worker.returncode == 0, errors
    assert most <= 5
    # What the killed ones left behind goes when room is needed.
    Fetches().open(cache_of(tmp_path, 100), 20).close()
    assert held(tmp_path) == {20}
    assert not list(tmp_path.rglob("*.part"))


# --- A cache that cannot be written --------------------------------------------------------------


def test_a_cache_that_cannot_be_written_is_named_with_what_moves_it(remote: str, tmp_path: Path) -> None:
    """As with a HOME that does not exist or belongs to another user."""
    told = "cache folder /dev/null/cache.* cannot be written .*cache_dir.*variable AWTPN_CACHE_DIR"
    stream = FeatureStream(remote, global_batch_size=4, cache_dir="/dev/null/cache", skip_damaged=True)
    with pytest.raises(CacheUnwritable, match=told):
        list(stream.epoch(0))
    with pytest.raises(CacheUnwritable, match=told):
        stream_source(DataConfig(cache_dir="/dev/null/cache"), "train")


@pytest.mark.parametrize(
    ("environment", "cache"),
    [
        ({"AWTPN_CACHE_DIR": "/scratch/cache"}, "/scratch/cache"),
        ({"AWTPN_CACHE_DIR": "", "HOME": "/home/me"}, "/home/me/.cache/awtpn-shards"),
        ({"HOME": "/home/me"}, "/home/me/.cache/awtpn-shards"),
    ],
)
def test_where_the_cache_is(environment: dict[str, str], cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWTPN_CACHE_DIR", raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert default_cache() == Path(cache)


def test_a_user_without_a_home_needs_no_cache_for_local_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("AWTPN_CACHE_DIR", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # nobody knows this user
    assert default_cache() == Path("/nonexistent/.cache/awtpn-shards")
