"""Run folders in a real S3 store: servers that die, refused requests, killed jobs, two jobs at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import swift as laboratory
from faulty_proxy import FaultyProxy
from remote_runs_support import QUICK, contents, save_checkpoint, send_and_wait
from support import (
    LIMIT,
    REPO,
    arguments,
    assert_like_runs,
    assert_same_run,
    environment,
    free_port,
    pack_corpus,
    status,
)
from swift import options

from awtpn.cli import main as awtpn
from awtpn.run.remote import checkpoints, files, lease
from awtpn.run.remote.heartbeat import keep_lease
from awtpn.run.remote.records import RecordSender
from awtpn.run.remote.sending import Sender, UploadFailed
from awtpn.run.remote.session import RemoteRun
from awtpn.training import trainer
from shards.storage.store import Store

SETTINGS = {
    "model.shared_dim": 8,
    "model.dropout": 0.0,
    "train.global_batch_size": 16,
    "train.epochs": 3,  # of 4 steps
    "train.pictures": "never",
    "train.threads": 1,
    "optim.schedule": "constant",
    "optim.warmup_steps": 0,
    "run.upload_every": 1,
}
# Times at this store are whole seconds.
TIMES = replace(QUICK, beat_s=0.5, settle_s=1.0, poll_s=0.2)
DYING = replace(TIMES, dead_s=4.0)
# Trains as its words say.
SENDS_AT_ONCE = """
import sys
from remote_runs_support import send_and_wait
from awtpn.run.remote.session import RemoteRun
from awtpn.training import trainer
RemoteRun.send_checkpoint = send_and_wait
trainer.main(sys.argv[1:])
"""
# The same, as one of several nodes; with a step, it gets a signal before the next one.
STOPS_AFTER = """
import os, signal, sys
from awtpn.training import trainer
real = trainer.train_step
def train_step(run, *args, **options):
    if run.position.step == int(sys.argv[1]) > 0:
        os.kill(os.getpid(), signal.SIGTERM)
    return real(run, *args, **options)
trainer.train_step = train_step
trainer.main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def swift(swift: laboratory.Swift) -> laboratory.Swift:
    """With a bucket for runs."""
    import s3fs

    s3fs.S3FileSystem(**options(swift.endpoint)).mkdir("models")
    return swift


@pytest.fixture
def url() -> str:
    return f"s3://models/{uuid.uuid4().hex[:8]}/run"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pack_corpus(tmp_path_factory.mktemp("corpus") / "data")


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awtpn.run.remote.lease.TIMES", DYING)
    monkeypatch.setattr(RemoteRun, "send_checkpoint", send_and_wait)


def words(corpus: str, url: str, endpoint: str, local: Path, **changes: Any) -> list[str]:
    settings = SETTINGS | {"data.train": corpus, "run.dir": url, "run.local_dir": local} | changes
    return [*arguments(settings), "--run.storage_options", json.dumps(options(endpoint))]


def train(corpus: str, url: str, endpoint: str, local: Path, **changes: Any) -> dict[str, Any]:
    return trainer.main(words(corpus, url, endpoint, local, **changes))


def opened(url: str, swift: laboratory.Swift) -> Store:
    return files.open_remote(url, options(swift.endpoint))


