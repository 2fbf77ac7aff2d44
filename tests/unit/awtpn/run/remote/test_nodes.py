"""Two nodes without a shared disk: each has its own folder, and both begin from the same checkpoint."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from remote_runs_support import QUICK, memory_url, save_checkpoint
from support import LIMIT

from awtpn.config.schema import Config
from awtpn.run import checkpoint
from awtpn.run.remote import checkpoints, files, lease
from awtpn.run.remote.records import RUN_FILE
from awtpn.run.remote.sending import UploadFailed
from awtpn.run.remote.session import RemoteRun, agree, on_this_host, remote_run


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("awtpn.run.remote.lease.TIMES", QUICK)
    monkeypatch.setattr("shards.storage.retry.FIRST_PAUSE_S", 0.001)
    with memory_url() as url:
        yield url


class Meeting:
    """Where the threads that act as ranks exchange objects."""

    def __init__(self, ranks: int) -> None:
        self.barrier, self.values = threading.Barrier(ranks), [None] * ranks

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait(LIMIT)
        found = list(self.values)
        self.barrier.wait(LIMIT)
        return found


@dataclass
class Rank:
    """What `remote_run` uses of `World`: one rank on each node."""

    rank: int
    meeting: Meeting
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def broadcast_object(self, value: Any) -> Any:
        return self.meeting.exchange(self.rank, value)[0]

    def all_gather_object(self, value: Any) -> list[Any]:
        return self.meeting.exchange(self.rank, value)


def on_nodes(url: str, folders: list[Path], act: Any) -> list[Any]:
    """What `act(remote, rank)` returns or raises on each of the nodes."""
    meeting = Meeting(len(folders))
    outcomes: list[Any] = [None] * len(folders)
    config = Config()
    config.run.dir = url

    def node(rank: int) -> None:
        world: Any = Rank(rank, meeting)
        try:
            with remote_run(config, folders[rank], world) as remote:
                outcomes[rank] = act(remote, world)
        except Exception as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=node, args=(rank,)) for rank in range(len(folders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    return outcomes


def test_every_node_gets_the_checkpoint_of_the_main_rank(url: str, tmp_path: Path) -> None:
    """It is newer in the main rank's folder than at the URL, and older on the other node."""
    main, other = tmp_path / "main", tmp_path / "other"
    store = files.open_remote(url)
    for folder in (main, other):
        folder.mkdir()
        agree(store, folder)
    save_checkpoint(other, 2)
    agree(store, other)
    newer = save_checkpoint(main, 4)
    outcomes = on_nodes(url, [main, other], lambda remote, world: (remote.url, remote.sender is None))
    assert outcomes == [(url, False), (url, True)]
    assert checkpoints.read_pointer(store).latest == "step-00000004"
    for path in newer.iterdir():
        assert path.read_bytes() == (other / "checkpoints" / newer.name / path.name).read_bytes()


def test_another_node_takes_over_from_a_lost_main_rank(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without waiting for the end of the lease: the node was in the job, which cannot go on without it."""
    first, second = tmp_path / "first", tmp_path / "second"
    store = files.open_remote(url)
    copy = tmp_path / "copy"

    def lose(remote: RemoteRun, world: Any) -> None:
        if world.is_main:
            save_checkpoint(first, 4)
            remote.send_checkpoint(first / "checkpoints")
        remote.wait_for_checkpoints(world)
        if world.is_main:  # as they are when a host dies; a copy, since a live thread could take them back
            shutil.copytree(second, copy)
        world.meeting.barrier.wait(LIMIT)
        raise RuntimeError("lost")

    # The first node's lease stays, as it does when its host dies.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("awtpn.run.remote.lease.release", lambda store, own: None)
        outcomes = on_nodes(url, [first, second], lose)
    assert all(isinstance(outcome, RuntimeError) for outcome in outcomes)
    assert lease.held_by(store, QUICK) is not None
    capsys.readouterr()
    assert on_nodes(url, [copy, tmp_path / "third"], lambda remote, world: remote.url) == [url, url]
    assert "may be in use" not in capsys.readouterr().out
    assert not list(tmp_path.glob("*.aside-*")), "it is the folder of this run"
    assert checkpoint.find_latest(copy / "checkpoints") == (copy / "checkpoints" / "step-00000004").resolve()
    assert lease.held_by(store, QUICK) is None


def test_a_node_whose_folder_is_of_another_run_moves_it_aside(url: str, tmp_path: Path) -> None:
    main, other = tmp_path / "main", tmp_path / "other"
    with memory_url() as another:
        other.mkdir()
        agree(files.open_remote(another), other)
        save_checkpoint(other, 9)
        assert on_nodes(url, [main, other], lambda remote, world: remote.url) == [url, url]
    [aside] = tmp_path.glob("other.aside-*")
    assert (aside / "checkpoints" / "step-00000009").is_dir()
    assert (other / RUN_FILE).read_bytes() == (main / RUN_FILE).read_bytes()


def test_a_node_that_cannot_fetch_stops_all(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, other = tmp_path / "main", tmp_path / "other"
    main.mkdir()
    save_checkpoint(main, 4)
    other.write_text("a file")
    outcomes = on_nodes(url, [main, other], lambda remote, world: None)
    assert all(isinstance(outcome, ValueError) and "other" in str(outcome) for outcome in outcomes)


def test_all_ranks_know_that_a_checkpoint_was_not_sent(url: str, tmp_path: Path) -> None:
    def act(remote: RemoteRun, world: Any) -> None:
        if remote.sender is not None:
            remote.sender.failure = "step-00000004 could not be sent"
        remote.wait_for_checkpoints(world)

    outcomes = on_nodes(url, [tmp_path / "main", tmp_path / "other"], act)
    for outcome in outcomes:
        assert isinstance(outcome, UploadFailed)
        assert "step-00000004 could not be sent; what is at memory://" in str(outcome)


def test_a_checkpoint_is_found_in_the_folder_of_this_host() -> None:
    main, here = Path("/main/run"), Path("/here/run")
    assert on_this_host(main / "checkpoints" / "step-00000001", main, here) == (
        here / "checkpoints" / "step-00000001"
    )
    assert on_this_host(Path("/other/step-00000001"), main, here) == Path("/other/step-00000001")
    assert on_this_host(None, main, here) is None
