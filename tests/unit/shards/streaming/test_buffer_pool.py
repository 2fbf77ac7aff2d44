"""Buffers are reused, and only when nothing refers to them; reading ahead keeps order, bounds and faults."""

from __future__ import annotations

import gc
import os
import threading
import time
import zlib
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shards_support import corpus, pack
from support import LIMIT

from shards import FeatureStream
from shards.streaming.buffer_pool import PAGE, BufferPool, round_up
from shards.streaming.prefetch import read_ahead, to_device_ahead
from shards.streaming.scattered_reads import LARGEST_GAP, Reads, crc_mismatches, read_scattered

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("dataset")
    pack(corpus(), folder)
    return str(folder)


# --- The pool -------------------------------------------------------------------------------------


def test_a_buffer_returns_when_the_last_reference_goes() -> None:
    pool = BufferPool()
    lease = pool.lease(10_000)
    assert len(lease) == 10_000
    assert lease.data_ptr() % PAGE == 0
    assert pool.free_bytes == 0
    address, part = lease.data_ptr(), lease.view(torch.float16)[7:9]
    del lease
    assert pool.free_bytes == 0
    assert pool.lease(10_000).data_ptr() != address
    view = part.numpy()[1:]
    del part
    other = pool.lease(10_000)
    assert other.data_ptr() != address
    del view
    assert address in {pool.lease(10_000).data_ptr(), pool.lease(9_000).data_ptr()}


