"""Streaming from a real S3 store, and from one that misbehaves: all utterances exactly once, or an error that
names the URL and the cause; never a hang, never a credential."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import swift as laboratory
from faulty_proxy import FaultyProxy
from support import LIMIT
from swift import options

from shards import FeatureStream, Manifest, Sample, pack
from shards.tools.index_tars import index_url
from shards.tools.verify import verify

UTTERANCES, DIM = 96, 4_096
CLASSES = ["calm", "happy"]
KEYS = sorted(f"u{i}" for i in range(UTTERANCES))
WORKER = Path(__file__).with_name("stream_worker.py")


def samples() -> Iterator[Sample]:
    rng = np.random.default_rng(0)
    for i in range(UTTERANCES):
        audio = rng.standard_normal((int(rng.integers(40, 160)), DIM), np.float32).astype(np.float16)
        yield Sample(f"u{i}", "train", CLASSES[i % 2], {"audio": audio})


@pytest.fixture(scope="module")
def dataset(swift: laboratory.Swift) -> tuple[str, Manifest]:
    """About 75 MB in some ten shards: more than the buffers between a server and a client hold."""
    import s3fs

    s3fs.S3FileSystem(**options(swift.endpoint)).mkdir("features")
    url = "s3://features/voices"
    storage = options(swift.endpoint)
    manifest = pack(
        samples(), url, classes=CLASSES, shard_bytes=8 << 20, storage_options=storage, progress=False
    )
    assert len(manifest.splits["train"].shards) >= 8
    return url, manifest


def worker(
    url: str, endpoint: str, cache: Path, rank: int, *, epochs: int = 1, pause_s: float = 0.0, **changes: Any
) -> subprocess.Popen[str]:
    """A process that streams rank `rank` of 2, with its credentials in the environment."""
    task = {
        "stream": {"url": url, "rank": rank, "world_size": 2, "global_batch_size": 8, "streams": 2}
        | {"cache_dir": str(cache), "local_world_size": 2}
        | changes,
        "epochs": epochs,
        "pause_s": pause_s,
    }
    environment = os.environ | {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": laboratory.KEY,
        "AWS_SECRET_ACCESS_KEY": laboratory.SECRET,
    }
    return subprocess.Popen(
        [sys.executable, str(WORKER), json.dumps(task)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results(workers: list[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    """What each process printed. None hangs, none shows the secret."""
    found = []
    for each in workers:
        out, log = each.communicate(timeout=LIMIT)
        assert laboratory.SECRET not in out + log
        assert out, log
        found.append(json.loads(out))
    return found


def assert_exact(found: list[dict[str, Any]]) -> None:
    """Every epoch of the ranks together has every utterance exactly once."""
    for result in found:
        assert "keys" in result, result
    for epochs in zip(*(result["keys"] for result in found), strict=True):
        assert sorted(key for keys in epochs for key in keys) == KEYS


def stream(url: str, endpoint: str, cache: Path, **changes: Any) -> FeatureStream:
    storage = options(endpoint) | changes.pop("storage", {})
    return FeatureStream(url, global_batch_size=8, cache_dir=cache, storage_options=storage, **changes)


def keys(read: FeatureStream) -> list[str]:
    return sorted(key for batch in read.epoch(0) for key in batch.key)


def test_processes_share_one_download(
    dataset: tuple[str, Manifest], proxy: FaultyProxy, tmp_path: Path
) -> None:
    """Credentials and endpoint from the environment; two epochs and a restart fetch every object once."""
    url, manifest = dataset
    proxy.rate = 40e6
    assert_exact(results([worker(url, proxy.endpoint, tmp_path, rank, epochs=2) for rank in (0, 1)]))
    assert keys(stream(url, proxy.endpoint, tmp_path)) == KEYS
    for shard in manifest.splits["train"].shards:
        assert proxy.gets[f"/features/voices/{shard.name}"] == 1
        assert proxy.gets[f"/features/voices/{shard.index}"] == 1


def test_processes_share_a_limited_cache(
    dataset: tuple[str, Manifest], swift: laboratory.Swift, tmp_path: Path
) -> None:
    url, manifest = dataset
    ranks = {"rank": 0, "world_size": 2, "local_world_size": 2, "cache_limit": "1MB"}
    with pytest.raises(ValueError, match=r"cache_limit is 1000000 bytes, while this node's 2 ranks need"):
        stream(url, swift.endpoint, tmp_path, **ranks)
    # What is there from another run is in the way, and goes.
    whole = sum(shard.bytes + shard.index_bytes for shard in manifest.splits["train"].shards)
    filler = tmp_path / "other" / f"{'a' * 16}-old.tar"
    filler.parent.mkdir()
    filler.write_bytes(bytes(10 << 20))
    assert_exact(results([worker(url, swift.endpoint, tmp_path, rank, cache_limit=whole) for rank in (0, 1)]))
    assert not filler.exists()
    assert sum(path.stat().st_size for path in tmp_path.rglob("*-train-*")) <= whole


def test_server_killed_amid_a_download_and_restarted(
    dataset: tuple[str, Manifest], swift: laboratory.Swift, proxy: FaultyProxy, tmp_path: Path
) -> None:
    amid = threading.Event()
    proxy.rate, proxy.in_body = 6e6, lambda path: amid.set()
    workers = [worker(dataset[0], proxy.endpoint, tmp_path, rank) for rank in (0, 1)]
    assert amid.wait(LIMIT)
    swift.kill("object")
    proxy.rate = None
    time.sleep(4)
    swift.start("object")
    assert_exact(results(workers))


def test_process_killed_amid_a_download(
    dataset: tuple[str, Manifest], proxy: FaultyProxy, tmp_path: Path
) -> None:
    """What it left behind is taken over, and what it had fetched is not fetched again."""
    proxy.rate = 4e6
    victim = worker(dataset[0], proxy.endpoint, tmp_path, 0)
    deadline = time.monotonic() + LIMIT
    while not (list(tmp_path.rglob("*-train-*.tar")) and list(tmp_path.rglob("*.tar.*.part"))):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    victim.kill()
    victim.communicate()
    assert list(tmp_path.rglob("*.part"))
    fetched = {path.name.partition("-")[2] for path in tmp_path.rglob("*-train-*.tar")}
    proxy.rate = None
    assert keys(stream(dataset[0], proxy.endpoint, tmp_path)) == KEYS
    assert not list(tmp_path.rglob("*.part"))
    for name in fetched:
        assert proxy.gets[f"/features/voices/{name}"] == 1


def test_server_that_stays_away(
    dataset: tuple[str, Manifest], swift: laboratory.Swift, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.storage.retry.FIRST_PAUSE_S", 0.02)
    read = stream(dataset[0], swift.endpoint, tmp_path)
    swift.kill("proxy")
    try:
        with pytest.raises(OSError, match=r"s3://features/voices/train-\S+: \d attempts failed, the last by"):
            keys(read)
    finally:
        swift.start("proxy")


def test_busy_server(dataset: tuple[str, Manifest], proxy: FaultyProxy, tmp_path: Path) -> None:
    read = stream(dataset[0], proxy.endpoint, tmp_path)
    proxy.refuse = 12
    assert keys(read) == KEYS
    assert proxy.refuse == 0


def test_slow_server(dataset: tuple[str, Manifest], proxy: FaultyProxy, tmp_path: Path) -> None:
    """Slower than the timeout allows for a whole shard, but never silent for that long."""
    read = stream(dataset[0], proxy.endpoint, tmp_path, storage={"config_kwargs": {"read_timeout": 1}})
    proxy.rate = 3e6
    assert keys(read) == KEYS


def test_silent_server(
    dataset: tuple[str, Manifest], proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = stream(dataset[0], proxy.endpoint, tmp_path, storage={"config_kwargs": {"read_timeout": 1}})
    monkeypatch.setattr("shards.storage.retry.RETRY_BUDGET_S", 0.0)
    proxy.hang = True
    with pytest.raises(OSError, match=r"s3://features/voices/train-\S+: 1 attempts failed, .*[Tt]imeout"):
        keys(read)


def test_answers_that_end_early(dataset: tuple[str, Manifest], proxy: FaultyProxy, tmp_path: Path) -> None:
    read = stream(dataset[0], proxy.endpoint, tmp_path)
    proxy.cut = 6
    assert keys(read) == KEYS
    assert proxy.cut == 0


@pytest.fixture
def copy(dataset: tuple[str, Manifest], swift: laboratory.Swift) -> Iterator[str]:
    """The dataset once more, to be damaged."""
    import s3fs

    store = s3fs.S3FileSystem(**options(swift.endpoint))
    store.copy("features/voices", "features/copy", recursive=True)
    yield "s3://features/copy"
    store.rm("features/copy", recursive=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1_000], r"it has \d+ bytes, \d+ are expected: cut short or replaced"),
        (lambda content: content[:-1] + b"x", r"content is not what the manifest names; was it replaced"),
    ],
    ids=["truncated", "replaced"],
)
def test_object_changed_during_training(
    copy: str,
    swift: laboratory.Swift,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Any,
    message: str,
) -> None:
    import s3fs

    monkeypatch.setattr("shards.storage.retry.FIRST_PAUSE_S", 0.02)
    read = stream(copy, swift.endpoint, tmp_path)
    store = s3fs.S3FileSystem(**options(swift.endpoint))
    name = f"features/copy/{read.manifest.splits['train'].shards[5].name}"
    store.pipe_file(name, damage(store.cat_file(name)))
    with pytest.raises(ValueError, match=rf"s3://{name}: 3 attempts failed, .*{message}"):
        keys(read)


def test_tars_are_indexed_in_the_bucket(
    dataset: tuple[str, Manifest], swift: laboratory.Swift, tmp_path: Path
) -> None:
    """Indexed from one machine, streamed and verified on another."""
    import s3fs

    store = s3fs.S3FileSystem(**options(swift.endpoint))
    for shard in dataset[1].splits["train"].shards:
        store.copy(f"features/voices/{shard.name}", f"features/tars/{shard.name}")
    url, storage = "s3://features/tars", options(swift.endpoint)
    made = index_url(url, cache_dir=tmp_path / "one", storage_options=storage, progress=False)
    assert (made.folder, made.decoded) == (url, None)
    assert keys(stream(url, swift.endpoint, tmp_path / "other")) == KEYS
    checked = verify(url, cache_dir=tmp_path / "other", storage_options=storage, progress=False)
    assert (checked.utterances, checked.faults) == (UTTERANCES, [])


@pytest.mark.parametrize("changes", [{"secret": "wrong-secret"}, {"key": "nobody:here"}])
def test_wrong_credentials(
    dataset: tuple[str, Manifest], swift: laboratory.Swift, tmp_path: Path, changes: dict[str, str]
) -> None:
    with pytest.raises(PermissionError, match=r"s3://features/voices/manifest.json: ") as caught:
        stream(dataset[0], swift.endpoint, tmp_path, storage=changes)
    assert not any(value in str(caught.value) for value in changes.values())


def test_missing_bucket(swift: laboratory.Swift, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"s3://no-such-bucket/d/manifest.json: no such file .*bucket does not"
    ):
        stream("s3://no-such-bucket/d", swift.endpoint, tmp_path)


def test_missing_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    monkeypatch.setattr("shards.storage.retry.FIRST_PAUSE_S", 0.02)
    [port] = laboratory.free_ports(1)
    with pytest.raises(OSError, match=r"s3://features/voices/manifest.json: 8 attempts failed, .*Connect"):
        stream("s3://features/voices", f"http://127.0.0.1:{port}", tmp_path)


def test_full_cache_disk(dataset: tuple[str, Manifest], swift: laboratory.Swift, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        with pytest.raises(
            OSError, match=r"s3://features/voices/\S+: the disk of the cache \S+ is full \(\d+"
        ):
            keys(stream(dataset[0], swift.endpoint, disk))
        # A limit below the disk's size tells at the start.
        with pytest.raises(ValueError, match="cache_limit is 19000000 bytes, while"):
            stream(dataset[0], swift.endpoint, disk, cache_limit="19MB")
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
