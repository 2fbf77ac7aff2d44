"""Trainings whose run folder is a URL, in this process: resumed elsewhere, with a failing store, in use."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from remote_runs_support import (
    QUICK,
    Faulty,
    contents,
    faulty,
    memory_url,
    save_checkpoint,
    send_and_wait,
    send_checkpoint,
)
from support import (
    LIMIT,
    arguments,
    assert_same_run,
    metrics,
    pack_corpus,
    same_bits_or_close,
    status,
    weights,
)

from awtpn.config.settings import RunConfig
from awtpn.run.remote import checkpoints, files, lease
from awtpn.run.remote.checkpoints import Pointer
from awtpn.run.remote.heartbeat import keep_lease
from awtpn.run.remote.records import RecordSender
from awtpn.run.remote.sending import Sender, UploadFailed
from awtpn.run.remote.session import RemoteRun
from awtpn.training import trainer

SETTINGS = {
    "model.shared_dim": 8,
    "train.global_batch_size": 16,
    "train.epochs": 2,
    "train.pictures": "never",
    "train.checkpoint_every": 2,
    "train.threads": 1,
    "model.dropout": 0.0,
    # As long as the run is: else a shorter one has other learning rates.
    "optim.schedule": "constant",
    "optim.warmup_steps": 0,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pack_corpus(tmp_path_factory.mktemp("corpus") / "data")


@pytest.fixture
def url(no_accelerator: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("awtpn.run.remote.lease.TIMES", QUICK)
    monkeypatch.setattr("shards.storage.retry.FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("shards.storage.retry.ATTEMPTS", 2)
    monkeypatch.setattr(RemoteRun, "send_checkpoint", send_and_wait)
    with memory_url() as url:
        yield url


def train(corpus: str, url: str, local: Path, **changes: Any) -> dict[str, Any]:
    settings = SETTINGS | {"data.train": corpus, "run.dir": url, "run.upload_every": 1} | changes
    if "://" in url:
        settings |= {"run.local_dir": str(local)}
    return trainer.main(arguments(settings))


def test_a_run_goes_on_on_another_machine(corpus: str, url: str, tmp_path: Path) -> None:
    """After 3 of 8 steps: the same run as a local one, to the bit."""
    train(corpus, str(tmp_path / "local"), tmp_path)
    train(corpus, url, tmp_path / "one", **{"train.max_steps": 3})
    store = files.open_remote(url)
    assert checkpoints.read_pointer(store).latest == "step-00000003"
    results = train(corpus, url, tmp_path / "other")
    assert_same_run(tmp_path / "local", tmp_path / "other")
    assert status(tmp_path / "other")["step"] == 8
    # All of it is at the URL.
    found = contents(store)
    assert json.loads(found["status.json"])["status"] == "done"
    assert json.loads(found["results.json"])["test"] == results["test"]
    assert found["metrics.jsonl"] == (tmp_path / "other" / "metrics.jsonl").read_bytes()
    events = [name for name in found if name.startswith("tensorboard/events")]
    assert len(events) == 3  # of both starts, and the results; those of the first are moved aside
    assert checkpoints.read_pointer(store).latest == "step-00000008"
    assert files.list_files(store, lease.FOLDER) == {}


def test_the_same_command_of_a_finished_run_changes_nothing(corpus: str, url: str, tmp_path: Path) -> None:
    one = train(corpus, url, tmp_path / "one", **{"train.max_steps": 2})
    pointer = checkpoints.read_pointer(files.open_remote(url))
    other = train(corpus, url, tmp_path / "other", **{"train.max_steps": 2})
    assert one["test"] == other["test"]
    assert checkpoints.read_pointer(files.open_remote(url)).latest == pointer.latest


@pytest.mark.parametrize("step", [0, 3])
def test_a_signal_waits_for_the_upload(
    corpus: str,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: int,
) -> None:
    """The machine may be gone the next moment: what was done must be at the URL."""
    real = trainer.train_step

    def stops(run: Any, *args: Any, **options: Any) -> Any:
        if run.position.step == step:
            run.stop.set()
        return real(run, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", stops)
        patch.setattr(RemoteRun, "send_checkpoint", send_checkpoint)
        assert train(corpus, url, tmp_path / "one") == {}
    store = files.open_remote(url)
    assert json.loads(contents(store)["status.json"])["status"] == "preempted"
    assert checkpoints.read_pointer(store).latest == f"step-{step + 1:08}"
    assert f"the same command with --run.dir {url} resumes the run" in capsys.readouterr().out
    assert files.list_files(store, lease.FOLDER) == {}
    train(corpus, url, tmp_path / "other")
    assert status(tmp_path / "other")["step"] == 8


def test_no_secret_is_written(
    corpus: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "from-the-environment")
    secret = '{"password": "correct-horse-battery"}'
    train(corpus, url, tmp_path / "one", **{"train.max_steps": 2, "run.storage_options": secret})
    texts = [*contents(files.open_remote(url)).values()]
    texts += [path.read_bytes() for path in (tmp_path / "one").rglob("*") if path.is_file()]
    texts.append(capsys.readouterr().out.encode())
    for text in texts:
        assert b"correct-horse" not in text
        assert b"from-the-environment" not in text


def test_a_run_begins_from_the_weights_of_another(
    corpus: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWTPN_CACHE_DIR", str(tmp_path / "cache"))
    train(corpus, url, tmp_path / "one", **{"train.max_steps": 2})
    local = str(tmp_path / "local")
    begun = {"train.max_steps": 1, "optim.lr": 1e-9, "run.init_from": url}
    train(corpus, local, tmp_path, **begun)
    for name, tensor in weights(tmp_path / "one", "best").items():
        if name.startswith("spread."):  # follows the batches
            continue
        torch.testing.assert_close(weights(Path(local))[name], tensor, rtol=0, atol=1e-6)


def failing(monkeypatch: pytest.MonkeyPatch, fail: Any) -> None:
    """Let the store of every thread fail as `fail` says."""
    real = files.open_remote

    def opened(url: str, options: Any = None) -> Any:
        store = real(url, options)
        return replace(store, fs=Faulty(store.fs, fail))

    monkeypatch.setattr(files, "open_remote", opened)


def test_a_checkpoint_that_cannot_be_sent_ends_the_run(
    corpus: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong credentials half way: the URL keeps the one before, and the local folder has the newest."""
    forbidden = threading.Event()

    def fail(method: str, path: str) -> None:
        if method == "put_file" and "step-00000004" in path:
            forbidden.set()
            raise PermissionError("403 forbidden")

    with monkeypatch.context() as patch:
        failing(patch, fail)
        with pytest.raises(UploadFailed, match=r"step-\d+ could not be sent .* 403 forbidden; what"):
            train(corpus, url, tmp_path / "one")
    assert forbidden.is_set()
    said = status(tmp_path / "one")
    assert said["status"] == "failed"
    assert "403 forbidden" in said["error"]
    store = files.open_remote(url)
    assert checkpoints.read_pointer(store).latest == "step-00000002"
    assert files.list_files(store, lease.FOLDER) == {}
    # With the right ones, the same command sends what is newer here, and goes on.
    train(corpus, url, tmp_path / "one")
    assert checkpoints.read_pointer(store).latest == "step-00000008"
    assert [line["step"] for line in metrics(tmp_path / "one")] == list(range(1, 9))


