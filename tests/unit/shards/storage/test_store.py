"""Remote datasets: verified, cached, shared, retried; and silent about credentials."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from shards_support import corpus, global_keys, pack
from support import LIMIT

from shards import FeatureStream
from shards.storage.credentials import redact, redact_command, redact_url, secrets_in
from shards.storage.retry import retrying
from shards.storage.store import (
    call_store,
    dataset_name,
    open_dataset,
    open_file,
    open_store,
    read_manifest,
    split_url,
)
from shards.storage.timeouts import with_timeouts


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.storage.retry.FIRST_PAUSE_S", 0.001)


class Downloads:
    """Stands between the store and the memory file system: counts, delays, fails, damages."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.faults: list[Exception] = []
        self.truncate = 0
        get_file = MemoryFileSystem.get_file

        def counted(fs: MemoryFileSystem, path: str, local: str, **options: Any) -> None:
            self.names.append(path.rpartition("/")[2])
            if self.faults:
                # What dies amid a download leaves a part behind.
                Path(local).write_bytes(b"part")
                raise self.faults.pop()
            get_file(fs, path, local, **options)
            if self.truncate:
                self.truncate -= 1
                Path(local).write_bytes(Path(local).read_bytes()[:-7])

        monkeypatch.setattr(MemoryFileSystem, "get_file", counted)


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> Downloads:
    return Downloads(monkeypatch)


def test_remote_streams_as_local(remote: str, tmp_path: Path) -> None:
    pack(corpus(), tmp_path / "d")
    local = [FeatureStream(str(tmp_path / "d"), global_batch_size=12)]
    far = [FeatureStream(remote, global_batch_size=12, cache_dir=tmp_path / "cache")]
    assert global_keys(far, 0) == global_keys(local, 0)


def test_each_file_is_fetched_once(remote: str, tmp_path: Path, downloads: Downloads) -> None:
    for _ in range(2):
        stream = FeatureStream(remote, cache_dir=tmp_path)
        assert sum(len(batch) for epoch in (0, 1) for batch in stream.epoch(epoch)) == 80
    shards = stream.manifest.splits["train"].shards
    assert sorted(downloads.names) == sorted(name for shard in shards for name in (shard.name, shard.index))
    assert not list(tmp_path.rglob("*.part"))


def test_ranks_fetch_only_their_streams_shards(remote: str, tmp_path: Path) -> None:
    fetched = []
    for rank in (0, 1):
        cache = tmp_path / str(rank)
        stream = FeatureStream(remote, rank=rank, world_size=2, streams=2, cache_dir=cache)
        for epoch in range(3):
            list(stream.epoch(epoch))
        fetched.append({path.name for path in cache.rglob("*.tar")})
    assert len(fetched[0] & fetched[1]) <= 1


