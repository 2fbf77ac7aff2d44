"""What is damaged is left out where that is asked for, and changes nothing else; else it stops reading."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from shards_support import corpus, global_keys, pack

from shards import FeatureStream

SHARD = "train-000003"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    pack(corpus(), tmp_path / "d")
    return tmp_path / "d"


def read(url: Path | str, ranks: int = 1, **options: Any) -> list[FeatureStream]:
    common = {"global_batch_size": 12, "world_size": ranks, "seed": 3, "skip_damaged": True} | options
    return [FeatureStream(str(url), rank=rank, **common) for rank in range(ranks)]


def left_out(streams: list[FeatureStream], epoch: int = 0) -> dict[str, str]:
    return {k: v for s in streams for batch in s.epoch(epoch) for k, v in batch.damaged.items()}


def keys_of(dataset: Path) -> list[str]:
    with np.load(dataset / f"{SHARD}.index.npz") as index:
        return index["key"].tolist()  # type: ignore[no-any-return]


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)


def cut(dataset: Path) -> None:
    os.truncate(dataset / f"{SHARD}.tar", 700)


def remove(dataset: Path) -> None:
    (dataset / f"{SHARD}.tar").unlink()


def spoil_index(dataset: Path) -> None:
    flip(dataset / f"{SHARD}.index.npz", 1_000)


def remove_index(dataset: Path) -> None:
    (dataset / f"{SHARD}.index.npz").unlink()


@pytest.mark.parametrize(
    ("damage", "cause"),
    [(cut, "700 bytes"), (remove, "no such file"), (spoil_index, "not the index"), (remove_index, "no such")],
)
@pytest.mark.parametrize("balance", [True, False])
def test_a_damaged_shard_leaves_its_places_empty(
    dataset: Path, damage: Callable[[Path], None], cause: str, balance: bool
) -> None:
    keys = keys_of(dataset)
    whole = global_keys(read(dataset, balance=balance), 1)
    damage(dataset)
    with pytest.raises(ValueError, match=SHARD):
        list(read(dataset, balance=balance, skip_damaged=False)[0].epoch(1))
    alone = read(dataset, balance=balance)
    found = global_keys(alone, 1)
    assert len(found) == len(whole)
    if "index" not in damage.__name__ or not balance:  # lengths are known: all others stay where they were
        assert found == [[(place, key) for place, key in step if key not in keys] for step in whole]
    assert sorted(k for step in found for _, k in step) == sorted(
        k for step in whole for _, k in step if k not in keys
    )
    missing = left_out(alone, 1)
    known = keys if "index" not in damage.__name__ else [f"{SHARD}.tar#{row}" for row in range(len(keys))]
    assert sorted(missing) == sorted(known)
    assert len(set(missing.values())) == 1
    assert cause in next(iter(missing.values()))
    for ranks in (2, 12):
        several = read(dataset, ranks, balance=balance)
        assert global_keys(several, 1) == found
        assert left_out(several, 1) == missing


def test_a_step_may_be_left_with_nothing(dataset: Path) -> None:
    for tar in dataset.glob("*.tar"):
        tar.unlink()
    batches = list(read(dataset)[0].epoch(0))
    assert [len(batch) for batch in batches] == [0] * 4
    assert [len(batch.damaged) for batch in batches] == [12, 12, 12, 4]
    assert batches[0].features["audio"].values.shape == (0, 5)


def test_a_shard_that_shrinks_while_open(dataset: Path) -> None:
    stream = read(dataset)
    list(stream[0].epoch(0))
    cut(dataset)
    assert sorted(left_out(stream, 1)) == sorted(keys_of(dataset))


def test_a_shard_that_shrinks_in_the_cache_is_fetched_again(remote: str, tmp_path: Path) -> None:
    stream = read(remote, cache_dir=tmp_path)
    wanted = global_keys(stream, 1)
    for tar in tmp_path.rglob("*.tar"):
        os.truncate(tar, 700)
    assert global_keys(stream, 1) == wanted
    assert left_out(stream) == {}


def test_what_a_store_has_not_is_damaged_but_not_a_store_that_is_away(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.storage.retry.FIRST_PAUSE_S", 0.001)
    fs, folder = fsspec.filesystem("memory"), remote.removeprefix("memory:/")
    fs.rm(f"{folder}/{SHARD}.tar")
    replaced = f"{folder}/train-000005.tar"
    fs.pipe_file(replaced, bytes(fs.size(replaced)))
    causes = set(left_out(read(remote, cache_dir=tmp_path / "1")).values())
    assert {SHARD in cause for cause in causes} == {True, False}
    assert any("3 attempts failed" in cause and "train-000005" in cause for cause in causes)

    fetched, whole = [], MemoryFileSystem.get_file

    def away(fs: MemoryFileSystem, path: str, local: str, **options: Any) -> None:
        fetched.append(path)
        if "train-000007.tar" in path:
            raise ConnectionError("gone")
        whole(fs, path, local, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", away)
    stream = read(remote, cache_dir=tmp_path / "2")
    with pytest.raises(OSError, match=r"train-000007.tar: 8 attempts failed"):
        left_out(stream)


def test_what_is_damaged_is_asked_for_once(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time would move a whole shard, several times."""
    monkeypatch.setattr("shards.storage.retry.FIRST_PAUSE_S", 0.001)
    fs, path = fsspec.filesystem("memory"), f"{remote.removeprefix('memory:/')}/{SHARD}.tar"
    fs.pipe_file(path, bytes(fs.size(path)))
    fetched, whole = [], MemoryFileSystem.get_file
    monkeypatch.setattr(
        MemoryFileSystem, "get_file", lambda fs, *a, **k: fetched.append(a[0]) or whole(fs, *a, **k)
    )
    stream = read(remote, cache_dir=tmp_path)
    assert left_out(stream)
    before = fetched.count(path)
    assert left_out(stream, 1)
    assert fetched.count(path) == before