def test_a_run_that_loses_its_lease_stops(
    corpus: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steal(method: str, path: str) -> None:
        if method == "put_file" and "step-00000002" in path:
            plain = real(url)
            for name in files.list_files(plain, lease.FOLDER):
                files.delete(plain, [name])

    real = files.open_remote
    with monkeypatch.context() as patch:
        failing(patch, steal)
        with pytest.raises(UploadFailed, match="another job has taken this run folder over"):
            train(corpus, url, tmp_path / "one")
    assert checkpoints.read_pointer(files.open_remote(url)).latest is None


def test_a_run_in_use_is_refused(corpus: str, url: str, tmp_path: Path) -> None:
    store = files.open_remote(url)
    lease.acquire(store, "a", QUICK)
    with (
        keep_lease(lambda: files.open_remote(url), "a", QUICK),
        pytest.raises(ValueError, match=f"{url} is in use"),
    ):
        train(corpus, url, tmp_path / "one")
    assert contents(store) == {}


def test_requests_of_an_hour(url: str, tmp_path: Path) -> None:
    """What launch/README.md says: of the lease and of records that change all the time."""
    store, fs = faulty(url)
    lease.acquire(store, "a", QUICK)
    before = sum(fs.calls.values())
    lease.renew(store, "a", 1, QUICK)
    of_beat = sum(fs.calls.values()) - before
    (tmp_path / "tensorboard").mkdir()
    sender = RecordSender(store, tmp_path)
    for look in range(3):
        for name in ("metrics.jsonl", "tensorboard/events.out.tfevents.1"):
            with (tmp_path / name).open("a") as file:
                file.write(f"{look}\n")
        before = sum(fs.calls.values())
        sender.send_changed()
        of_look = sum(fs.calls.values()) - before
    times = lease.Times()
    assert (of_beat, of_look) == (2, 2)
    every_s = RunConfig().upload_every
    assert 3600 / times.beat_s * of_beat + 3600 / every_s * of_look == 600


def test_requests_of_a_checkpoint(url: str, tmp_path: Path) -> None:
    """What launch/README.md says: sent, named, and the one deleted that is not kept."""
    store, fs = faulty(url)
    lease.acquire(store, "a", QUICK)
    records = RecordSender(store, tmp_path)
    sender = Sender(records, Pointer(), 600.0, lambda store: lease.check_held(store, "a", QUICK))
    sender.start()
    for step in (1, 2):
        before = sum(fs.calls.values())
        path = save_checkpoint(tmp_path, step)
        sender.add_checkpoint(path, path.name, [path.name])
        assert sender.wait(LIMIT) is None
        requests = sum(fs.calls.values()) - before
    sender.close(LIMIT)
    assert requests == 17


def test_a_checkpoint_at_a_url_is_resumed_in_another_run(corpus: str, url: str, tmp_path: Path) -> None:
    train(corpus, url, tmp_path / "one", **{"train.checkpoint_every": 3, "train.keep_last": 9})
    began = f"{url}/checkpoints/step-00000003"
    local = str(tmp_path / "local")
    train(corpus, local, tmp_path, **{"run.resume": began})
    assert_same_run_from(4, tmp_path / "one", tmp_path / "local")
    # The same command resumes the run itself.
    train(corpus, local, tmp_path, **{"run.resume": began})
    assert status(tmp_path / "local")["step"] == 8
    for given, told in (
        (url, "must name a checkpoint: add /checkpoints/latest"),
        (f"{began}9", "there are:"),
    ):
        with pytest.raises(ValueError, match=told):
            train(corpus, str(tmp_path / "other"), tmp_path, **{"run.resume": given})
    assert not (tmp_path / "other" / "config.yaml").exists()


def assert_same_run_from(step: int, one: Path, other: Path) -> None:
    """The steps from this one on are the same to the bit."""
    assert same_bits_or_close(metrics(other), [line for line in metrics(one) if line["step"] >= step])
    for name, tensor in weights(one).items():
        assert same_bits_or_close(tensor, weights(other)[name]), name
