"""What is collected of a validation: the same utterances for every number of ranks, in a bounded amount."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support import ALONE, CLASSES, DIMS, LIMIT, small_model

import shards
from awtpn.distributed.world import World
from awtpn.model.network import AWTPN
from awtpn.model.settings import ModelConfig, modalities_as_map
from awtpn.model.task import Task, predicted_values
from awtpn.run.data import open_evaluation
from awtpn.tracking import snapshot as snapshots
from awtpn.tracking.snapshot import BUCKET, BUCKETS, Snapshot, SnapshotCollector, evenly_spaced, project
from awtpn.training.evaluate import evaluate
from shards import Sample


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
    stream = open_evaluation(
        {"url": corpus, "split": "train"}, list(model.config.modalities), world, model.task
    )
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
            assert (ours.caption.truth, ours.caption.right) == (theirs.caption.truth, theirs.caption.right)
            for modality in DIMS:
                np.testing.assert_allclose(ours.weights[modality], theirs.weights[modality], atol=1e-6)
        assert of_rank.embeddings is not None
        assert alone.embeddings is not None
        assert of_rank.embeddings.key == alone.embeddings.key
        assert of_rank.embeddings.label == alone.embeddings.label
        np.testing.assert_allclose(of_rank.embeddings.vectors, alone.embeddings.vectors, atol=1e-5)


def small_model_like(model: AWTPN) -> AWTPN:
    other = AWTPN(model.config, DIMS, CLASSES, task=model.task)
    other.load_state_dict(model.state_dict())
    return other.eval()


def test_what_is_collected(model: AWTPN, corpus: str) -> None:
    seen = look(model, corpus, ALONE)
    assert len(seen.examples) == snapshots.EXAMPLES
    for example in seen.examples:
        for weights in example.weights.values():
            assert weights.sum() == pytest.approx(1 if weights.size else 0, abs=1e-5)
        assert example.caption.truth in CLASSES
        predicted, percent, _ = example.caption.answer.split()
        assert 100 / len(CLASSES) - 1 <= int(percent) <= 100
        assert example.caption.right == (predicted == example.caption.truth)
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


TASKS = [
    Task("regression", ["valence", "arousal"], [[-1, 1], [1, 5]], levels=5),
    Task("regression", ["arousal"], [[1, 5]], levels=9, head="linear"),
    Task("multilabel", ["happy", "sad", "angry"]),
]


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of 30 utterances with values and labels; every third lacks the arousal, some lack labels."""
    rng = np.random.default_rng(3)
    samples = []
    for i in range(30):
        made = {m: rng.normal(size=(1 + i % 4, dim)).astype(np.float32) for m, dim in DIMS.items()}
        values = {"valence": i / 20 - 0.75, "arousal": None if i % 3 == 0 else 1 + i / 10}
        labels = {"happy": i % 2, "sad": (i // 2) % 2, "angry": None if i % 5 == 0 else 0}
        samples.append(Sample(f"u{i:02d}", "train", CLASSES[0], made, values | labels))
    out = str(tmp_path_factory.mktemp("targets") / "data")
    shards.pack(samples, out, classes=CLASSES, progress=False)
    return out


def task_model(task: Task) -> AWTPN:
    torch.manual_seed(2)
    config = ModelConfig(shared_dim=8, dropout=0.0, modalities=modalities_as_map(list(DIMS)))
    return AWTPN(config, DIMS, [], task=task).eval()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.type} {len(task.names)}")
def test_ranks_see_together_what_one_sees_alone_of_every_task(
    task: Task, targets: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "EMBEDDED", 7)
    monkeypatch.setattr(snapshots, "SCATTERED", 11)
    model = task_model(task)
    alone = look(model, targets, ALONE)
    for of_rank in on_two_ranks(lambda world: look(small_model_like(model), targets, world)):
        assert [e.key for e in of_rank.examples] == [e.key for e in alone.examples]
        assert [e.caption.truth for e in of_rank.examples] == [e.caption.truth for e in alone.examples]
        assert of_rank.embeddings is not None
        assert alone.embeddings is not None
        assert len(of_rank.embeddings.key) == 7
        assert of_rank.embeddings.key == alone.embeddings.key
        assert of_rank.embeddings.label == alone.embeddings.label
        assert of_rank.embeddings.shown_as == alone.embeddings.shown_as
        np.testing.assert_allclose(of_rank.embeddings.vectors, alone.embeddings.vectors, atol=1e-5)
        assert (of_rank.values is None) == (alone.values is None) == (task.type == "multilabel")
        if of_rank.values is not None and alone.values is not None:
            assert of_rank.values.truth.shape == (11, len(task.names))
            np.testing.assert_array_equal(of_rank.values.truth, alone.values.truth)
            np.testing.assert_allclose(of_rank.values.predicted, alone.values.predicted, atol=1e-5)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.type} {len(task.names)}")
def test_values_and_words_are_those_of_the_utterances(task: Task, targets: str) -> None:
    model = task_model(task)
    seen = look(model, targets, ALONE)
    stream = open_evaluation({"url": targets, "split": "train"}, list(DIMS), ALONE, task)
    truth = stream.target_values()
    [batch] = stream.epoch(0)
    logits = model(batch.features).logits
    assert seen.task == task
    assert seen.embeddings is not None
    assert seen.embeddings.key == batch.key
    assert seen.embeddings.prototypes.shape == (len(task.states), 8)
    if task.type == "multilabel":
        names = [[task.names[e] for e in np.flatnonzero(row > 0)] for row in truth]
        assert seen.embeddings.label == [" + ".join(of) or "none" for of in names]
        assert set(seen.embeddings.label) == {"none", "happy", "sad", "happy + sad"}
        answers = [[task.names[e] for e in np.flatnonzero(row > 0)] for row in logits.detach().numpy()]
        assert seen.embeddings.predicted == [" + ".join(of) or "none" for of in answers]
        return
    assert seen.values is not None
    np.testing.assert_array_equal(seen.values.truth, truth)
    np.testing.assert_allclose(
        seen.values.predicted, predicted_values(logits.double(), task).detach(), atol=1e-9
    )
    assert np.isnan(truth).sum() == (10 if len(task.names) == 2 else 0), "without a value it is not evaluated"
    for row, words in zip(truth, seen.embeddings.label, strict=True):
        for name, value in zip(task.names, row, strict=True):
            assert f"{name} unknown" in words if np.isnan(value) else f"{name} {value + 0.0:.3g}" in words


def test_one_utterance_is_enough(targets: str) -> None:
    """Its arousal is missing: what is shown has no truth of that dimension."""
    task = TASKS[0]
    model = task_model(task)
    source = {"url": targets, "split": "train", "select": {"valence": [-0.75]}}
    stream = open_evaluation(source, list(DIMS), ALONE, task)
    collector = SnapshotCollector(model, stream, ALONE, figures=True)
    figures = evaluate(model, stream, ALONE, on_output=collector.add)
    seen = collector.gather()
    assert figures["utterances"] == 1
    assert [e.caption.truth for e in seen.examples] == ["true -0.75, unknown"]
    assert seen.embeddings is not None
    assert seen.embeddings.shown_as == ["valence -1"]
    assert seen.values is not None
    assert seen.values.truth[0, 0] == -0.75
    assert np.isnan(seen.values.truth[0, 1])
    assert np.isfinite(seen.values.predicted).all()


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
