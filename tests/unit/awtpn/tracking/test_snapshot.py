"""What is collected of a validation: the same utterances for every number of ranks, in a bounded amount."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support import ALONE, CLASSES, DIMS, LIMIT, small_model

from awtpn.distributed.world import World
from awtpn.model.network import AWTPN
from awtpn.run.data import open_evaluation
from awtpn.tracking import snapshot as snapshots
from awtpn.tracking.snapshot import BUCKET, BUCKETS, Snapshot, SnapshotCollector, evenly_spaced, project
from awtpn.training.evaluate import evaluate


class Exchange:
    """Two ranks as two threads: each learns what both gave."""

    def __init__(self) -> None:
        self.given: list[Any] = [None, None]
        self.barrier = threading.Barrier(2, timeout=LIMIT)

    def swap(self, rank: int, value: Any) -> list[Any]:
        self.given[rank] = value
        self.barrier.wait()
        everyone = list(self.given)
        self.barrier.wait()
        return everyone


class Thread(World):
    exchange: Exchange

    def all_gather_object(self, value: Any) -> list[Any]:
        return self.exchange.swap(self.rank, value)

    def sum(self, values: np.ndarray) -> np.ndarray:
        return np.sum(self.all_gather_object(values), axis=0)


def look(model: AWTPN, corpus: str, world: World, figures: bool = True) -> Snapshot:
    stream = open_evaluation({"url": corpus, "split": "train"}, model.config.modalities, world)
    collector = SnapshotCollector(model, stream, world, figures)
    evaluate(model, stream, world, on_output=collector.add)
    return collector.gather()


def on_two_ranks(action: Callable[[World], Snapshot]) -> list[Snapshot]:
    exchange, found = Exchange(), [None, None]

    def of_rank(rank: int) -> None:
        world = Thread(rank, 2, rank, ALONE.device, None, "none")
        object.__setattr__(world, "exchange", exchange)
        found[rank] = action(world)  # type: ignore[call-overload]

    threads = [threading.Thread(target=of_rank, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert all(found)
    return found  # type: ignore[return-value]


@pytest.fixture
def model() -> AWTPN:
    return small_model(dtype=torch.float32, prototypes_per_class=2).eval()


def test_ranks_see_together_what_one_sees_alone(
    model: AWTPN, corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "EMBEDDED", 20)  # of 52, so that a choice is made
    alone = look(model, corpus, ALONE)
    for of_rank in on_two_ranks(lambda world: look(small_model_like(model), corpus, world)):
        for modality in DIMS:
            assert of_rank.reliability[modality].tolist() == alone.reliability[modality].tolist()
        assert [e.key for e in of_rank.examples] == [e.key for e in alone.examples]
        for ours, theirs in zip(of_rank.examples, alone.examples, strict=True):
            assert (ours.label, ours.predicted) == (theirs.label, theirs.predicted)
            for modality in DIMS:
                np.testing.assert_allclose(ours.weights[modality], theirs.weights[modality], atol=1e-6)
        assert of_rank.embeddings is not None
        assert alone.embeddings is not None
        assert of_rank.embeddings.key == alone.embeddings.key
        assert of_rank.embeddings.label.tolist() == alone.embeddings.label.tolist()
        np.testing.assert_allclose(of_rank.embeddings.vectors, alone.embeddings.vectors, atol=1e-5)


def small_model_like(model: AWTPN) -> AWTPN:
    other = AWTPN(model.config, DIMS, CLASSES)
    other.load_state_dict(model.state_dict())
    return other.eval()


def test_what_is_collected(model: AWTPN, corpus: str) -> None:
    seen = look(model, corpus, ALONE)
    assert len(seen.examples) == snapshots.EXAMPLES
    for example in seen.examples:
        for weights in example.weights.values():
            assert weights.sum() == pytest.approx(1 if weights.size else 0, abs=1e-5)
        assert 1 / len(CLASSES) <= example.probability <= 1
    stream = open_evaluation({"url": corpus, "split": "train"}, ["audio", "video"], ALONE)
    keys = [key for key, _ in stream.metadata()]
    assert seen.embeddings is not None
    assert seen.embeddings.key == keys, "fewer than the limit: all, in plan order"
    assert seen.prototypes.tolist() == seen.embeddings.prototypes.tolist()
    assert seen.prototypes.shape == (6, 8)
    steps = dict.fromkeys(DIMS, 0)
    for batch in stream.epoch(0):
        for m in DIMS:
            steps[m] += len(batch.features[m].values)
    assert {m: int(counts.sum()) for m, counts in seen.reliability.items()} == steps
    bare = look(model, corpus, ALONE, figures=False)
    assert bare.examples == []
    assert bare.embeddings is None
    assert bare.reliability["audio"].tolist() == seen.reliability["audio"].tolist()


def test_uniform_weights_are_one(corpus: str) -> None:
    model = small_model(dtype=torch.float32, awm="uniform").eval()
    for counts in look(model, corpus, ALONE, figures=False).reliability.values():
        assert counts[round(1 / BUCKET)] == counts.sum() > 0
        assert len(counts) == BUCKETS


def test_fused_vectors_lie_among_the_steps(corpus: str) -> None:
    """Divided by the fusion weights they are means of pooled vectors, whatever the weights are."""
    small, large = (
        small_model(dtype=torch.float32, awm="uniform", alpha_audio=a, beta_video=a).eval()
        for a in (0.5, 7.0)
    )
    one, other = (look(model, corpus, ALONE).embeddings for model in (small, large))
    assert one is not None
    assert other is not None
    np.testing.assert_allclose(one.vectors, other.vectors, rtol=1e-5, atol=1e-5)


def test_positions_are_spread_over_the_plan() -> None:
    assert evenly_spaced(4, 6).tolist() == [0, 1, 2, 3]
    assert evenly_spaced(60, 6).tolist() == [5, 15, 25, 35, 45, 55]
    assert len(set(evenly_spaced(1_003, 1_000).tolist())) == 1_000


def test_wide_vectors_keep_their_distances() -> None:
    vectors = torch.randn(40, 4_096, generator=torch.Generator().manual_seed(1))
    narrow = project(vectors)
    assert narrow.shape == (40, snapshots.EMBEDDED_DIM)
    far, near = torch.pdist(vectors), torch.pdist(narrow)
    assert float((near / far - 1).abs().max()) < 0.25
    torch.testing.assert_close(project(vectors[:5]), narrow[:5])
    assert torch.equal(project(vectors[:, :8]), vectors[:, :8])
