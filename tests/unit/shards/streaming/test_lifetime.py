"""A stream goes on in a fork; one that is closed, and a process that ends, wait for no store."""

from __future__ import annotations

import functools
import http.server
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from shards_support import corpus, global_keys, in_fork, pack
from support import LIMIT, environment
from torch.utils.data import DataLoader, IterableDataset

from shards import FeatureBatch, FeatureStream
from shards.storage import sftp
from shards.storage.daemon_threads import DaemonThreads
from shards.storage.retry import retrying


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    pack(corpus(), folder)
    return folder


@pytest.fixture
def web(dataset: Path) -> Iterator[str]:
    """The same behind a server, whose connections and event loop a fork does not inherit."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(dataset))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


# --- Forks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["local", "http"])
def test_a_stream_that_was_read_goes_on_in_a_fork(
    dataset: Path, web: str, tmp_path: Path, where: str
) -> None:
    stream = FeatureStream(
        str(dataset) if where == "local" else web, global_batch_size=12, cache_dir=tmp_path
    )
    first = next(iter(stream.epoch(0))).key
    for path in tmp_path.glob("*/*.tar"):
        path.unlink()  # so that the fork must ask again
    wanted = global_keys([FeatureStream(str(dataset), global_batch_size=12)], 0)
    assert first == [key for _, key in wanted[0]]

    def read() -> None:
        stream._reader._open.clear()
        assert global_keys([stream], 0) == wanted

    in_fork(read)
    assert global_keys([stream], 0) == wanted


def test_locks_that_other_threads_hold_do_not_come_along(dataset: Path) -> None:
    stream = FeatureStream(str(dataset))
    with stream._reader._lock:
        in_fork(lambda: list(stream.epoch(0)))


def test_an_iterator_does_not_pass_a_fork(dataset: Path) -> None:
    batches = FeatureStream(str(dataset), global_batch_size=1, prefetch=1).epoch(0)
    next(batches)

    def go_on() -> None:
        with pytest.raises(RuntimeError, match="started before a fork"):
            next(batches)

    in_fork(go_on)
    assert len(list(batches)) == 39


class Epoch(IterableDataset[FeatureBatch]):
    def __init__(self, stream: FeatureStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[FeatureBatch]:
        return self.stream.epoch(0)


def test_in_a_worker_of_a_loader(dataset: Path) -> None:
    stream = FeatureStream(str(dataset), global_batch_size=12)
    wanted = [batch.key for batch in stream.epoch(0)]
    loader = DataLoader(Epoch(stream), batch_size=None, num_workers=1, timeout=LIMIT)
    assert [batch.key for batch in loader] == wanted


# --- Ends -----------------------------------------------------------------------------------------

AWAY = """
import sys
from fsspec.implementations.memory import MemoryFileSystem
import fsspec, glob, os
from shards import FeatureStream
from shards.storage import retry

retry.FIRST_PAUSE_S = retry.LONGEST_PAUSE_S = 1e6
folder, cache = sys.argv[1:]
fs = fsspec.filesystem("memory")
for path in glob.glob(f"{folder}/*"):
    fs.pipe_file(f"/d/{os.path.basename(path)}", open(path, "rb").read())
stream = FeatureStream("memory://d", cache_dir=cache, global_batch_size=2, shuffle=False)
whole = MemoryFileSystem.get_file


def gone(fs, path, local, **options):
    if "train-000000" not in path:
        raise ConnectionError("gone")
    whole(fs, path, local, **options)


MemoryFileSystem.get_file = gone
batches = stream.epoch(0)
print(next(batches).key)
"""


def test_a_process_that_ends_waits_for_no_store(dataset: Path, tmp_path: Path) -> None:
    """The threads that fetch and read ahead would wait for days before they try again."""
    command = [sys.executable, "-c", AWAY, str(dataset), str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['train-0', 'train-1']\n"


BUSY = """
import torch
from shards.streaming.prefetch import read_ahead

