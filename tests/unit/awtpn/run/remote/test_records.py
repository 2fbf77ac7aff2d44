"""Small files of a run at its URL: what is sent, in which order, and how often."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from remote_runs_support import contents, faulty, memory_url

from awtpn.run.remote import files
from awtpn.run.remote.pulling import pull_records
from awtpn.run.remote.records import RecordSender, is_record


@pytest.fixture
def url() -> Iterator[str]:
    with memory_url() as url:
        yield url


def fill(folder: Path) -> None:
    (folder / "tensorboard").mkdir(parents=True)
    (folder / "tensorboard" / "events.out.tfevents.1").write_bytes(b"events")
    (folder / "config.yaml").write_text("run: {}\n")
    (folder / "status.json").write_text('{"status": "running"}\n')
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    (folder / ".lock").write_text("host 1\n")
    (folder / "checkpoints" / "step-00000001").mkdir(parents=True)
    (folder / "checkpoints" / "step-00000001" / "model.safetensors").write_bytes(b"weights")
    (folder / "notes.txt").write_text("mine")


def test_records_are_sent_once_and_again_when_they_change(url: str, tmp_path: Path) -> None:
    fill(tmp_path)
    store, fs = faulty(url)
    sender = RecordSender(store, tmp_path)
    order: list[str] = []
    fs.fail = lambda method, path: order.append(path.rpartition("/run/")[2])
    sender.send_changed()
    found = contents(store)
    assert set(found) == {"config.yaml", "status.json", "metrics.jsonl", "tensorboard/events.out.tfevents.1"}
    sender.send_changed()
    assert fs.calls["pipe_file"] == 4
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2}\n{"ste')  # a line that is being written
    (tmp_path / "status.json").write_text('{"status": "done"}\n')
    order.clear()
    sender.send_changed()
    assert order == ["metrics.jsonl", "status.json"]  # "done" comes last
    assert contents(store)["metrics.jsonl"] == b'{"step": 1}\n{"step": 2}\n'


def test_records_that_the_run_removes_go_at_the_url_too(url: str, tmp_path: Path) -> None:
    fill(tmp_path)
    store = files.open_remote(url)
    files.put_bytes(store, "results.json", b"{}")
    files.put_bytes(store, "notes.txt", b"of the user")
    sender = RecordSender(store, tmp_path, at_url=files.list_files(store))
    sender.send_changed()
    assert "results.json" not in contents(store)
    assert contents(store)["notes.txt"] == b"of the user"


def test_long_metrics_are_sent_in_parts(url: str, tmp_path: Path) -> None:
    lines = [json.dumps({"step": i, "loss": 0.5}) + "\n" for i in range(100)]
    path, copy = tmp_path / "run" / "metrics.jsonl", tmp_path / "copy"
    path.parent.mkdir()
    store, fs = faulty(url)
    sender = RecordSender(store, path.parent, part_bytes=500)
    for i, line in enumerate(lines):
        with path.open("a") as file:
            file.write(line)
        if i % 7 == 0:
            sender.send_changed()
    sender.send_changed()
    parts = contents(store)
    assert len(parts) == 6
    assert all(len(content) <= 500 and content.endswith(b"\n") for content in parts.values())
    assert b"".join(parts[name] for name in sorted(parts, key=lambda n: (len(n), n))) == path.read_bytes()
    pull_records(store, copy)
    assert (copy / "metrics.jsonl").read_bytes() == path.read_bytes()
    # Only the last part is sent again.
    calls = fs.calls["pipe_file"]
    with path.open("a") as file:
        file.write(lines[0])
    sender.send_changed()
    assert fs.calls["pipe_file"] == calls + 1
    # The run is set back to an earlier step, which replaces the file.
    (tmp_path / "new").write_text("".join(lines[:10]))
    (tmp_path / "new").replace(path)
    sender.send_changed()
    assert contents(store) == {"metrics.jsonl": path.read_bytes()}


def test_what_was_fetched_is_not_sent_back(url: str, tmp_path: Path) -> None:
    here, copy = tmp_path / "here", tmp_path / "copy"
    fill(here)
    with (here / "metrics.jsonl").open("a") as file:
        file.writelines(f'{{"step": {i}}}\n' for i in range(2, 50))
    store, fs = faulty(url)
    RecordSender(store, here, part_bytes=200).send_changed()
    pull_records(store, copy)
    sender = RecordSender(store, copy, files.list_files(store), part_bytes=200)
    sender.assume_sent()
    before = fs.calls["pipe_file"]
    sender.send_changed()
    assert fs.calls["pipe_file"] == before
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50}\n')
    sender.send_changed()
    assert fs.calls["pipe_file"] == before + 1


def test_another_process_goes_on_with_the_parts(url: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {i}}}\n' for i in range(100)))
    store = files.open_remote(url)
    RecordSender(store, tmp_path, part_bytes=200).send_changed()
    path.write_text(path.read_text()[:400] + "\n")
    RecordSender(store, tmp_path, files.list_files(store), part_bytes=200).send_changed()
    copy = tmp_path / "copy"
    pull_records(store, copy)
    assert (copy / "metrics.jsonl").read_bytes() == path.read_bytes()


def test_a_pull_fetches_what_changed_and_removes_what_is_gone(url: str, tmp_path: Path) -> None:
    here, copy = tmp_path / "here", tmp_path / "copy"
    fill(here)
    store, fs = faulty(url)
    sender = RecordSender(store, here)
    sender.send_changed()
    known = pull_records(store, copy)
    assert (copy / "tensorboard" / "events.out.tfevents.1").read_bytes() == b"events"
    fetched = fs.calls["get_file"] + fs.calls["cat_file"]
    (here / "config.yaml").unlink()
    (here / "status.json").write_text('{"status": "done"}\n')
    (copy / "results.json").write_text("{}")  # of another state
    (copy / "mine.txt").write_text("")
    sender.send_changed()
    pull_records(store, copy, known)
    assert fs.calls["get_file"] + fs.calls["cat_file"] == fetched + 1
    assert not (copy / "config.yaml").exists()
    assert not (copy / "results.json").exists()
    assert (copy / "mine.txt").exists()


@pytest.mark.parametrize(
    "name",
    [
        *("../config.yaml", "tensorboard/../../x", "/etc/passwd", ".lock", "tensorboard/.hidden"),
        *("checkpoints/latest.json", "config.yaml/x", "tensorboard//x", "tensorboard\\..\\x"),
    ],
)
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    assert not is_record(name)
