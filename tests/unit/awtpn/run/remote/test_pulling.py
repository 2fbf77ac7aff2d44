"""Which of a local folder and a URL is right, and what a start does with both."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from remote_runs_support import DYING, QUICK, contents, memory_url, save_checkpoint

from awtpn.run.remote import checkpoints, files, lease
from awtpn.run.remote.pulling import Side, decide
from awtpn.run.remote.session import HOLDER_FILE, agree, begin


@pytest.fixture
def url() -> Iterator[str]:
    with memory_url() as url:
        yield url


@pytest.mark.parametrize(
    ("at_url", "local", "expected"),
    [
        (Side(None, -1, True), Side(None, -1, True), ("new", False)),
        (Side(None, -1, True), Side(None, 5, False), ("new", False)),  # a run that was local so far
        (Side(None, -1, True), Side("a", 5, False), ("new", True)),  # its URL was deleted
        (Side("a", 3, False), Side(None, -1, True), ("url", False)),  # another machine
        (Side("a", 3, False), Side(None, 9, False), ("url", True)),
        (Side("a", 3, False), Side("b", 9, False), ("url", True)),
        (Side("a", 3, False), Side("a", 2, False), ("url", False)),
        (Side("a", 3, False), Side("a", 3, False), ("url", False)),
        (Side("a", 3, False), Side("a", 4, False), ("local", False)),
        (Side("a", -1, False), Side("a", -1, False), ("url", False)),
        (Side("a", -1, False), Side("a", 0, False), ("local", False)),
    ],
)
def test_the_rule(at_url: Side, local: Side, expected: tuple[str, bool]) -> None:
    assert decide(at_url, local) == expected


def test_a_new_run_and_an_empty_machine_that_goes_on(url: str, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    store = files.open_remote(url)
    one.mkdir()
    assert agree(store, one)[0].latest is None
    save_checkpoint(one, 3)
    assert agree(store, one)[0].latest == "step-00000003"
    other.mkdir()
    assert agree(store, other)[0].latest == "step-00000003"
    assert (other / "run.json").read_bytes() == (one / "run.json").read_bytes()
    ours, theirs = (side / "checkpoints" / "latest" / "model.safetensors" for side in (one, other))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_newer_local_checkpoint_is_sent_and_an_older_one_is_not(url: str, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    store = files.open_remote(url)
    for folder in (one, other):
        folder.mkdir()
        agree(store, folder)
    save_checkpoint(one, 3)
    save_checkpoint(other, 5, best=False)
    assert agree(store, one)[0].latest == "step-00000003"
    assert agree(store, other)[0].latest == "step-00000005"
    assert agree(store, one)[0].latest == "step-00000005"
    assert (one / "checkpoints" / "latest").resolve().name == "step-00000005"


def test_a_damaged_local_checkpoint_does_not_win(url: str, tmp_path: Path) -> None:
    store = files.open_remote(url)
    agree(store, tmp_path)
    save_checkpoint(tmp_path, 3)
    agree(store, tmp_path)
    (save_checkpoint(tmp_path, 5) / "model.safetensors").write_bytes(b"half")
    assert agree(store, tmp_path)[0].latest == "step-00000003"
    assert (tmp_path / "checkpoints" / "latest").resolve().name == "step-00000003"


def test_a_folder_of_another_run_is_moved_aside(url: str, tmp_path: Path) -> None:
    store, folder = files.open_remote(url), tmp_path / "run"
    with memory_url() as former:
        folder.mkdir()
        agree(files.open_remote(former), folder)
        save_checkpoint(folder, 9)
        agree(files.open_remote(former), folder)
        assert agree(store, folder)[0].latest is None
    [aside] = tmp_path.glob("run.aside-*")
    assert (aside / "checkpoints" / "step-00000009").is_dir()
    assert not (folder / "checkpoints").exists()


def test_a_local_run_becomes_that_of_an_empty_url(url: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 4)
    assert agree(files.open_remote(url), tmp_path)[0].latest == "step-00000004"


def test_a_url_with_something_else_is_refused(url: str, tmp_path: Path) -> None:
    store = files.open_remote(url)
    files.put_bytes(store, "manifest.json", b"{}")
    with pytest.raises(ValueError, match=r"holds 'manifest.json', but no run \(run.json\): choose another"):
        agree(store, tmp_path)
    assert set(contents(store)) == {"manifest.json"}


def test_killed_between_upload_and_pointer(url: str, tmp_path: Path) -> None:
    """The next start here sends the checkpoint again; a start elsewhere goes on from the one before."""
    store, here, there = files.open_remote(url), tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        agree(store, folder)
    save_checkpoint(here, 3)
    agree(store, here)
    later = save_checkpoint(here, 5)
    checkpoints.send_files(store, later.name, later)
    assert agree(store, there)[0].latest == "step-00000003"
    assert not [name for name in contents(store) if "step-00000005" in name]
    assert agree(store, here)[0].latest == "step-00000005"


def test_a_killed_job_of_this_host_is_not_waited_for(url: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        first, _ = begin(lambda: files.open_remote(url), tmp_path, 600.0, stack, QUICK)
        assert first.heartbeat is not None
        first.heartbeat.ended.set()
        killed = (tmp_path / HOLDER_FILE).read_text()
        assert killed in str(files.list_files(files.open_remote(url), lease.FOLDER))
        with contextlib.ExitStack() as again:
            second, _ = begin(lambda: files.open_remote(url), tmp_path, 600.0, again, QUICK)
            assert (tmp_path / HOLDER_FILE).read_text() != killed
            assert killed not in str(files.list_files(files.open_remote(url), lease.FOLDER))
            assert second.failure is None


def test_the_lease_is_given_back(url: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        begin(lambda: files.open_remote(url), tmp_path, 600.0, stack, DYING)
    assert files.list_files(files.open_remote(url), lease.FOLDER) == {}