@pytest.fixture(scope="module")
def undisturbed(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local") / "run"
    code = "import sys; from awtpn.training import trainer; trainer.main(sys.argv[1:])"
    settings = SETTINGS | {"data.train": corpus, "run.dir": folder}
    command = [sys.executable, "-c", code, *arguments(settings)]
    subprocess.run(command, check=True, cwd=REPO, env=environment(), capture_output=True, timeout=LIMIT)
    return folder


def test_a_store_that_dies_and_refuses(
    corpus: str,
    undisturbed: Path,
    swift: laboratory.Swift,
    proxy: FaultyProxy,
    url: str,
    tmp_path: Path,
    times: None,
    no_accelerator: None,
) -> None:
    """503s, then the object server is killed at the first file of a checkpoint and restarted."""
    refusals, killed = iter(range(4)), threading.Event()

    def before(method: str, path: str) -> int | None:
        if method == "PUT" and path.endswith("metrics.jsonl") and next(refusals, None) is not None:
            return 503
        if method == "PUT" and "step-00000008" in path and not killed.is_set():
            killed.set()
            swift.kill("object")
            threading.Timer(3.0, swift.start, ["object"]).start()
        return None

    proxy.before = before
    train(corpus, url, proxy.endpoint, tmp_path / "one")
    assert killed.is_set()
    assert_same_run(tmp_path / "one", undisturbed)
    store = opened(url, swift)
    found = contents(store)
    assert json.loads(found["status.json"])["status"] == "done"
    pointer = checkpoints.read_pointer(store)
    assert pointer.latest == "step-00000012"
    # Nothing but whole checkpoints.
    named = {entry.folder for entry in pointer.entries} | {"latest.json"}
    assert {name.split("/")[1] for name in found if name.startswith("checkpoints/")} == named
    for entry in pointer.entries:
        checkpoints.fetch(store, entry, tmp_path / "there")


def test_a_server_killed_amid_a_large_file(swift: laboratory.Swift, url: str, tmp_path: Path) -> None:
    store = opened(url, swift)
    path = save_checkpoint(tmp_path / "here", 1, size=48 << 20)
    records = RecordSender(opened(url, swift), tmp_path / "here")
    sender = Sender(records, checkpoints.Pointer(), 600, lambda store: None)
    sender.start()
    sender.add_checkpoint(path, path.name, [path.name])
    deadline = time.monotonic() + LIMIT
    while not any(name.endswith("config.json") for name in files.list_files(store)):
        assert time.monotonic() < deadline
    swift.kill("object")  # the weights come next
    time.sleep(1.0)
    assert sender.current is not None
    assert not [name for name in files.list_files(store) if name.endswith(("manifest.json", "latest.json"))]
    swift.start("object")
    assert sender.wait(LIMIT) is None
    sender.close(LIMIT)
    pointer = checkpoints.read_pointer(store)
    copy = checkpoints.fetch(store, pointer.entries[0], tmp_path / "there")
    for file in path.iterdir():
        assert file.read_bytes() == (copy / file.name).read_bytes()


def test_credentials_that_expire(
    corpus: str,
    swift: laboratory.Swift,
    proxy: FaultyProxy,
    url: str,
    tmp_path: Path,
    times: None,
    no_accelerator: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run fails with a line that says so, and goes on with new ones; no secret is anywhere.

    The store itself refuses the old ones: its secret is another one from the second checkpoint on.
    """
    expired, renewed = threading.Event(), "renewed-secret"

    def before(method: str, path: str) -> None:
        if method == "PUT" and "step-00000008" in path and not expired.is_set():
            expired.set()
            swift.restart("proxy", "user_test_tester", f"{renewed} .admin")

    proxy.before = before
    given = words(corpus, url, proxy.endpoint, tmp_path / "one")
    try:
        with pytest.raises(
            UploadFailed, match=r"step-\d+ could not be sent to the URL of the run: s3://models/"
        ):
            trainer.main(given)
        assert status(tmp_path / "one")["status"] == "failed"
        new = options(proxy.endpoint, secret=renewed)
        store = files.open_remote(url, new)
        assert checkpoints.read_pointer(store).latest == "step-00000004"
        trainer.main([*given[:-1], json.dumps(new)])
        assert checkpoints.read_pointer(store).latest == "step-00000012"
        found = contents(store)
    finally:
        swift.restart("proxy", "user_test_tester", f"{laboratory.SECRET} .admin")
    texts = [*found.values(), capsys.readouterr().out.encode()]
    texts += [path.read_bytes() for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert not any(secret.encode() in text for text in texts for secret in (laboratory.SECRET, renewed))


@pytest.mark.parametrize("answers", ["507", "as Swift does"])
def test_a_store_that_is_full(
    answers: str,
    corpus: str,
    undisturbed: Path,
    swift: laboratory.Swift,
    proxy: FaultyProxy,
    url: str,
    tmp_path: Path,
    times: None,
    no_accelerator: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run fails, what is there stays whole, and the run goes on when there is room.

    Swift's object server has no room left for files from the second checkpoint on, and the proxy before it
    answers 503; or the answer is 507, as that of other stores.
    """
    monkeypatch.setattr("awtpn.run.remote.sending.PAUSE_S", 0.1)
    monkeypatch.setattr("shards.storage.retry.ATTEMPTS", 2)
    if answers != "507":  # s3fs and botocore repeat each request many times themselves
        monkeypatch.setattr("awtpn.run.remote.sending.ATTEMPTS", 1)
        monkeypatch.setattr("shards.storage.retry.ATTEMPTS", 1)
    full = threading.Event()

    def before(method: str, path: str) -> int | None:
        if method == "PUT" and "step-00000008" in path and not full.is_set():
            full.set()
            if answers != "507":
                fill(swift, True)
        refused = full.is_set() and method == "PUT" and ".lease" not in path
        return 507 if refused and answers == "507" else None

    proxy.before = before
    try:
        with pytest.raises(UploadFailed, match=r"step-\d+ could not be sent .* what is at s3://.* is whole"):
            train(corpus, url, proxy.endpoint, tmp_path / "one")
        store = opened(url, swift)
        pointer = checkpoints.read_pointer(store)
        assert pointer.latest == "step-00000004"
        checkpoints.fetch(store, pointer.entries[0], tmp_path / "there")
    finally:
        proxy.before = None
        fill(swift, False)
    train(corpus, url, proxy.endpoint, tmp_path / "one")
    assert checkpoints.read_pointer(store).latest == "step-00000012"
    assert_same_run(tmp_path / "one", undisturbed)


def fill(swift: laboratory.Swift, full: bool) -> None:
    """Leave no room for objects with content in the store, or all of the disk."""
    swift.restart("object", "disable_fallocate", "false" if full else "true")
    swift.restart("object", "fallocate_reserve", "100%" if full else "0")


def test_credentials_that_may_only_read(
    corpus: str, proxy: FaultyProxy, url: str, tmp_path: Path, no_accelerator: None
) -> None:
    proxy.before = lambda method, path: 403 if method == "PUT" else None
    with pytest.raises(ValueError, match=rf"{url}.*(Forbidden|denied|403)"):
        train(corpus, url, proxy.endpoint, tmp_path / "one")
    assert not (tmp_path / "one" / "metrics.jsonl").exists()


def test_a_job_killed_between_upload_and_pointer(
    corpus: str,
    undisturbed: Path,
    swift: laboratory.Swift,
    proxy: FaultyProxy,
    url: str,
    tmp_path: Path,
    times: None,
    no_accelerator: None,
) -> None:
    """Another machine waits until the lease has ended, and goes on from the checkpoint before."""
    jobs: list[subprocess.Popen[bytes]] = []
    pointers: list[str] = []
    killed = threading.Event()

    def before(method: str, path: str) -> int | None:
        if method == "PUT" and path.endswith("latest.json"):
            pointers.append(path)
            if len(pointers) == 2:
                os.kill(jobs[0].pid, signal.SIGKILL)
                killed.set()
                return 503
        return None

    proxy.before = before
    command = [sys.executable, "-c", SENDS_AT_ONCE, *words(corpus, url, proxy.endpoint, tmp_path / "one")]
    jobs.append(subprocess.Popen(command, cwd=REPO, env=environment(), stdout=subprocess.DEVNULL))
    assert killed.wait(LIMIT)
    jobs[0].wait(LIMIT)
    store = opened(url, swift)
    before_it = checkpoints.read_pointer(store)
    assert before_it.latest == "step-00000004"
    proxy.before = None
    train(corpus, url, proxy.endpoint, tmp_path / "other")
    assert_same_run(tmp_path / "other", undisturbed)
    assert checkpoints.read_pointer(store).latest == "step-00000012"


def test_two_jobs_at_once(swift: laboratory.Swift, url: str) -> None:
    together, ended = threading.Barrier(2), threading.Event()
    outcomes: list[str] = []

    def job(name: str) -> None:
        together.wait(LIMIT)
        try:
            lease.acquire(opened(url, swift), name, TIMES)
        except ValueError as error:
            outcomes.append(str(error))
            ended.set()
            return
        with keep_lease(lambda: opened(url, swift), name, TIMES) as heartbeat:
            ended.wait(LIMIT)
            outcomes.append("won" if heartbeat.lost is None else heartbeat.lost)

    threads = [threading.Thread(target=job, args=(name,)) for name in ("aa", "bb")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert sorted(outcome == "won" for outcome in outcomes) == [False, True]
    assert any(f"{url} is in use" in outcome for outcome in outcomes)
    assert files.list_files(opened(url, swift), lease.FOLDER) == {}


def test_two_nodes_without_a_shared_disk(
    corpus: str, undisturbed: Path, swift: laboratory.Swift, url: str, tmp_path: Path
) -> None:
    """Each has a cache of its own. Stopped by a signal at one of them, and resumed with empty caches."""
    settings = SETTINGS | {"data.train": corpus, "run.dir": url}
    command = [*arguments(settings), "--run.storage_options", json.dumps(options(swift.endpoint))]

    def both(name: str, stop_after: int | None = None) -> list[str]:
        port = str(free_port())
        nodes = [
            start_node(command, rank, port, tmp_path / f"{name}-{rank}", stop_after if rank else None)
            for rank in (0, 1)
        ]
        outputs = []
        for node in nodes:
            out, _ = node.communicate(timeout=LIMIT)
            assert node.returncode == 0, out
            outputs.append(out)
        return outputs

    both("one", stop_after=5)
    store = opened(url, swift)
    assert json.loads(contents(store)["status.json"])["status"] == "preempted"
    assert checkpoints.read_pointer(store).latest == "step-00000006"
    assert "resumed at step 6" in both("other")[0]
    [main] = (tmp_path / "other-0").glob("*.run/run")
    [second] = (tmp_path / "other-1").glob("*.run/run")
    assert_like_runs(main, undisturbed)
    assert [path.name for path in (second / "checkpoints").iterdir()] == ["step-00000006"]


def start_node(
    command: list[str], rank: int, port: str, cache: Path, stop_after: int | None
) -> subprocess.Popen[str]:
    """Rank `rank` of 2, the only one of its node."""
    ranks = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    ranks |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    ranks |= {"AWTPN_CACHE_DIR": str(cache)}
    return subprocess.Popen(
        [sys.executable, "-c", STOPS_AFTER, str(stop_after or 0), *command],
        cwd=REPO,
        env=environment(**ranks),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_commands_take_the_url(
    corpus: str,
    swift: laboratory.Swift,
    url: str,
    tmp_path: Path,
    times: None,
    no_accelerator: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWTPN_CACHE_DIR", str(tmp_path / "cache"))
    train(corpus, url, swift.endpoint, tmp_path / "one")
    monkeypatch.chdir(tmp_path)
    where = ["--storage_options", json.dumps(options(swift.endpoint))]
    capsys.readouterr()

    def said(*given: str) -> str:
        awtpn([*given, *where])
        return capsys.readouterr().out

    assert "14 utterances" in said("evaluate", url, "--out", "figures.json")
    results = json.loads((tmp_path / "one" / "results.json").read_text())
    assert json.loads(Path("figures.json").read_text())["w-F1"] == results["test"]["w-F1"]
    assert f"report in {url}/report.html" in said("report", url)
    assert contents(opened(url, swift))["report.html"].startswith(b"<!")
    assert "exported to" in said("export", url, "model")
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert "equal within tolerance" in said("compare", url, str(tmp_path / "one"))
    said("predict", url, corpus, "--out", "answers.jsonl")
    assert len(Path("answers.jsonl").read_text().splitlines()) == 14
    named = f"{url}/checkpoints/step-00000012"
    said("predict", named, corpus, "--out", "latest.jsonl")

    listed = said("runs", "list", url.rpartition("/")[0])
    assert [line.split() for line in listed.splitlines()[1:]] == [[url, "done", "step-00000012", "no", "job"]]
    assert "run in copy" in said("runs", "pull", url, "copy")
    assert_same_run(tmp_path / "copy", tmp_path / "one")
    with pytest.raises(SystemExit, match="deleted with all its checkpoints only with --yes"):
        said("runs", "delete", url)
    assert contents(opened(url, swift))
    lease.acquire(opened(url, swift), "a", TIMES)
    with (
        keep_lease(lambda: opened(url, swift), "a", DYING),
        pytest.raises(SystemExit, match=f"{url} is in use"),
    ):
        said("runs", "delete", url, "--yes")
    assert "files deleted" in said("runs", "delete", url, "--yes")
    assert files.list_files(opened(url, swift)) == {}
    for command in (["evaluate"], ["runs", "list"], ["report"]):
        with pytest.raises(SystemExit, match=url):
            said(*command, url)
