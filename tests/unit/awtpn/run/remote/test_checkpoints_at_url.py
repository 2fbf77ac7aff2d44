"""Checkpoints at a URL are whole or not there, whatever fails while they are sent."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from remote_runs_support import contents, faulty, memory_url, save_checkpoint
from support import LIMIT

from awtpn.model.files import WEIGHTS_FILE
from awtpn.run.remote import checkpoints, files, pulling
from awtpn.run.remote.checkpoints import LATEST, Pointer, parse_pointer
from awtpn.run.remote.lease import LeaseLost
from awtpn.run.remote.records import RecordSender
from awtpn.run.remote.sending import STAGING, Sender
from awtpn.run.remote.session import agree
from shards.storage.store import Store


@pytest.fixture
def url() -> Iterator[str]:
    with memory_url() as url:
        yield url


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.storage.retry.FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("shards.storage.retry.ATTEMPTS", 2)


def sender_of(
    store: Store, folder: Path, check: Callable[[Store], None] = lambda store: None, every_s: float = 600
) -> Sender:
    sender = Sender(RecordSender(store, folder), Pointer(), every_s, check, pause_s=0.001)
    sender.start()
    return sender


def send(sender: Sender, folder: Path, step: int, best: int, kept: list[int]) -> None:
    path = save_checkpoint(folder, step, best=step == best)
    sender.add_checkpoint(path, f"step-{best:08}", [f"step-{n:08}" for n in kept])


def named(store: Store) -> list[str]:
    return [entry.name for entry in checkpoints.read_pointer(store).entries]


def test_latest_is_moved_when_all_files_are_there(url: str, tmp_path: Path) -> None:
    store, fs = faulty(url)
    order: list[str] = []
    deleted: list[str] = []

    def note(method: str, path: str) -> None:
        if method in ("put_file", "pipe_file"):
            order.append(path.rpartition("/")[2])
        elif method == "rm_file":
            assert order[-1] == "latest.json"
            deleted.append(path.split("/")[-2][:13])

    fs.fail = note
    sender = sender_of(store, tmp_path)
    send(sender, tmp_path, 1, 1, [1])
    assert sender.wait(LIMIT) is None
    assert order[-2:] == ["manifest.json", "latest.json"]
    assert set(order[:-2]) == {path.name for path in (tmp_path / "checkpoints" / "latest").iterdir()}
    send(sender, tmp_path, 2, 1, [1, 2])
    assert sender.wait(LIMIT) is None
    send(sender, tmp_path, 3, 1, [1, 3])
    assert sender.wait(LIMIT) is None
    sender.close(LIMIT)
    # The old one is deleted only after the new one is named.
    assert deleted == 5 * ["step-00000002"]
    assert named(store) == ["step-00000001", "step-00000003"]
    pointer = checkpoints.read_pointer(store)
    assert (pointer.latest, pointer.best) == ("step-00000003", "step-00000001")
    assert not any((tmp_path / STAGING).iterdir())


def test_what_was_sent_comes_back_as_it_was(url: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    store = files.open_remote(url)
    sender = sender_of(store, here)
    send(sender, here, 1, 1, [1])
    send(sender, here, 2, 1, [1, 2])
    assert sender.wait(LIMIT) is None
    sender.close(LIMIT)
    pulling.pull_checkpoints(store, there, checkpoints.read_pointer(store))
    for name in ("latest", "best"):
        ours, theirs = (side / "checkpoints" / name for side in (here, there))
        assert ours.resolve().name == theirs.resolve().name
        for path in ours.iterdir():
            assert path.read_bytes() == (theirs / path.name).read_bytes()


def test_the_run_may_replace_and_remove_what_is_being_sent(url: str, tmp_path: Path) -> None:
    store, fs = faulty(url)
    amid, go_on = threading.Event(), threading.Event()

    def pause(method: str, path: str) -> None:
        if method == "put_file" and path.endswith("model.safetensors"):
            amid.set()
            go_on.wait(LIMIT)

    sender = sender_of(store, tmp_path)
    path = save_checkpoint(tmp_path, 1)
    before = (path / WEIGHTS_FILE).read_bytes()
    fs.fail = pause
    sender.add_checkpoint(path, path.name, [path.name])
    assert amid.wait(LIMIT)
    shutil.rmtree(path)
    go_on.set()
    assert sender.wait(LIMIT) is None
    entry = checkpoints.read_pointer(store).entries[0]
    assert contents(store)[f"checkpoints/{entry.folder}/{WEIGHTS_FILE}"] == before


def test_the_same_step_saved_again_replaces_it(url: str, tmp_path: Path) -> None:
    """As a run that was stopped at its last step does; the old one stays until the new one is named."""
    store, fs = faulty(url)
    sender = sender_of(store, tmp_path)
    send(sender, tmp_path, 1, 1, [1])
    assert sender.wait(LIMIT) is None
    old = checkpoints.read_pointer(store).entries[0]

    def check(method: str, path: str) -> None:
        if method == "put_file":
            assert checkpoints.read_manifest(files.open_remote(url), old)

    fs.fail = check
    path = save_checkpoint(tmp_path, 1, value=7.0)
    sender.add_checkpoint(path, path.name, [path.name])
    assert sender.wait(LIMIT) is None
    [entry] = checkpoints.read_pointer(store).entries
    assert (entry.name, entry.folder != old.folder) == (old.name, True)
    assert not [name for name in contents(store) if old.folder in name]


def test_checkpoints_between_are_left_out_but_the_best(url: str, tmp_path: Path) -> None:
    store, fs = faulty(url)
    amid, go_on = threading.Event(), threading.Event()
    sent: list[str] = []

    def pause(method: str, path: str) -> None:
        if method == "put_file" and path.endswith("checkpoint.json"):
            sent.append(path.split("/")[-2][:13])
            amid.set()
            go_on.wait(LIMIT)

    fs.fail = pause
    sender = sender_of(store, tmp_path)
    send(sender, tmp_path, 1, 1, [1])
    assert amid.wait(LIMIT)
    send(sender, tmp_path, 2, 2, [1, 2])
    send(sender, tmp_path, 3, 2, [2, 3])
    send(sender, tmp_path, 4, 2, [2, 3, 4])
    go_on.set()
    assert sender.wait(LIMIT) is None
    assert sent == ["step-00000001", "step-00000002", "step-00000004"]
    assert named(store) == ["step-00000002", "step-00000004"]


# --- Faults --------------------------------------------------------------------------------------


def test_a_failed_upload_is_tried_again_without_what_arrived(url: str, tmp_path: Path) -> None:
    store, fs = faulty(url)
    failures = iter(range(3))

    def fail(method: str, path: str) -> None:
        if (
            method == "put_file"
            and path.endswith("optimizer.safetensors")
            and next(failures, None) is not None
        ):
            raise OSError("503 slow down")

    fs.fail = fail
    sender = sender_of(store, tmp_path)
    send(sender, tmp_path, 1, 1, [1])
    assert sender.wait(LIMIT) is None
    assert named(store) == ["step-00000001"]
    assert fs.calls["put_file"] == 4 + 3


@pytest.mark.parametrize(
    "error", [OSError("503 slow down"), PermissionError("403 forbidden"), RuntimeError("?")]
)
def test_a_store_that_stays_away_changes_nothing(url: str, tmp_path: Path, error: Exception) -> None:
    store, fs = faulty(url)
    sender = sender_of(store, tmp_path)
    send(sender, tmp_path, 1, 1, [1])
    assert sender.wait(LIMIT) is None
    before = contents(store)

    def fail(method: str, path: str) -> None:
        if method == "put_file":
            raise error

    fs.fail = fail
    send(sender, tmp_path, 2, 2, [1, 2])
    failure = sender.wait(LIMIT)
    assert failure is not None
    assert failure.startswith("step-00000002 could not be sent to the URL of the run: ")
    assert sender.failure == failure
    fs.fail = lambda method, path: None
    send(sender, tmp_path, 3, 2, [1, 2, 3])  # the run ends, and saves once more: nothing is sent
    sender.close(LIMIT)
    assert {n: c for n, c in contents(store).items() if n.startswith("checkpoints/step-00000001")} | {
        LATEST: before[LATEST]
    } == before


def test_records_that_cannot_be_sent_only_warn(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, fs = faulty(url)
    refused = threading.Event()

    def fail(method: str, path: str) -> None:
        if method == "pipe_file" and not refused.is_set():
            refused.set()
            raise PermissionError("403 forbidden")

    fs.fail = fail
    (tmp_path / "status.json").write_text("{}")
    sender = sender_of(store, tmp_path, every_s=0.01)
    deadline = time.monotonic() + LIMIT
    while "status.json" not in contents(files.open_remote(url)) and time.monotonic() < deadline:
        time.sleep(0.01)
    sender.close(LIMIT)
    assert sender.failure is None
    assert contents(store)["status.json"] == b"{}"
    assert capsys.readouterr().out.count("warning: records of the run were not sent") == 1


def test_a_job_without_the_lease_moves_nothing(url: str, tmp_path: Path) -> None:
    def lost(store: Store) -> None:
        raise LeaseLost("another job has taken this run folder over")

    store = files.open_remote(url)
    sender = sender_of(store, tmp_path, lost)
    send(sender, tmp_path, 1, 1, [1])
    assert sender.wait(LIMIT) == "another job has taken this run folder over"
    sender.close(LIMIT)
    assert checkpoints.read_pointer(store) == Pointer()


def test_an_upload_that_takes_too_long_is_named(url: str, tmp_path: Path) -> None:
    store, fs = faulty(url)
    go_on = threading.Event()
    fs.fail = lambda method, path: go_on.wait(LIMIT) if method == "put_file" else None  # type: ignore[assignment,return-value]
    sender = sender_of(store, tmp_path)
    send(sender, tmp_path, 1, 1, [1])
    assert sender.wait(0.01) == "step-00000001 could not be sent within 0 s"
    go_on.set()
    sender.close(LIMIT)


def test_a_store_that_does_not_find_what_it_lists(url: str, tmp_path: Path) -> None:
    """As Swift after a restart: the checkpoints there must not be taken for unnamed ones, and deleted."""
    store, fs = faulty(url)
    path = save_checkpoint(tmp_path / "here", 1)
    agree(files.open_remote(url), tmp_path / "here")
    missed: list[str] = []

    def miss(method: str, path: str) -> None:
        if method in ("cat_file", "get_file") and path not in missed:
            missed.append(path)
            raise FileNotFoundError(path)

    with_run = contents(files.open_remote(url))
    fs.fail = miss
    pointer, _ = agree(store, tmp_path / "there")
    assert (pointer.latest, len(missed) > 5) == (path.name, True)
    assert contents(files.open_remote(url)) == with_run


def test_what_a_killed_job_left_is_deleted(url: str, tmp_path: Path) -> None:
    """Killed amid an upload, and between the upload and the pointer."""
    store = files.open_remote(url)
    whole = save_checkpoint(tmp_path, 1)
    pointer = checkpoints.with_entry(
        Pointer(), checkpoints.send_files(store, whole.name, whole), whole.name, [whole.name]
    )
    checkpoints.write_pointer(store, pointer)
    later = save_checkpoint(tmp_path, 2)
    checkpoints.send_files(store, later.name, later)  # whole, but not named
    files.put_bytes(store, "checkpoints/step-00000003.0123abcd/model.safetensors", b"half")
    left = checkpoints.delete_unnamed(store, pointer)
    assert [name[:13] for name in left] == ["step-00000002", "step-00000003"]
    assert {name.split("/")[1] for name in contents(store)} == {"latest.json", pointer.entries[0].folder}


@pytest.mark.parametrize("damage", ["gone", "short", "other", "no manifest", "other manifest"])
def test_a_damaged_checkpoint_is_named_and_never_used(
    url: str, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the pointer is older or newer than the files."""
    monkeypatch.setattr("shards.storage.retry.CONTENT_ATTEMPTS", 1)
    store = files.open_remote(url)
    path = save_checkpoint(tmp_path / "here", 1)
    entry = checkpoints.send_files(store, path.name, path)
    name = f"checkpoints/{entry.folder}/{WEIGHTS_FILE}"
    content = files.read_bytes(store, name) or b""
    if damage == "gone":
        files.delete(store, [name])
    elif damage == "short":
        files.put_bytes(store, name, content[:-1])
    elif damage == "other":
        files.put_bytes(store, name, content[:-1] + b"?")
    elif damage == "no manifest":
        files.delete(store, [name := f"checkpoints/{entry.folder}/manifest.json"])
    else:
        files.put_bytes(store, name := f"checkpoints/{entry.folder}/manifest.json", b"{}")
    with pytest.raises(ValueError, match=f"{url}/{name}"):
        checkpoints.fetch(store, entry, tmp_path / "there")
    assert not list((tmp_path / "there").glob("*"))


@pytest.mark.parametrize(
    "change",
    [
        {"latest": "step-00000009"},
        {"best": "../x"},
        {"checkpoints": [{"name": "../../x", "folder": "../../x.0123abcd", "manifest": "0" * 64}]},
        {"checkpoints": [{"name": "step-00000001", "folder": "step-00000001.zz", "manifest": "0" * 64}]},
        {"checkpoints": None},
        {"format_version": 2},
    ],
)
def test_a_pointer_of_others_is_checked(change: dict[str, object]) -> None:
    good = {"format_version": 1, "latest": None, "best": None, "checkpoints": []}
    parse_pointer(json.dumps(good).encode(), "at")
    with pytest.raises(ValueError, match=r"^at: "):
        parse_pointer(json.dumps(good | change).encode(), "at")
