"""What simulation tells, against what streams do."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shards_support import DIMS, corpus, pack, utterance

from shards import FeatureStream
from shards.planning.plan import make_plan, places_of_rank, rows_of_step, shards_of_places
from shards.storage.store import open_dataset
from shards.tools.simulate import (
    SplitSizes,
    _mean_distance,
    format_report,
    simulate,
    split_sizes,
    synthetic_sizes,
)


def layout(folder: Path, split: str = "train") -> SplitSizes:
    store, manifest, _ = open_dataset(str(folder))
    return split_sizes(store, manifest, split)


@given(data=st.data())
@settings(deadline=None)
def test_shards_of_places_are_those_that_an_epoch_reads(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any))
    plan = make_plan(counts, 12, streams=data.draw(st.sampled_from([1, 2, 3, 4, 6, 12])), seed=1)
    world_size = data.draw(st.sampled_from([w for w in (1, 2, 3, 4, 6, 12) if plan.streams % w == 0]))
    for rank in range(world_size):
        places = places_of_rank(12, rank, world_size)
        read = set()
        for step in range(plan.steps_per_epoch):
            read |= set(rows_of_step(plan, 0, step, *places)[1].tolist())
        assert shards_of_places(plan, *places).tolist() == sorted(read)


def test_a_packed_dataset(tmp_path: Path) -> None:
    manifest = pack(corpus(), tmp_path / "d")
    report = simulate(layout(tmp_path / "d"), 2, 2, 12)
    stream = FeatureStream(str(tmp_path / "d"), global_batch_size=12)
    assert (report.steps_per_epoch, report.streams) == (stream.steps_per_epoch, stream.streams)
    assert report.last_step == 4
    size = sum(s.bytes + s.index_bytes for s in manifest.splits["train"].shards)
    assert size <= report.fetched_bytes < 2 * size
    assert report.node_bytes.low <= report.cache_bytes <= size
    assert report.sampled_ranks == 4
    text = format_report(report)
    assert "d#train: 40 utterances" in text
    assert "lengths as indexed" in text
    assert "2 nodes x 2 GPUs" in text


def test_lengths_are_those_of_the_dataset(tmp_path: Path) -> None:
    """Where all utterances are of one length no rank has more than another, however they are dealt."""
    same = [
        utterance(i, "all", features={name: np.ones((4, dim)) for name, dim in DIMS.items()})
        for i in range(96)
    ]
    pack(same, tmp_path / "d")
    report = simulate(layout(tmp_path / "d"), 2, 2, 12)
    assert report.excess.high == report.excess_unbalanced.high == 0
    long = [
        replace(s, features={"audio": np.ones((64, 5))}) if i % 16 == 0 else s for i, s in enumerate(same)
    ]
    pack(long, tmp_path / "e")
    # As streams do, whatever is asked for.
    assert layout(tmp_path / "e", "train").name.endswith("#all")
    assert simulate(layout(tmp_path / "e"), 2, 2, 12).excess_unbalanced.high > 0.5


def test_one_rank_fetches_all_and_is_its_own_mean() -> None:
    report = simulate(synthetic_sizes("1000x10"), 1, 1, 8)
    assert report.node_shards.low == report.node_shards.high == 10
    assert report.fetched_bytes == report.sizes.bytes.sum()
    assert report.excess.high == report.excess_unbalanced.high == 0


def test_balance_and_shuffle_of_a_cluster() -> None:
    report = simulate(synthetic_sizes("200000x400"), 8, 4, 1024)
    assert report.excess.mean < 0.5 * report.excess_unbalanced.mean
    assert report.distance == pytest.approx(1, abs=0.1)
    assert report.neighbor_distance < report.distance
    assert report.fetched_bytes < 1.2 * report.sizes.bytes.sum()
    assert report.node_shards.high < 400 / 8 + 3


def test_512_nodes_in_seconds() -> None:
    begin = time.perf_counter()
    report = simulate(synthetic_sizes("100000000x10000"), 512, 8, 131_072)
    assert time.perf_counter() - begin < 60
    assert report.steps_per_epoch == 763
    assert report.sampled_ranks == 512
    assert report.fetched_bytes < 1.1 * report.sizes.bytes.sum()


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=30))
def test_mean_distance(positions: list[int]) -> None:
    pairs = [abs(a - b) for i, a in enumerate(positions) for b in positions[:i]]
    assert _mean_distance(np.array(positions)) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("size", ["", "10", "0x4", "4x", "ax4", "4x4x4"])
def test_refused_sizes(size: str) -> None:
    with pytest.raises(ValueError, match="must be UTTERANCESxSHARDS"):
        synthetic_sizes(size)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="12 ranks do not divide the global batch of 32"):
        simulate(synthetic_sizes("100x4"), 3, 4, 32)
    with pytest.raises(ValueError, match="at least one of each"):
        simulate(synthetic_sizes("100x4"), 0, 4, 32)
    pack(corpus(4, 0), tmp_path / "d")
    with pytest.raises(ValueError, match="no split 'dev'"):
        layout(tmp_path / "d", "dev")
