"""Stores other than S3: a real SSH server for sftp://, an emulator of Google's API for gs://, and for hf:// a
stand-in for the few questions that a dataset on the Hugging Face Hub is asked.

Utterances arrive exactly once, training runs from them under a cache that holds one split at a time, and a
server that dies or freezes is waited for, then named.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from remote_runs_support import QUICK, save_checkpoint
from support import LIMIT, REPO, free_port, pack_corpus

from awtpn.run.remote import checkpoints, files, lease
from awtpn.run.remote.pulling import pull_checkpoints, pull_records
from awtpn.run.remote.records import RecordSender
from awtpn.run.remote.sending import Sender
from shards import FeatureStream
from shards.storage.store import open_dataset
from shards.tools.verify import verify

SSHD = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
StrictModes no
PasswordAuthentication no
PidFile none
Subsystem sftp internal-sftp
"""


@dataclass
class Place:
    """A store, and how to put its server to sleep, or out."""

    url: str
    options: dict[str, Any]
    command: list[str] = field(default_factory=list)
    port: int = 0
    server: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        """With those that serve open connections, which sshd puts into sessions of their own."""
        assert self.server
        main = psutil.Process(self.server.pid)
        for each in [*main.children(recursive=True), main]:
            each.kill()
        self.server.wait()

    def start(self) -> None:
        self.server = start(self.command, self.port)


def start(command: list[str], port: int) -> subprocess.Popen[bytes]:
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    begin = time.monotonic()
    while time.monotonic() - begin < LIMIT:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return server
        time.sleep(0.1)
    raise AssertionError(f"{command[0]} does not listen on {port}")


@pytest.fixture(scope="module")
def sftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    sshd = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin")
    if not sshd or os.getuid() != 0:
        pytest.skip("needs root and Debian's openssh-server")
    folder, port = tmp_path_factory.mktemp("sshd"), free_port()
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "config").write_text(SSHD.format(port=port, folder=folder))
    Path("/run/sshd").mkdir(exist_ok=True)
    command = [sshd, "-D", "-f", str(folder / "config")]
    options = {"port": port, "username": "root", "key_filename": str(folder / "user_key")}
    place = Place(f"sftp://127.0.0.1{folder}/corpus", options, command, port, start(command, port))
    pack_corpus(folder / "corpus")
    yield place
    place.kill()


@pytest.fixture(scope="module")
def gs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    emulator = shutil.which("gcp-storage-emulator", path=str(Path(sys.executable).parent))
    assert emulator
    port = free_port()
    command = [emulator, "start", "--host=127.0.0.1", f"--port={port}", "--in-memory"]
    command.append("--default-bucket=features")
    # gcsfs else asks Google's own servers what kind of bucket this is.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        options = {"token": "anon", "endpoint_url": f"http://127.0.0.1:{port}"}
        place = Place("gs://features/corpus", options, command, port, start(command, port))
        folder = tmp_path_factory.mktemp("local")
        pack_corpus(folder / "corpus")
        import gcsfs

        gcsfs.GCSFileSystem(**options).put(f"{folder}/corpus/", "features/corpus/", recursive=True)
        yield place
        place.kill()


class Hub(BaseHTTPRequestHandler):
    """Tells that there is a dataset user/corpus, lists `folder` as its content, and serves its files."""

    folder: Path
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        file = self.folder / path.rpartition("/")[2]
        if path == "/api/datasets/user/corpus":
            self.answer(json.dumps({"id": "user/corpus", "sha": "0" * 40, "siblings": []}).encode())
        elif path == "/api/datasets/user/corpus/tree/main":
            listed = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0"}
                for f in self.folder.iterdir()
            ]
            self.answer(json.dumps(listed).encode())
        elif path.startswith("/datasets/user/corpus/resolve/main/") and file.is_file():
            self.answer(file.read_bytes())
        else:
            self.answer(b"{}", 404)

    def answer(self, body: bytes, code: int = 200) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("hub") / "corpus"
    pack_corpus(folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), type("OurHub", (Hub,), {"folder": folder})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Place(
            "hf://datasets/user/corpus",
            {"endpoint": f"http://127.0.0.1:{server.server_port}", "token": False},
        )
        server.shutdown()


