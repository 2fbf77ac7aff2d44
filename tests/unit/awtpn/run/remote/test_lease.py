"""One job at a time at a URL: two starts at once, dead holders, and clocks that are wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from remote_runs_support import DYING, QUICK, Faulty, faulty, memory_url
from support import LIMIT

from awtpn.run.remote import files, lease
from awtpn.run.remote.heartbeat import keep_lease
from shards.storage.store import Store


@pytest.fixture
def url() -> Iterator[str]:
    with memory_url() as url:
        yield url


def holders(store: Store) -> list[str]:
    return [name.removeprefix(lease.HOLDER) for name in files.list_files(store, lease.FOLDER)]


def test_a_free_lease_is_taken_kept_and_given_back(url: str) -> None:
    store = files.open_remote(url)
    lease.acquire(store, "a", QUICK)
    assert holders(store) == ["a"]
    assert "trains there" in str(lease.held_by(store, QUICK))
    lease.check_held(store, "a", QUICK)
    lease.release(store, "a")
    assert lease.held_by(store, QUICK) is None
    assert files.list_files(store) == {}


def test_a_live_holder_refuses_another(url: str) -> None:
    store = files.open_remote(url)
    lease.acquire(store, "a", QUICK)
    with (
        keep_lease(lambda: files.open_remote(url), "a", QUICK) as heartbeat,
        pytest.raises(ValueError, match=rf"{url} is in use: process \d+ on \S+ trains there. Choose another"),
    ):
        lease.acquire(store, "b", QUICK)
    assert heartbeat.lost is None
    assert files.list_files(store) == {}


def test_a_dead_holder_is_waited_for_and_removed(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    store = files.open_remote(url)
    lease.acquire(store, "a", QUICK)
    lease.acquire(store, "b", DYING)
    assert holders(store) == ["b"]
    assert "may be in use" in capsys.readouterr().out
    with pytest.raises(lease.LeaseLost, match="another job has taken this run folder over"):
        lease.renew(store, "a", 1, QUICK)
    assert holders(store) == ["b"]


def test_the_former_holder_of_this_host_is_not_waited_for(url: str) -> None:
    store = files.open_remote(url)
    lease.acquire(store, "a", QUICK)
    lease.acquire(store, "b", QUICK, ended=["a"])
    assert holders(store) == ["b"]


def test_a_job_that_ended_loses_the_lease_though_its_main_rank_still_sends_heartbeats(url: str) -> None:
    """Its host is cut off from the others, but not from the store."""
    store = files.open_remote(url)
    lease.acquire(store, "a", QUICK)
    with keep_lease(lambda: files.open_remote(url), "a", QUICK) as heartbeat:
        lease.acquire(store, "b", QUICK, ended=["a"])
        deadline = time.monotonic() + LIMIT
        while heartbeat.lost is None and time.monotonic() < deadline:
            lease.renew(store, "b", 1, QUICK, ended=["a"])  # also if "a" wrote at the very moment
            time.sleep(0.01)
    assert heartbeat.lost is not None
    assert holders(store) == ["b"]


def test_a_job_that_ended_while_it_asked_for_the_lease_is_not_waited_for(url: str) -> None:
    store = files.open_remote(url)
    files.put_bytes(store, lease.CLAIM + "a", b"")
    lease.acquire(store, "b", QUICK, ended=["a", "c"])
    assert holders(store) == ["b"]


@pytest.mark.parametrize("round", range(3))
def test_of_two_starts_at_once_one_wins(url: str, round: int) -> None:
    together, ended = threading.Barrier(5), threading.Event()
    won: list[str] = []
    refused: list[str] = []

    def job(name: str) -> None:
        store = files.open_remote(url)
        together.wait(LIMIT)
        try:
            lease.acquire(store, name, QUICK)
        except ValueError as error:
            refused.append(str(error))
            return
        with keep_lease(lambda: files.open_remote(url), name, QUICK):
            won.append(name)
            ended.wait(LIMIT)

    threads = [threading.Thread(target=job, args=(f"{i:02}",)) for i in range(5)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + LIMIT
    while len(refused) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    ended.set()
    for thread in threads:
        thread.join(LIMIT)
    assert len(won) == 1, won
    assert len(refused) == 4


class Clock(Faulty):
    """A store whose clock is `skew` seconds ahead of this host's."""

    skew = 0.0

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        if name != "find":
            return found

        def find(path: str, **options: Any) -> Any:
            listed = found(path, **options)
            return {
                name: info | {"created": info["created"] + self.skew}
                for name, info in listed.items()
                if "created" in info
            }

        return find


@pytest.mark.parametrize("skew", [-600.0, 600.0])
def test_no_hosts_clock_is_read(url: str, skew: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's clock differs by ten minutes: a live holder is not taken for dead, nor the reverse."""
    plain = files.open_remote(url)
    clock = Clock(plain.fs)
    clock.skew = skew
    store = replace(plain, fs=clock)
    lease.acquire(store, "a", QUICK)
    with keep_lease(lambda: store, "a", QUICK), pytest.raises(ValueError, match="is in use"):
        lease.acquire(store, "b", QUICK)
    lease.acquire(store, "c", QUICK)
    lease.acquire(store, "d", DYING)  # "c" has no heartbeat
    assert holders(store) == ["d"]
    monkeypatch.setattr(time, "time", lambda: pytest.fail("a host's clock is read"))
    lease.check_held(store, "d", QUICK)


def test_a_slow_start_does_not_win_twice(url: str) -> None:
    """A holder's write that took longer than others wait is taken back, and the start begins anew."""
    store, fs = faulty(url)
    delays = iter([QUICK.settle_s])

    def delay(method: str, path: str) -> None:
        if method == "pipe_file" and lease.HOLDER in path:
            time.sleep(next(delays, 0.0))

    fs.fail = delay
    lease.acquire(store, "a", QUICK)
    assert fs.calls["rm_file"] >= 2  # the late holder, and the claim
    assert holders(store) == ["a"]


def test_two_holders_agree_which_of_them_stays(url: str) -> None:
    """One that slept between its check and its heartbeat comes back beside the one that took over."""
    store = files.open_remote(url)
    for name in ("a", "b"):
        files.put_bytes(store, lease.HOLDER + name, b"{}")
    lease.check_held(store, "a", QUICK)
    with pytest.raises(lease.LeaseLost):
        lease.check_held(store, "b", QUICK)


def test_an_unreachable_store_is_no_lost_lease(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.storage.retry.ATTEMPTS", 1)
    store, fs = faulty(url)
    lease.acquire(store, "a", QUICK)
    away = threading.Event()

    def fail(method: str, path: str) -> None:
        if not away.is_set():
            away.set()
            raise OSError("503 slow down")

    fs.fail = fail
    with keep_lease(lambda: store, "a", QUICK) as heartbeat:
        assert away.wait(LIMIT)
        before = fs.calls["pipe_file"]
        deadline = time.monotonic() + LIMIT
        while fs.calls["pipe_file"] == before and time.monotonic() < deadline:
            time.sleep(0.01)
    assert heartbeat.lost is None
