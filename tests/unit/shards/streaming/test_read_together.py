"""Batches that are read together, and by many threads, are those that one thread reads one at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shards_support import corpus, pack, utterance, utterances

from shards import FeatureStream
from shards.cores import read_threads
from shards.planning.balance import balance_steps
from shards.streaming import scattered_reads
from shards.streaming.reader import ShardReader


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    pack(corpus(), tmp_path / "d")
    return str(tmp_path / "d")


def all_read(dataset: str, **options: Any) -> list[tuple[Any, ...]]:
    """Epoch, step, place, key, label and features of two epochs."""
    stream = FeatureStream(dataset, global_batch_size=4, seed=5, **options)
    return [
        (epoch, batch.step, place, key, label, {name: array.tolist() for name, array in features.items()})
        for epoch in range(2)
        for batch in stream.epoch(epoch)
        for place, key, label, features in utterances(batch)
    ]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("prefetch", [0, 1, 3, 20])
def test_the_same_batches(dataset: str, threads: int, prefetch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = all_read(dataset, threads=1, prefetch=0)
    assert len(wanted) == 80
    monkeypatch.setattr(scattered_reads, "SMALLEST_PART", 1)  # else so few bytes are read by one thread
    assert all_read(dataset, threads=threads, prefetch=prefetch) == wanted


def test_how_many_are_read_together(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch alone, so that it is there soon; then ever more; at most a quarter of the budget."""
    sizes: list[int] = []
    read = ShardReader._read

    def counted(
        reader: ShardReader, shard: np.ndarray, row: np.ndarray, batches: list[int], *rest: Any
    ) -> Any:
        sizes.append(len(batches))
        return read(reader, shard, row, batches, *rest)

    monkeypatch.setattr(ShardReader, "_read", counted)
    for prefetch, budget, wanted in [
        (4, 10**9, [1, 2, 4, 3]),
        (0, 10**9, [1] * 10),
        (4, 1, [1] * 10),
    ]:
        sizes.clear()
        list(FeatureStream(dataset, global_batch_size=4, prefetch=prefetch, prefetch_bytes=budget).epoch(0))
        assert sizes == wanted
    sizes.clear()
    list(FeatureStream(dataset, global_batch_size=4).epoch(0, start_step=7))
    assert sizes == [1, 2]


def read_until_error(stream: FeatureStream, message: str) -> list[list[str]]:
    """The keys of the batches before the error."""
    found: list[list[str]] = []

    def read() -> None:
        found.extend(batch.key for batch in stream.epoch(0))

    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read()
    return found


@pytest.mark.parametrize("how", ["cut off", "removed"])
def test_batches_before_a_damaged_one_are_read(dataset: str, how: str) -> None:
    """Also those that would have been read together with it."""
    stream = FeatureStream(dataset, global_batch_size=4, shuffle=False)
    keys = [batch.key for batch in stream.epoch(0)]
    *_, last = sorted(Path(dataset).glob("train-*.tar"))
    if how == "removed":
        last.unlink()
    else:
        os.truncate(last, last.stat().st_size // 2)
    found = read_until_error(FeatureStream(dataset, global_batch_size=4, shuffle=False), last.name)
    assert found == keys[: len(found)]
    assert 7 <= len(found) < 10


def test_a_file_that_shrinks_while_it_is_read(dataset: str) -> None:
    """What was open is read on up to the batch that is gone."""
    stream = FeatureStream(dataset, global_batch_size=4, shuffle=False)
    keys = [batch.key for batch in stream.epoch(0)]  # all shards are open now
    *_, last = sorted(Path(dataset).glob("train-*.tar"))
    os.truncate(last, 512)
    found = read_until_error(stream, rf"{last.name}: ends at .* within an array; damaged, pack it again")
    assert found == keys[: len(found)]
    assert 7 <= len(found) < 10


def test_more_arrays_than_one_call_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All utterances of the one shard follow each other, so they are one run, which is cut."""
    pack([utterance(i) for i in range(30)], tmp_path / "d", shard_bytes=10**9)
    stream = FeatureStream(str(tmp_path / "d"), global_batch_size=30, shuffle=False)
    wanted = [batch.features["audio"].values.tolist() for batch in stream.epoch(0)]
    for buffers in (2, 8, 14):
        monkeypatch.setattr(scattered_reads, "BUFFERS_PER_CALL", buffers)
        assert [batch.features["audio"].values.tolist() for batch in stream.epoch(0)] == wanted


def test_without_preadv(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = all_read(dataset)
    monkeypatch.delattr(os, "preadv")
    assert all_read(dataset) == wanted


@pytest.mark.parametrize(
    ("cores", "ranks", "threads"), [(1, 1, 1), (2, 1, 2), (16, 1, 8), (16, 4, 4), (16, 32, 1), (64, 8, 8)]
)
def test_threads_by_cores(cores: int, ranks: int, threads: int) -> None:
    assert read_threads(cores, ranks) == threads


def test_threads_are_at_least_one(dataset: str) -> None:
    with pytest.raises(ValueError, match="threads must be at least 1, not 0"):
        FeatureStream(dataset, threads=0)


def test_groups_of_steps_are_balanced_each_on_its_own() -> None:
    """The order of one window with many groups is that of its groups, each balanced alone."""
    work = np.random.default_rng(0).integers(20, 600, 8 * 4 * 5 + 6)
    order = balance_steps(work, 4, rotation=3)
    assert sorted(order.tolist()) == list(range(len(work)))
    for group in range(5):
        rows = order[32 * group : 32 * (group + 1)]
        alone = np.sort(rows)
        np.testing.assert_array_equal(rows, alone[balance_steps(work[alone], 4, rotation=3)])
