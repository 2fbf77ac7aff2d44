"""Run folders in a real S3 store: old pointers, wrong clocks, and TensorBoard, which reads the URL."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import swift as laboratory
from remote_runs_support import QUICK, save_checkpoint
from support import LIMIT, REPO, environment
from swift import options

from awtpn.model.files import WEIGHTS_FILE
from awtpn.run.remote import checkpoints, files, lease
from awtpn.run.remote.heartbeat import keep_lease
from awtpn.run.remote.records import RecordSender
from awtpn.run.remote.session import agree
from awtpn.tracking.tensorboard import TensorBoardWriter
from shards.storage.store import Store

# As the command does where files are not on this machine.
READ_EVENTS = """
import sys
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
runs = EventMultiplexer().AddRunsFromDirectory(sys.argv[1])
runs.Reload()
print({name: [point.step for point in runs.Tensors(name, "loss/total")] for name in runs.Runs()})
"""
# Times at this store are whole seconds.
TIMES = replace(QUICK, beat_s=0.5, settle_s=1.0, poll_s=0.2)
DYING = replace(TIMES, dead_s=3.0)


def make_bucket(swift: laboratory.Swift) -> Store:
    import s3fs

    with contextlib.suppress(FileExistsError):
        s3fs.S3FileSystem(**options(swift.endpoint)).mkdir("models")
    store = files.open_remote("s3://models/run", options(swift.endpoint))
    files.delete(store, files.list_files(store))
    return store


def send(store: Store, folder: Path, step: int, value: float = 1.0) -> checkpoints.Entry:
    path = save_checkpoint(folder, step, value=value)
    return checkpoints.send_files(store, path.name, path)


def test_a_pointer_that_is_older_than_the_checkpoint_it_names(
    swift: laboratory.Swift, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a store gives an old `latest.json` back. What it names was replaced, or is gone."""
    monkeypatch.setattr("shards.storage.retry.CONTENT_ATTEMPTS", 1)
    store = make_bucket(swift)
    agree(store, tmp_path / "here")
    old = send(store, tmp_path / "here", 1)
    pointer = checkpoints.with_entry(checkpoints.Pointer(), old, old.name, [old.name])
    checkpoints.write_pointer(store, pointer)
    again = send(store, tmp_path / "again", 1, value=2.0)
    assert again.folder != old.folder, "the same step, saved again, does not touch what the pointer names"
    checkpoints.fetch(store, old, tmp_path / "there")

    weights = f"checkpoints/{old.folder}/{WEIGHTS_FILE}"
    files.put_file(store, weights, tmp_path / "again" / "checkpoints" / old.name / WEIGHTS_FILE)
    with pytest.raises(ValueError, match=f"s3://models/run/{weights}: .* its content is not what was sent"):
        checkpoints.fetch(store, old, tmp_path / "other")
    with pytest.raises(ValueError, match=f"s3://models/run/{weights}"):
        agree(store, tmp_path / "new-machine")
    files.delete(store, [weights])
    with pytest.raises(ValueError, match=f"s3://models/run/{weights}"):
        checkpoints.fetch(store, old, tmp_path / "other")
    assert not list((tmp_path / "other").glob("*"))

    # The machine that trained has the checkpoint whole, and a newer one: that is sent.
    save_checkpoint(tmp_path / "here", 2)
    assert agree(store, tmp_path / "here")[0].latest == "step-00000002"
    agree(store, tmp_path / "last-machine")
    assert (tmp_path / "last-machine" / "checkpoints" / "latest" / WEIGHTS_FILE).is_file()


def test_tensorboard_reads_the_url(swift: laboratory.Swift, tmp_path: Path) -> None:
    store = make_bucket(swift)
    agree(store, tmp_path)
    writer = TensorBoardWriter(tmp_path)
    for step in (1, 2, 3):
        writer.log_scalars(step, {"loss/total": 1 / step})
    writer.close()
    RecordSender(store, tmp_path).send_changed()
    credentials = {"AWS_ACCESS_KEY_ID": laboratory.KEY, "AWS_SECRET_ACCESS_KEY": laboratory.SECRET}
    # The first endpoint is for s3fs, the other one for TensorBoard's own code, where boto3 is installed.
    endpoints = {"AWS_ENDPOINT_URL": swift.endpoint, "S3_ENDPOINT": swift.endpoint}
    command = [sys.executable, "-c", READ_EVENTS, "s3://models"]
    variables = environment(**credentials, **endpoints, AWS_DEFAULT_REGION="us-east-1")
    read = subprocess.run(command, env=variables, cwd=REPO, capture_output=True, text=True, timeout=LIMIT)
    assert read.stdout.splitlines()[-1:] == ["{'run/tensorboard': [1, 2, 3]}"], read.stderr[-3000:]


@pytest.fixture(params=[-600.0, 600.0])
def wrong_clock(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[laboratory.Swift]:
    """A store whose servers have another time than this host: ten minutes less, or more."""
    folder = tmp_path / "swift"
    folder.mkdir()
    if reason := laboratory.missing(folder):
        pytest.skip(reason)
    running = laboratory.start_swift(folder, request.param)
    yield running
    running.stop()


def test_clocks_that_differ_by_ten_minutes(wrong_clock: laboratory.Swift) -> None:
    """A job that lives is not taken for dead, and one that is dead is not waited for too long."""
    store = make_bucket(wrong_clock)

    def opened() -> Store:
        return files.open_remote(store.url, options(wrong_clock.endpoint))

    lease.acquire(store, "a", TIMES)
    [stored] = files.list_files(store, lease.FOLDER).values()
    probe = Path(wrong_clock.folder / "probe-of-time")
    probe.touch()
    assert abs(stored.modified - probe.stat().st_mtime - wrong_clock.clock_ahead_s) < 300
    with keep_lease(opened, "a", TIMES), pytest.raises(ValueError, match="is in use"):
        lease.acquire(opened(), "b", TIMES)
    lease.acquire(store, "c", TIMES)
    lease.acquire(opened(), "d", DYING)  # "c" has no heartbeat
    assert list(files.list_files(store, lease.FOLDER)) == [f"{lease.HOLDER}d"]
    lease.check_held(store, "d", TIMES)
    with pytest.raises(lease.LeaseLost):
        lease.check_held(store, "c", TIMES)