def make(stopped):
    yield "first"
    table = torch.zeros(8)
    while not stopped.is_set():
        table.view(2, 4)

items = read_ahead(make, 2, 10**9, len)
print(next(items))
"""


def test_a_process_may_end_while_batches_are_made() -> None:
    """The thread that makes them is almost always within a function of torch."""
    command = [sys.executable, "-c", BUSY]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LIMIT)
    assert (done.returncode, done.stdout) == (0, "first\n"), done.stderr


def test_whoever_is_stopped_asks_no_more() -> None:
    stop, asked = threading.Event(), []

    def call() -> None:
        asked.append(1)
        stop.set()
        raise ConnectionError("gone")

    with pytest.raises(OSError, match="s3://b/x: no longer needed"):
        retrying(call, "s3://b/x", stop=stop)
    assert len(asked) == 1


def test_what_arrives_after_closing_is_not_kept(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cache with a limit it would be in the way of whoever reads next."""
    closed, fetched, whole = threading.Event(), [], MemoryFileSystem.get_file

    def slow(fs: MemoryFileSystem, path: str, local: str, **options: object) -> None:
        if path.endswith(".tar") and not path.endswith("000000.tar"):
            assert closed.wait(LIMIT)
            fetched.append(path)
        whole(fs, path, local, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", slow)
    monkeypatch.setattr("shards.streaming.prefetch.JOIN_S", 0.1)
    stream = FeatureStream(remote, cache_dir=tmp_path, cache_limit="1GB", global_batch_size=2, shuffle=False)
    batches = stream.epoch(0)
    assert next(batches).key == ["train-0", "train-1"]
    batches.close()  # type: ignore[attr-defined]
    closed.set()
    deadline = time.monotonic() + LIMIT
    while {"shards-read", "shards-fetch"} & {thread.name for thread in threading.enumerate()}:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert fetched
    assert not stream._reader._open


# --- Threads --------------------------------------------------------------------------------------


def test_threads_give_results_in_order_faults_and_are_few() -> None:
    names = set()

    def work(i: int) -> int:
        names.add(threading.current_thread().name)
        time.sleep(0.001)
        return 10 // i

    with DaemonThreads(3, "few") as threads:
        assert list(threads.map(work, range(1, 8))) == [10, 5, 3, 2, 2, 1, 1]
        with pytest.raises(ZeroDivisionError):
            threads.submit(work, 0).result()
        assert sum(t.name == "few" for t in threading.enumerate()) == 3
    assert names == {"few"}
    assert "few" not in {t.name for t in threading.enumerate()}


def test_threads_that_are_closed_forget_what_waits() -> None:
    begun, go = threading.Event(), threading.Event()
    threads = DaemonThreads(1, "one")
    first, second = threads.submit(lambda: (begun.set(), go.wait(LIMIT))), threads.submit(go.wait)
    assert begun.wait(LIMIT)
    threads.shutdown(wait=False, cancel_futures=True)
    go.set()
    assert second.cancelled()
    assert first.result(LIMIT)


def test_one_host_does_not_wait_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """By SFTP whoever asks a file system waits for his turn, and for nobody who asks another one."""
    one, other = (fsspec.filesystem("memory", skip_instance_cache=True, n=n) for n in range(2))
    for fs in (one, other):
        fs.client = fs.ftp = Channel()
    asked = []
    sftp.call_serialized(
        one, lambda: in_thread(lambda: sftp.call_serialized(other, lambda: asked.append("other")))
    )
    assert asked == ["other"]


class Channel:
    """As much of paramiko's client, transport, SFTP session and channel as asking needs."""

    def get_transport(self) -> Channel:
        return self

    get_channel = get_transport

    def is_active(self) -> bool:
        return True

    def settimeout(self, seconds: float) -> None:
        pass


def in_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(LIMIT)
    assert not thread.is_alive()