def test_concurrent_processes_share_a_download(remote: str, tmp_path: Path, downloads: Downloads) -> None:
    """Threads with stores of their own stand for processes: the file lock knows no difference."""
    shard = read_manifest(open_store(remote)).splits["train"].shards[0]

    def fetch() -> None:
        open_file(open_store(remote, tmp_path), shard.name, shard.bytes, shard.sha256).close()

    threads = [threading.Thread(target=fetch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert downloads.names == [shard.name]


class ClientPayloadError(Exception):
    """As aiohttp's: not an OSError."""


def test_passing_faults_are_retried(remote: str, tmp_path: Path, downloads: Downloads) -> None:
    stream = FeatureStream(remote, cache_dir=tmp_path, prefetch=0)
    downloads.faults = [ClientPayloadError("cut"), OSError(16, "busy"), ConnectionError("down")]
    downloads.truncate = 1
    assert sum(len(batch) for batch in stream.epoch(0)) == 40


def test_lasting_faults_stop_with_url_and_cause(remote: str, tmp_path: Path, downloads: Downloads) -> None:
    stream = FeatureStream(remote, cache_dir=tmp_path)
    downloads.faults = [ClientPayloadError("cut")] * 1_000
    with pytest.raises(
        OSError, match=r"d/train-\d+\S*: 8 attempts failed, the last by ClientPayloadError: cut"
    ):
        list(stream.epoch(0))
    # Downloads ahead of need give up a little later.
    deadline = time.monotonic() + LIMIT
    while list(tmp_path.rglob("*.part")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not list(tmp_path.rglob("*.part"))


def test_truncated_object(remote: str, tmp_path: Path, downloads: Downloads) -> None:
    stream = FeatureStream(remote, cache_dir=tmp_path)
    downloads.truncate = 1_000
    with pytest.raises(ValueError, match=r"d/train-\d+\S*: 3 attempts .* it has \d+ bytes, \d+ are expected"):
        list(stream.epoch(0))


def test_replaced_object_is_refused_by_its_hash(remote: str, tmp_path: Path) -> None:
    fs, folder = fsspec.filesystem("memory"), remote.removeprefix("memory:/")
    stream = FeatureStream(remote, cache_dir=tmp_path)
    for path in fs.ls(folder, detail=False):
        if path.endswith(".tar"):
            fs.pipe_file(path, bytes(fs.size(path)))
    with pytest.raises(ValueError, match=r"train-\d+.tar: .* was it replaced"):
        list(stream.epoch(0))


def test_missing_object_is_not_retried(remote: str, tmp_path: Path, downloads: Downloads) -> None:
    stream = FeatureStream(remote, cache_dir=tmp_path, prefetch=0, shuffle=False)
    fsspec.filesystem("memory").rm(remote.removeprefix("memory:/") + "/train-000000.tar")
    with pytest.raises(FileNotFoundError, match=r"d/train-000000.tar"):
        list(stream.epoch(0))


def test_another_dataset_at_the_same_url(remote: str, tmp_path: Path) -> None:
    before = FeatureStream(remote, cache_dir=tmp_path)
    list(before.epoch(0))
    pack(corpus(9), remote, overwrite=True)
    keys = [key for step in global_keys([FeatureStream(remote, cache_dir=tmp_path)], 0) for _, key in step]
    assert sorted(keys) == sorted(f"train-{i}" for i in range(9))


def test_missing_remote_dataset(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"memory:.*/nowhere/manifest.json: no such file"):
        FeatureStream("memory://nowhere", cache_dir=tmp_path)


def test_unknown_protocol() -> None:
    with pytest.raises(ValueError, match=r"gopher://x: cannot open: .*gopher"):
        FeatureStream("gopher://x")


def test_credentials_stay_out_of_errors(remote: str, tmp_path: Path, downloads: Downloads) -> None:
    options = {"key": "hunter1", "client_kwargs": {"password": "hunter2", "endpoint_url": "http://here"}}
    stream = FeatureStream(remote, cache_dir=tmp_path, storage_options=options)
    downloads.faults = [OSError("hunter1 and hunter2 refused by http://here")] * 1_000
    with pytest.raises(OSError, match=r"\*\*\* and \*\*\* refused by http://here") as caught:
        list(stream.epoch(0))
    assert caught.value.__suppress_context__
    assert "hunter" not in repr(stream.store)


def test_credentials_in_the_url_are_hidden() -> None:
    store = open_store("memory://u:hunter%402@host/d")
    assert store.url == "memory://host/d"
    assert "hunter" not in repr(store)
    assert redact("hunter%402, hunter@2") == "***, ***"
    assert "sig=abc" in secrets_in("memory://host/d?sig=abc", {})


@pytest.mark.parametrize("url", ["https://h/d?sig=abc", "https://h/d/manifest.json?sig=abc#dev"])
def test_a_url_with_a_query_is_refused(url: str) -> None:
    """It would open the one file it was signed for, if any."""
    with pytest.raises(
        ValueError, match=r"h/d.*\?\.\.\.: .* give the token in data\.storage_options"
    ) as caught:
        open_dataset(url)
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://bucket/corpora/iemocap", "iemocap"),
        ("s3://bucket/corpora/iemocap/#dev", "iemocap"),
        ("data/iemocap/manifest.json#dev", "iemocap"),
        ("https://me:s3cret@host/iemocap/manifest.json?token=s3cret#dev", "iemocap"),
        ("https://host/iemocap?token=s3/cret", "iemocap"),
        ("https://me:s3cret@host", "host"),
        ("demo", "demo"),
        (".", "data"),
    ],
)
def test_a_dataset_has_the_name_of_its_folder(url: str, name: str) -> None:
    assert dataset_name(url) == name


@pytest.mark.parametrize(
    ("url", "shown", "password"),
    [
        ("sftp://user:p@ss@host/x", "sftp://host/x", "p@ss"),
        ("sftp://user:pa/ss@host:22/x", "sftp://host:22/x", "pa/ss"),
        ("s3://key:sec/ret@bucket/x", "s3://bucket/x", "sec/ret"),
        ("s3://key:1/s@cr/et@bucket/x", "s3://bucket/x", "1/s@cr/et"),
        ("https://u:12345@h/x?sig=a@b", "https://h/x", "12345"),
        ("zip://a.npz::https://u:pass@h/x", "zip://a.npz::https://h/x", "pass"),
    ],
)
def test_passwords_that_should_have_been_encoded_are_hidden(url: str, shown: str, password: str) -> None:
    assert redact_url(url) == shown
    assert {password, *(piece for piece in re.split("[/@]", password) if len(piece) > 2)} <= set(
        secrets_in(url, {})
    )
    assert redact_command(["awtpn", f"{url}#dev"]).strip("'").endswith(f"{shown}#dev")


@pytest.mark.parametrize(
    "url", ["http://host:8080/a@b", "hf://datasets/me/mine@main", "http://[::1]:80/x", "hdfs://host:9000"]
)
def test_what_is_no_password_stays(url: str) -> None:
    assert redact_url(url) == url
    assert not {"8080/a", "9000", "80/x"} & set(secrets_in(url, {}))


def test_credentials_of_the_environment_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://here.example")
    open_store("memory://d")
    assert redact("hunter2hunter2 of http://here.example") == "*** of http://here.example"


class Answer(Exception):
    """As aiohttp's ClientResponseError."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


@pytest.mark.parametrize(
    ("fault", "kind", "calls"),
    [
        (Answer(403), PermissionError, 1),
        (Answer(503), OSError, 8),
        (type("NoCredentialsError", (Exception,), {})(), PermissionError, 1),
        (OSError(28, "No space left on device"), OSError, 1),
        (FileNotFoundError("bucket"), FileNotFoundError, 1),
        (OSError(30, "Read-only file system"), OSError, 1),
        (OSError(36, "File name too long"), OSError, 1),
        (OSError(13, "Permission denied"), PermissionError, 1),
        (OSError(1, "Operation not permitted"), PermissionError, 1),
        (OSError("Forbidden: https://storage.googleapis.com/b/x\nno access"), PermissionError, 1),
    ],
)
def test_what_is_asked_again(fault: Exception, kind: type, calls: int) -> None:
    asked = []

    def call() -> None:
        asked.append(1)
        raise fault

    with pytest.raises(kind, match="s3://b/x: "):
        retrying(call, "s3://b/x")
    assert len(asked) == calls


def test_local_files_are_asked_for_once(tmp_path: Path) -> None:
    asked = []

    def call() -> None:
        asked.append(1)
        raise OSError(5, "Input/output error", str(tmp_path / "x"))

    with pytest.raises(OSError, match=r"Input/output error: '.*/x'"):
        call_store(open_store(str(tmp_path)), call, f"{tmp_path}/x")
    assert len(asked) == 1


def test_hanging_attempts_end_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.storage.retry.RETRY_BUDGET_S", -1.0)
    with pytest.raises(OSError, match="1 attempts failed, the last by Answer: status 503"):
        retrying(lambda: (_ for _ in ()).throw(Answer(503)), "s3://b/x")


def test_timeouts_are_set_and_options_rule() -> None:
    options = {"key": "k", "config_kwargs": {"read_timeout": 3}}
    merged = with_timeouts("s3://b/d", options)
    assert merged["key"] == "k"
    assert merged["config_kwargs"]["read_timeout"] == 3
    assert merged["config_kwargs"]["connect_timeout"] == 10
    assert with_timeouts("https://h/d", {})["client_kwargs"]["timeout"].sock_read == 20
    assert with_timeouts("memory://d", {"a": 1}) == {"a": 1}


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("s3://b/d", ("s3://b/d", "manifest.json", None)),
        ("s3://b/d/", ("s3://b/d", "manifest.json", None)),
        ("s3://b/d#dev", ("s3://b/d", "manifest.json", "dev")),
        ("d/other.json#dev", ("d", "other.json", "dev")),
        ("manifest.json", (".", "manifest.json", None)),
        ("/manifest.json", ("/", "manifest.json", None)),
    ],
)
def test_split_url(url: str, parts: tuple[str, str, str | None]) -> None:
    assert split_url(url) == parts