def test_statistics_of_a_selection_are_of_what_is_left(dataset: Path) -> None:
    cut(dataset)
    found = read(dataset, select={"fold": [0, 1]})[0].statistics()["audio"]
    keys = keys_of(dataset)
    values = [s.features["audio"] for s in corpus(40, 0) if s.meta["fold"] in (0, 1) and s.key not in keys]
    assert found.count == sum(len(v) for v in values)  # type: ignore[arg-type]


# --- CRC-32 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [0, 4])
def test_a_flipped_bit_is_seen_where_arrays_are_checked(dataset: Path, prefetch: int) -> None:
    whole = {k: None for step in global_keys(read(dataset), 0) for _, k in step}
    with np.load(dataset / f"{SHARD}.index.npz") as index:
        row = int(np.flatnonzero(index["steps.video"])[0])
        key, at = str(index["key"][row]), int(index["offset.video"][row])
    flip(dataset / f"{SHARD}.tar", at)
    assert left_out(read(dataset)) == {}
    with pytest.raises(
        ValueError, match=rf"{SHARD}.tar: the CRC-32 of video of '{key}' is not that of the index"
    ):
        list(read(dataset, check_crc=True, skip_damaged=False, prefetch=prefetch)[0].epoch(0))
    stream = read(dataset, check_crc=True, prefetch=prefetch)
    for epoch in (0, 1):
        kept = {k for step in global_keys(stream, epoch) for _, k in step}
        assert set(whole) - kept == {key}
    assert list(left_out(stream)) == [key]
    # An utterance of which only the other modality is read is whole.
    assert left_out(read(dataset, check_crc=True, modalities=["audio"])) == {}


def test_checking_changes_nothing_that_is_whole(dataset: Path) -> None:
    plain, checked = (read(dataset, check_crc=check)[0].epoch(0) for check in (False, True))
    for one, other in zip(plain, checked, strict=True):
        assert one.key == other.key
        for name in one.features:
            assert torch.equal(one.features[name].values, other.features[name].values)
