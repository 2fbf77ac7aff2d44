"""The bound of what a node must hold at a time: never below what the plan asks for, nor far above."""

from __future__ import annotations

import fcntl
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shards_support import corpus, global_keys, pack

from shards import FeatureStream
from shards.planning.cache_demand import working_set
from shards.planning.plan import make_plan, shards_ahead
from shards.storage.cache import LOCK


def wanted(plan, size: np.ndarray, first: int, share: int, epochs: int = 3) -> int:  # type: ignore[no-untyped-def]
    """The most that is wanted at any step of some epochs."""
    return max(
        int(size[shards_ahead(plan, epoch, step, first, share)].sum())
        for epoch in range(epochs)
        for step in range(plan.steps_per_epoch)
    )


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(sum),
    streams=st.sampled_from([1, 2, 3]),
    window=st.integers(1, 60),
    ranks=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 5),
)
def test_never_too_low(counts: list[int], streams: int, window: int, ranks: int, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shards.planning.plan.SMALLEST_WINDOW", 4)
        plan = make_plan(counts, 6, streams=streams, window=window, seed=seed)
    size = np.random.default_rng(seed).integers(1, 100, len(counts))
    share = 6 // ranks
    for rank in range(ranks):
        bound = working_set(plan, size, rank * share, share)
        assert wanted(plan, size, rank * share, share) <= bound <= size.sum()


def test_tight_for_equal_shards() -> None:
    plan = make_plan([1_000] * 64, 64, streams=4, window=4_096)
    size = np.full(64, 10)
    # Two windows of 1,024 rows overlap up to 4 shards of 1,000.
    assert working_set(plan, size, 0, 16) == 40
    assert working_set(plan, size, 0, 64) == 160
    assert wanted(plan, size, 0, 64, epochs=1) >= 120


@pytest.fixture
def remote() -> Iterator[str]:
    folder = f"memory://{uuid.uuid4().hex}/d"
    pack(corpus(200), folder)
    yield folder
    fsspec.filesystem("memory").rm(folder.removeprefix("memory:/"), recursive=True)


def stream(url: str, cache: Path, **options: Any) -> FeatureStream:
    return FeatureStream(url, global_batch_size=8, streams=4, cache_dir=cache, **options)


def held(cache: Path) -> int:
    """Bytes in a cache, counted while no one adds or removes a file."""
    with open(cache / LOCK, "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return sum(path.stat().st_size for path in cache.rglob("*-train-*"))


def test_a_limit_below_the_working_set_is_refused_with_the_number(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.planning.plan.SMALLEST_WINDOW", 8)
    options = {"window": 32, "rank": 1, "world_size": 2}
    with pytest.raises(
        ValueError, match=r"#train: cache_limit is 1000 bytes, .* set it to (\d+) or"
    ) as caught:
        stream(remote, tmp_path, cache_limit=1_000, **options)
    alone = int(re.findall(r"set it to (\d+)", str(caught.value))[0])
    with pytest.raises(ValueError, match=r"this node's 2 ranks") as caught:
        stream(remote, tmp_path, cache_limit=alone, local_world_size=2, **options)
    assert int(re.findall(r"set it to (\d+)", str(caught.value))[0]) > alone
    with pytest.raises(ValueError, match="local_world_size 3: must divide the 2 ranks"):
        stream(remote, tmp_path, cache_limit=alone, local_world_size=3, **options)


def test_streaming_within_the_limit(remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At exactly the number that the refusal names, two epochs pass, and the cache never holds more."""
    monkeypatch.setattr("shards.planning.plan.SMALLEST_WINDOW", 8)
    with pytest.raises(ValueError, match="set it to") as caught:
        stream(remote, tmp_path, window=32, cache_limit=1)
    limit = int(re.findall(r"set it to (\d+)", str(caught.value))[0])
    free = stream(remote, tmp_path / "free", window=32)
    tight = stream(remote, tmp_path / "tight", window=32, cache_limit=limit)
    whole = sum(shard.bytes for shard in tight.manifest.splits["train"].shards)
    assert limit < 0.6 * whole
    for epoch in range(2):
        wanted = global_keys([free], epoch)
        for batch, keys in zip(tight.epoch(epoch), wanted, strict=True):
            assert batch.key == [key for _, key in keys]
            assert held(tmp_path / "tight") <= limit
