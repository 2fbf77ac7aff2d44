"""What commands do with the URL of a run: copies that are brought up to date, list, pull and delete."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from remote_runs_support import QUICK, contents, faulty, memory_url, save_checkpoint

from awtpn.model.files import CARD_FILE, STATE_FILE
from awtpn.run.remote import checkpoints, files, lease
from awtpn.run.remote.commands import (
    KNOWN_FILE,
    LOCK_FILE,
    UNUSED_DAYS,
    Listed,
    delete_run,
    fetch_run,
    list_runs,
    pull_run,
    read_status,
    run_folder,
    send_back,
)
from awtpn.run.remote.heartbeat import keep_lease
from awtpn.run.remote.records import RecordSender
from awtpn.run.remote.session import agree


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A finished run with two checkpoints, of which the first is the best."""
    monkeypatch.setenv("AWTPN_CACHE_DIR", str(tmp_path / "cache"))
    here = tmp_path / "here"
    with memory_url() as url:
        store = files.open_remote(url)
        here.mkdir()
        agree(store, here)
        for step in (1, 2):
            save_checkpoint(here, step, best=step == 1)
            agree(store, here)
        (here / "status.json").write_text('{"status": "done"}')
        (here / "metrics.jsonl").write_text('{"step": 1}\n')
        RecordSender(store, here).send_changed()
        yield url


def test_a_command_fetches_what_it_needs(url: str) -> None:
    folder = run_folder(url, "cards")
    assert (folder / "metrics.jsonl").read_text() == '{"step": 1}\n'
    best, latest = (folder / "checkpoints" / name for name in ("best", "latest"))
    assert {path.name for path in best.iterdir()} == {CARD_FILE, STATE_FILE}
    assert run_folder(url, "best") == folder
    assert (best.resolve().name, latest.exists()) == ("step-00000001", False)
    assert (best / "model.safetensors").is_file()
    run_folder(url, "checkpoints")
    assert latest.resolve().name == "step-00000002"
    assert run_folder(f"{url}/checkpoints/latest", "best").name == "step-00000002"
    assert run_folder(f"{url}/checkpoints/step-00000001", "best").name == "step-00000001"
    with pytest.raises(ValueError, match=r"no checkpoint 'step-00000009'; there are: step-00000001, step-0"):
        run_folder(f"{url}/checkpoints/step-00000009", "best")
    assert run_folder("/runs/one", "best") == Path("/runs/one")


def test_what_has_not_changed_is_not_fetched_again(url: str) -> None:
    store, fs = faulty(url)
    pointer = checkpoints.read_pointer(store)
    fetch_run(store, pointer, "checkpoints")
    fetched = fs.calls["get_file"]
    fetch_run(store, pointer, "checkpoints")
    assert fs.calls["get_file"] == fetched > 8


def test_a_copy_that_is_not_used_is_deleted(url: str, tmp_path: Path) -> None:
    copy = run_folder(url, "cards")
    training = tmp_path / "cache" / "0123456789abcdef.run" / "run" / KNOWN_FILE
    training.parent.mkdir(parents=True)
    training.touch()
    long_ago = time.time() - (UNUSED_DAYS + 1) * 24 * 3600
    with memory_url() as other:
        agree(files.open_remote(other), tmp_path / "other")
        run_folder(other, "cards")
        assert copy.is_dir()
        for file in (copy / KNOWN_FILE, training):
            os.utime(file, (long_ago, long_ago))
        with FileLock(copy / LOCK_FILE):
            run_folder(other, "cards")
            assert copy.is_dir(), "another command is using it"
        run_folder(other, "cards")
        assert not copy.parent.exists()
        assert training.exists()
        os.utime(run_folder(url, "cards") / KNOWN_FILE, (long_ago, long_ago))
        run_folder(url, "cards")
        run_folder(other, "cards")
        assert copy.is_dir(), "it was used"


def test_what_a_command_writes_goes_back(url: str, tmp_path: Path) -> None:
    page = run_folder(url, "cards") / "report.html"
    page.write_text("page")
    assert send_back(url, page) == f"{url}/report.html"
    assert contents(files.open_remote(url))["report.html"] == b"page"
    assert send_back(tmp_path, page) == str(page)


def test_runs_are_listed(url: str) -> None:
    done = Listed(url, "done", "step-00000002", "no job")
    assert list_runs(url) == [done]
    above = url.rpartition("/")[0]
    files.put_bytes(files.open_remote(above), "notes/x.txt", b"")
    assert list_runs(above) == [done]
    lease.acquire(files.open_remote(url), "a", QUICK)
    assert list_runs(url)[0].in_use == "in use"
    with pytest.raises(ValueError, match="is no run and contains none"):
        list_runs(f"{above}/notes")


def test_scripts_read_the_status_of_a_run(url: str, tmp_path: Path) -> None:
    assert read_status(url) == read_status(tmp_path / "here") == "done"
    with pytest.raises(ValueError, match=r"is not a run: it has no run\.json"):
        read_status(url.rpartition("/")[0])
    with pytest.raises(ValueError, match="is a checkpoint: give the run"):
        read_status(f"{url}/checkpoints/latest")
    with pytest.raises(ValueError, match=r"is not a run: it has no status\.json"):
        read_status(tmp_path)
    files.put_bytes(files.open_remote(url), "status.json", b"[]")
    with pytest.raises(ValueError, match="has no status yet"):
        read_status(url)


def test_a_run_is_pulled(url: str, tmp_path: Path) -> None:
    out = pull_run(url, tmp_path / "out")
    assert (out / "checkpoints" / "latest").resolve().name == "step-00000002"
    assert (out / "checkpoints" / "best").resolve().name == "step-00000001"
    assert (out / "run.json").is_file()
    with pytest.raises(ValueError, match="exists already"):
        pull_run(url, tmp_path / "out")
    one = pull_run(url, tmp_path / "one", ["step-00000001"])
    assert [path.name for path in (one / "checkpoints").iterdir()] == ["step-00000001"]
    with pytest.raises(ValueError, match=r"is not a run: it has no run\.json"):
        pull_run(f"{url}/checkpoints", tmp_path / "two")


def test_only_runs_without_a_job_are_deleted(url: str) -> None:
    store = files.open_remote(url)
    files.put_bytes(store, "notes.txt", b"of the user")
    files.put_bytes(store, "checkpoints/mine/x", b"of the user")
    before = contents(store)
    for place in (f"{url}/checkpoints", url.rpartition("/")[0]):
        with pytest.raises(ValueError, match="is not a run"):
            delete_run(place)
    with pytest.raises(ValueError, match="is a checkpoint: runs are deleted whole"):
        delete_run(f"{url}/checkpoints/latest")
    lease.acquire(store, "a", QUICK)
    with (
        keep_lease(lambda: files.open_remote(url), "a", QUICK),
        pytest.raises(ValueError, match=f"{url} is in use: process"),
    ):
        delete_run(url, times=QUICK)
    assert contents(store) == before
    number, others = delete_run(url, times=QUICK)
    assert (number, others) == (len(before) - 2, ["checkpoints/mine/x", "notes.txt"])
    assert set(files.list_files(store)) == set(others)


def test_commands_at_once_share_one_copy(url: str) -> None:
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(run_folder(url, "checkpoints"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert not list(found[0].rglob("*.part"))