@pytest.fixture(params=["sftp", "gs", "hf"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(request.param)
    return found


def keys(place: Place, cache: Path, rank: int, **options: Any) -> list[str]:
    stream = FeatureStream(
        place.url,
        rank=rank,
        world_size=2,
        global_batch_size=8,
        cache_dir=cache,
        storage_options=place.options,
        **options,
    )
    return [key for batch in stream.epoch(0) for key in batch.key]


def test_every_utterance_once_and_every_hash_right(place: Place, tmp_path: Path) -> None:
    """By two ranks at once, in threads of one process: the hardest case for a connection that is shared."""
    manifest = open_dataset(place.url, tmp_path, place.options)[1]
    seen: dict[int, list[str]] = {}
    ranks = [
        threading.Thread(target=lambda r=rank: seen.update({r: keys(place, tmp_path, r)})) for rank in (0, 1)
    ]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join(LIMIT)
    assert len(set(seen[0] + seen[1])) == len(seen[0] + seen[1]) == manifest.splits["train"].utterances
    found = verify(place.url, progress=False, cache_dir=tmp_path, storage_options=place.options)
    assert not found.faults
    assert found.utterances == sum(s.utterances for s in manifest.splits.values())


def test_training_with_a_cache_that_holds_one_split_at_a_time(gs: Place, tmp_path: Path) -> None:
    manifest = open_dataset(gs.url, tmp_path, gs.options)[1]
    sizes = {
        name: sum(shard.bytes + shard.index_bytes for shard in split.shards)
        for name, split in manifest.splits.items()
    }
    limit = max(sizes.values())
    assert limit < sum(sizes.values())
    command = [sys.executable, "launch/train.py", "--data.train", gs.url]
    command += ["--run.dir", str(tmp_path / "run"), "--data.cache_dir", str(tmp_path / "cache")]
    command += ["--data.storage_options", json.dumps(gs.options), "--data.cache_limit", str(limit)]
    command += ["--train.epochs", "2", "--model.shared_dim", "8"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["test"]["utterances"] == manifest.splits["test"].utterances
    held = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert 0 < held <= limit
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or str(gs.options.get("key_filename", "no key")) not in path.read_text(
            errors="replace"
        )


def test_a_server_that_restarts_is_waited_for(sftp: Place, tmp_path: Path) -> None:
    stream = FeatureStream(
        sftp.url, global_batch_size=4, cache_dir=tmp_path, storage_options=sftp.options, prefetch=0
    )
    sftp.kill()
    restart = threading.Timer(2.0, sftp.start)
    restart.start()
    assert sum(len(batch) for batch in stream.epoch(0)) == stream.num_utterances
    restart.join()


def test_a_server_that_is_gone_is_named(sftp: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.storage.retry.ATTEMPTS", 2)
    monkeypatch.setattr("shards.storage.retry.FIRST_PAUSE_S", 0.1)
    stream = FeatureStream(sftp.url, cache_dir=tmp_path, storage_options=sftp.options, prefetch=0)
    sftp.kill()
    try:
        with pytest.raises(OSError, match=rf"^{sftp.url}/train-\d+\.(tar|index\.npz): 2 attempts failed"):
            list(stream.epoch(0))
    finally:
        sftp.start()


def test_a_frozen_connection_is_given_up_for_another(
    sftp: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.storage.sftp.READ_S", 2)
    stream = FeatureStream(sftp.url, cache_dir=tmp_path, storage_options=sftp.options, prefetch=0)
    assert sftp.server
    connections = psutil.Process(sftp.server.pid).children(recursive=True)
    assert connections
    for each in connections:
        each.suspend()
    try:
        assert sum(len(batch) for batch in stream.epoch(0)) == stream.num_utterances
    finally:
        for each in connections:
            each.kill()


def test_a_wrong_key_is_refused(sftp: Place, tmp_path: Path) -> None:
    other = tmp_path / "other_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    wrong = sftp.options | {"key_filename": str(other), "look_for_keys": False, "allow_agent": False}
    with pytest.raises(PermissionError, match=r"^sftp://.*check the credentials"):
        FeatureStream(sftp.url, cache_dir=tmp_path, storage_options=wrong)


@pytest.mark.parametrize("name", ["sftp", "gs"])
def test_a_run_folder_at_a_url(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Lease, records and checkpoints; what arrives is what was sent."""
    place: Place = request.getfixturevalue(name)
    url = f"{place.url.rpartition('/')[0]}/runs/one"
    times = replace(QUICK, settle_s=1.0)  # SFTP tells times in whole seconds
    store = files.open_remote(url, place.options)
    assert files.list_files(store) == {}
    lease.acquire(store, "a", times)
    lease.renew(store, "a", 1, times)
    here, there = tmp_path / "here", tmp_path / "there"
    path = save_checkpoint(here, 1, size=1 << 20)
    (here / "metrics.jsonl").write_text('{"step": 1}\n')
    (here / "status.json").write_text('{"status": "done"}\n')
    records = RecordSender(files.open_remote(url, place.options), here)
    sender = Sender(records, checkpoints.Pointer(), 600, lambda store: lease.check_held(store, "a", times))
    sender.start()
    sender.add_checkpoint(path, path.name, [path.name])
    assert sender.wait(LIMIT) is None
    later = save_checkpoint(here, 2)
    sender.add_checkpoint(later, later.name, [later.name])
    assert sender.wait(LIMIT) is None
    sender.close(LIMIT)
    pointer = checkpoints.read_pointer(store)
    assert [entry.name for entry in pointer.entries] == [later.name]
    found = files.list_files(store)
    assert not [each for each in found if path.name in each or each.endswith(files.TEMPORARY)]
    pull_records(store, there)
    pull_checkpoints(store, there, pointer)
    for file in ("metrics.jsonl", "status.json", "checkpoints/latest/model.safetensors"):
        assert (there / file).read_bytes() == (here / file).read_bytes()
    lease.acquire(store, "b", replace(times, dead_s=2.0))
    with pytest.raises(lease.LeaseLost):
        lease.check_held(store, "a", times)
    lease.release(store, "b")
    assert files.list_files(store, lease.FOLDER) == {}