@given(st.lists(st.tuples(st.integers(0, 300_000), st.booleans(), st.integers(0, 9)), max_size=40))
@settings(deadline=None)
def test_leases_never_overlap_and_keep_their_content(moves: list[tuple[int, bool, int]]) -> None:
    pool = BufferPool(keep_bytes=1 << 20)
    kept: list[tuple[torch.Tensor, int]] = []
    for i, (size, keep, victim) in enumerate(moves):
        lease = pool.lease(size)
        lease.fill_(i)
        if keep:
            kept.append((lease[size // 2 :], i))
        elif kept:
            del kept[victim % len(kept)]
        del lease
        assert all((part == value).all() for part, value in kept)
        assert pool.free_bytes <= 1 << 20


def test_free_memory_is_bounded_and_the_latest_sizes_stay() -> None:
    pool = BufferPool(keep_bytes=1 << 20)
    leases = [pool.lease(300_000) for _ in range(20)]
    del leases
    assert 0 < pool.free_bytes <= 1 << 20
    large = pool.lease(800_000)
    address = large.data_ptr()
    del large
    assert pool.free_bytes <= 1 << 20
    assert pool.lease(800_000).data_ptr() == address


def test_a_pool_that_keeps_nothing() -> None:
    pool = BufferPool(keep_bytes=-1)
    lease = pool.lease(10_000)
    del lease
    assert pool.free_bytes == 0


@given(st.integers(0, 1 << 32))
def test_rounding_wastes_little(size: int) -> None:
    assert size <= round_up(size) <= max(size * 9 / 8, size + PAGE, PAGE)
    assert round_up(size) % PAGE == 0


def test_leasing_in_threads() -> None:
    pool = BufferPool(keep_bytes=1 << 20)
    wrong = []

    def work(number: int) -> None:
        for _ in range(300):
            lease = pool.lease(50_000 + number)
            lease.fill_(number)
            time.sleep(0)
            if not (lease == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- Batches and the pool -------------------------------------------------------------------------


def test_parts_of_batches_outlive_them(dataset: str) -> None:
    stream = FeatureStream(dataset, global_batch_size=12)
    kept, wanted = [], []
    for epoch in range(3):
        for batch in stream.epoch(epoch):
            part = batch.split(4)[1].features["audio"]
            kept.append(part.values[1:])
            wanted.append(part.values[1:].clone())
    assert all(torch.equal(one, other) for one, other in zip(kept, wanted, strict=True))


def test_buffers_are_few_and_reused(dataset: str) -> None:
    stream = FeatureStream(dataset, global_batch_size=4)
    addresses = set()
    for epoch in range(5):
        for batch in stream.epoch(epoch):
            addresses.add(batch.features["audio"].values.data_ptr())
            del batch
    # Those that lie ready, the one in work and the one that is being filled.
    assert len(addresses) <= 2 * (stream.prefetch + 2)


def test_keeping_labels_and_lengths_keeps_no_buffer(dataset: str) -> None:
    stream = FeatureStream(dataset, global_batch_size=12, prefetch=0)
    labels = [(batch.label, batch.features["audio"].offsets) for batch in stream.epoch(0)]
    gc.collect()
    assert len(labels) == 4
    assert stream._reader.pool.free_bytes <= 2 * 2 * 2 * PAGE


# --- Reading --------------------------------------------------------------------------------------


@given(data=st.data())
@settings(deadline=None)
def test_read_all_finds_every_array(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Arrays of any order, size and distance, in two files and for two targets."""
    folder = tmp_path_factory.mktemp("reads")
    content = [np.random.default_rng(i).integers(0, 256, 60_000).astype(np.uint8) for i in range(2)]
    files = {}
    for i, values in enumerate(content):
        (folder / str(i)).write_bytes(values.tobytes())
        files[i] = (os.open(folder / str(i), os.O_RDONLY), folder / str(i))
    array = st.tuples(st.integers(0, 1), st.integers(0, 50_000), st.integers(0, 3 * LARGEST_GAP // 2))
    reads, wanted = [], []
    for _ in range(2):
        chosen = data.draw(st.lists(array, max_size=12))
        chosen = [(f, o, min(n, 60_000 - o)) for f, o, n in chosen]
        file, offset, size = (np.array([c[k] for c in chosen], np.int64) for k in range(3))
        memory = np.zeros(size.sum(), np.uint8)
        reads.append(Reads(file, offset, size, memory.data))
        wanted.append((memory, np.concatenate([np.zeros(0), *(content[f][o : o + n] for f, o, n in chosen)])))
    with ThreadPoolExecutor(2) as helpers:
        read_scattered(files, reads, helpers, data.draw(st.integers(1, 3)))
    for fd, _ in files.values():
        os.close(fd)
    for memory, expected in wanted:
        np.testing.assert_array_equal(memory, expected)


def test_calls_cut_short_are_completed(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [batch.features["audio"].values for batch in FeatureStream(dataset).epoch(0)]
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: whole(fd, [buffers[0][:13]], offset))
    for one, other in zip(wanted, FeatureStream(dataset).epoch(0), strict=True):
        assert torch.equal(one, other.features["audio"].values)


def test_neighbours_are_read_by_one_call(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, whole = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *args: calls.append(args) or whole(*args))
    batches = list(FeatureStream(dataset, shuffle=False, prefetch=0, global_batch_size=40).epoch(0))
    assert len(batches) == 1
    assert len(calls) == len(list(Path(dataset).glob("train-*.tar")))


# --- Reading ahead --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "budget", "most"), [(4, 10**9, 4), (4, 250, 3), (4, 1, 1), (4, 0, 1), (1, 10**9, 1)]
)
def test_reading_ahead_stays_within_depth_and_budget(depth: int, budget: int, most: int) -> None:
    made = []

    def make(stopped: threading.Event) -> Generator[int, None, None]:
        for i in range(12):
            made.append(i)
            yield i

    items = read_ahead(make, depth, budget, lambda _: 100)
    for i, item in enumerate(items):
        assert item == i
        ahead, deadline = min(most, 11 - i), time.monotonic() + LIMIT
        while len(made) - (i + 1) < ahead and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)  # were it to go further, it would do so now
        assert len(made) - (i + 1) == ahead


def test_a_consumer_that_leaves_stops_the_thread() -> None:
    closed = threading.Event()

    def make(stopped: threading.Event) -> Generator[int, None, None]:
        try:
            yield from range(10**9)
        finally:
            closed.set()

    items = read_ahead(make, 2, 10**9, lambda _: 1)
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]
    assert closed.is_set()


def test_a_fault_comes_after_the_items_before_it() -> None:
    def make(stopped: threading.Event) -> Generator[int, None, None]:
        yield 1
        yield 2
        raise ValueError("damaged")

    items = read_ahead(make, 4, 10**9, lambda _: 1)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="damaged"):
        next(items)


def test_to_device_ahead_changes_nothing_on_the_cpu(dataset: str) -> None:
    stream = FeatureStream(dataset)
    for one, other in zip(stream.epoch(0), stream.epoch(0, device="cpu"), strict=True):
        assert one.key == other.key
        assert torch.equal(one.features["video"].values, other.features["video"].values)
    assert len(list(to_device_ahead(stream.epoch(0), "cpu"))) == stream.steps_per_epoch


@pytest.mark.gpu
@needs_cuda
def test_copies_to_the_gpu_are_right_while_buffers_are_reused(dataset: str) -> None:
    stream = FeatureStream(dataset, global_batch_size=4)
    busy = torch.randn(4096, 4096, device="cuda")
    for epoch in range(10):
        wanted = [batch.features["audio"].values.clone() for batch in stream.epoch(epoch)]
        moved = []
        for batch in stream.epoch(epoch, device="cuda"):
            busy = busy @ busy / 64
            moved.append(batch.features["audio"].values.clone())
        by_hand = []
        for batch in stream.epoch(epoch):
            assert batch.features["audio"].values.is_pinned()
            busy = busy @ busy / 64
            by_hand.append(batch.features["audio"].values.to("cuda", non_blocking=True))
        for one, two, three in zip(wanted, moved, by_hand, strict=True):
            assert torch.equal(one, two.cpu())
            assert torch.equal(one, three.cpu())


def test_an_array_without_a_recorded_crc_is_not_compared() -> None:
    content = b"abcdefgh"
    reads = Reads(np.zeros(3, np.int64), np.array([0, 3, 5]), np.array([3, 2, 3]), memoryview(content))
    crc = np.array([zlib.crc32(b"abc"), -1, zlib.crc32(b"another")])
    with ThreadPoolExecutor(1) as helpers:
        assert crc_mismatches(reads, crc, helpers, 2) == [2]
