"""Streams of each kind of target: the values of every utterance, in the same places for any ranks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from targets_support import AFFECT, FURTHER, corpus, number, of_columns, pack, unlabeled

from shards import FeatureBatch, FeatureStream
from shards.format.schema import Sample
from shards.format.targets import CLASSES, Target


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("targets") / "d"
    pack(corpus(), folder)
    return folder


def read(url: Path | str, ranks: int = 1, **options: Any) -> list[FeatureStream]:
    common = {"global_batch_size": 12, "world_size": ranks, "seed": 3} | options
    return [FeatureStream(str(url), rank=rank, **common) for rank in range(ranks)]


def places(streams: list[FeatureStream], epoch: int = 0) -> list[dict[int, tuple[str, int, list[str]]]]:
    """Per step the key, label and target at each place; as text, where NaN is equal to itself."""
    found = []
    for batches in zip(*(stream.epoch(epoch) for stream in streams), strict=True):
        rows = [
            (int(b.place[i]), (b.key[i], int(b.label[i]), [str(v) for v in b.target[i].tolist()]))
            for b in batches
            for i in range(len(b))
        ]
        found.append(dict(sorted(rows)))
    return found


# --- Values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, *FURTHER])
def test_each_utterance_has_its_values(dataset: Path, name: str | None) -> None:
    target = AFFECT if name is None else FURTHER[name]
    [stream] = read(dataset, target=name)
    assert (stream.target, stream.classes, stream.class_counts().tolist()) == (target, [], [])
    keys = []
    for batch in stream.epoch(1):
        assert batch.target.dtype == batch.host_target.dtype == torch.float64
        assert batch.target.shape == (len(batch), len(target.columns))
        assert batch.label.tolist() == [0] * len(batch)
        for key, values in zip(batch.key, batch.target.tolist(), strict=True):
            np.testing.assert_array_equal(values, of_columns(number(key), target))
        keys += batch.key
    known = [i for i in range(40) if not np.isnan(of_columns(i, target)).all()]
    assert sorted(map(number, keys)) == known
    assert (stream.num_utterances, stream.without_target) == (len(known), 40 - len(known))
    np.testing.assert_array_equal(stream.target_values(), [of_columns(i, target) for i in known])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target": "some"},
        {"target": "valence,joy", "task": "multilabel", "select": {"sentiment": [0, 1, 2, 3]}},
        {"target": "speaker"},
        {"target": "some", "balance": False, "shuffle": False},
    ],
)
def test_any_number_of_ranks_sees_the_same_targets_in_the_same_places(
    dataset: Path, options: dict[str, Any]
) -> None:
    alone = places(read(dataset, **options), 2)
    for ranks in (2, 3, 4, 6, 12):
        streams = read(dataset, ranks, **options)
        assert places(streams, 2) == alone
        values = [stream.target_values() for stream in streams]
        for other in values[1:]:
            np.testing.assert_array_equal(other, values[0])


def test_a_resumed_epoch_has_the_same_targets(dataset: Path) -> None:
    [stream] = read(dataset, target="emotions")
    expected = [batch.target for batch in stream.epoch(1)]
    for step, batch in enumerate(stream.epoch(1, 2)):
        assert torch.equal(batch.target, expected[2 + step])


def test_batches_carry_their_targets(dataset: Path) -> None:
    [stream] = read(dataset)
    batch = next(iter(stream.epoch(0)))
    assert torch.equal(batch.target, batch.host_target) or batch.target.isnan().any()
    parts = batch.split(3)
    for name in ("target", "host_target"):
        joined = torch.cat([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(batch, name))
    assert [part.target.shape for part in batch.cut([0, 0, 5, 12])] == [(0, 2), (5, 2), (7, 2)]
    moved = batch.to("meta")
    assert (moved.target.device.type, moved.host_target.device.type) == ("meta", "cpu")
    kept = batch.target.clone()
    del batch
    assert torch.equal(parts[0].target.nan_to_num(), kept[:4].nan_to_num()), "the memory is not reused"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_targets_are_pinned_and_copied(dataset: Path) -> None:
    for target in (None, "speaker"):
        [stream] = read(dataset, target=target)
        batch: FeatureBatch
        for batch in stream.epoch(0, device="cuda"):
            assert batch.target.device.type == "cuda"
            np.testing.assert_array_equal(batch.target.cpu(), batch.host_target)
        assert next(iter(stream.epoch(0))).pin().target.is_pinned() or target


def test_selecting_by_a_column_that_some_utterances_lack(dataset: Path) -> None:
    [stream] = read(dataset, select={"activation": [3, 4.0]}, target="sentiment")
    found = sorted(number(key) for batch in stream.epoch(0) for key in batch.key)
    assert found == [i for i in range(40) if i % 3 == 0 and i % 5 in (3, 4)]
    with pytest.raises(ValueError, match=r"no utterance has activation \[7\]; it has \[0.0, 1.0, 2"):
        read(dataset, select={"activation": 7})
    with pytest.raises(ValueError, match=r"activation \['3'\].*the column holds numbers"):
        read(dataset, select={"activation": "3"})
    with pytest.raises(ValueError, match="no utterance has activation"):
        read(dataset, select={"activation": math.nan})


def test_utterances_without_a_target_are_left_out_of_everything(dataset: Path) -> None:
    [stream] = read(dataset, target="some", select={"speaker": ["s0", "s1"]})
    known = [i for i in range(40) if i % 4 == 0]
    assert (stream.num_utterances, stream.without_target) == (len(known), 10)
    assert stream.steps_per_epoch == 1
    assert [number(key) for key, _ in stream.metadata()] == known
    # They are not what data.select forgot: that are those of the other speakers.
    assert stream.unselected([stream]) == 20
    [everything] = read(dataset, target="some")
    assert everything.unselected([everything]) == 0
    [selected] = read(dataset, select={"sentiment": 0})
    sums, of_selected = everything.statistics()["audio"], selected.statistics()["audio"]
    count, total = 0, 0.0
    for sample in corpus(40, 0):
        if number(sample.key) in known:
            audio = sample.features["audio"]
            assert audio is not None
            count, total = count + len(audio), total + audio.sum()
    assert sums.count == count
    np.testing.assert_allclose(sums.sum.sum(), total)
    assert of_selected.count != count


def test_a_target_that_no_selected_utterance_has(dataset: Path) -> None:
    with pytest.raises(ValueError, match=r"#train: no utterance has a value of 'surprise'; choose"):
        read(dataset, target="some", select={"speaker": "s1"})


def test_a_target_that_nothing_lacks_reads_no_index(dataset: Path, tmp_path: Path) -> None:
    """So opening a large remote dataset stays as fast as with classes."""
    folder = tmp_path / "d"
    pack(corpus(), folder)
    for path in folder.glob("*.npz"):
        path.unlink()
    for target in (None, "sentiment", "emotions", "valence,activation"):
        FeatureStream(str(folder), target=target, balance=False)
    with pytest.raises(ValueError, match="index"):
        FeatureStream(str(folder), target="some", balance=False)


# --- Classes of a column -------------------------------------------------------------------------


def test_the_values_of_a_column_are_classes(tmp_path: Path) -> None:
    """Those of all splits, whichever is read; numbers by value, then names; empty text is no class."""
    words = ["b", "10", "a", "9", "", " a "]
    samples = [unlabeled(i, word=words[i % 6]) for i in range(24)]
    samples += [unlabeled(100 + i, "test", word="only-in-test") for i in range(3)]
    pack(samples, tmp_path / "d")
    classes = ["9", "10", "a", "b", "only-in-test"]
    [train], [test] = read(tmp_path / "d", target="word"), read(tmp_path / "d", target="word", split="test")
    assert train.classes == test.classes == classes
    assert train.target == Target("classification", {"word": None})
    assert train.class_counts().tolist() == [4, 4, 8, 4, 0]
    assert (train.num_utterances, train.without_target) == (20, 4)
    seen = 0
    for batch in train.epoch(0):
        assert batch.target.shape == (len(batch), 0)
        for key, label in zip(batch.key, batch.label.tolist(), strict=True):
            assert classes[label] == words[number(key) % 6].strip()
            seen += 1
    assert seen == 20
    assert [batch.label.tolist() for batch in test.epoch(0)] == [[4, 4, 4]]
    assert train.target_values().shape == (20, 0)


def test_whole_numbers_and_truth_values_are_classes_where_they_are_asked_for(tmp_path: Path) -> None:
    samples = [unlabeled(i, rating=i % 11, acted=i % 2 == 0) for i in range(22)]
    pack(samples, tmp_path / "d")
    [rating] = read(tmp_path / "d", target="rating", task="classification")
    assert rating.classes == [str(i) for i in range(11)]
    assert all([number(key) % 11 for key in batch.key] == batch.label.tolist() for batch in rating.epoch(0))
    [acted] = read(tmp_path / "d", target="acted", task="classification")
    assert (acted.classes, acted.class_counts().tolist()) == (["False", "True"], [11, 11])
    [label] = read(tmp_path / "d", target="acted,joy", task="multilabel")
    assert label.target == Target("multilabel", {"acted": [0.0, 1.0], "joy": [0.0, 3.0]})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["happy", "Happy"], r"column 'word': labels differ only in case.*'Happy' \(6\), 'happy' \(6\)"),
        (["", "  "], "none of the utterances has a label"),
    ],
)
def test_a_column_that_is_no_class(tmp_path: Path, words: list[str], told: str) -> None:
    pack([unlabeled(i, word=words[i % 2]) for i in range(12)], tmp_path / "d")
    with pytest.raises(ValueError, match=told):
        read(tmp_path / "d", target="word")


def test_a_column_of_identifiers_is_no_class(tmp_path: Path) -> None:
    def samples() -> Any:
        for i in range(1_001):
            yield Sample(f"u{i}", "all", None, {"audio": np.ones((1, 1))}, {"name": f"n{i}", "valence": 1})

    pack(samples(), tmp_path / "d", target=Target("regression", {"valence": None}), targets={})
    with pytest.raises(ValueError, match="column 'name' has more than 1000 different values"):
        FeatureStream(str(tmp_path / "d"), target="name")


# --- Damage, stores, early defaults --------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "some", "emotions"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_damaged_utterances_change_no_other_target(tmp_path: Path, name: str | None, ranks: int) -> None:
    pack(corpus(), tmp_path / "d")
    options: dict[str, Any] = {"target": name, "skip_damaged": True, "balance": False}
    sound = places(read(tmp_path / "d", ranks, **options))
    index = tmp_path / "d" / "train-000002.index.npz"
    with np.load(index) as file:
        keys = set(file["key"].tolist())
    content = bytearray(index.read_bytes())
    content[1_000] ^= 0x40
    index.write_bytes(content)
    with pytest.raises(ValueError, match="damaged or replaced"):
        places(read(tmp_path / "d", ranks, target=name))
    streams = read(tmp_path / "d", ranks, **options)
    damaged = {key for stream in streams for batch in stream.epoch(0) for key in batch.damaged}
    lost = len({key for step in sound for key, _, _ in step.values()} & keys)
    if name == "some":
        # Which of its utterances have a target is not known, so all of them are in the plan.
        assert len(damaged) == len(keys) > lost
        found = {row for step in places(streams) for row in map(str, step.values())}
        assert found == {str(row) for step in sound for row in step.values() if row[0] not in keys}
    else:
        assert len(damaged) == lost
        expected = [{place: row for place, row in step.items() if row[0] not in keys} for step in sound]
        assert places(streams) == expected
    target = AFFECT if name is None else FURTHER[name]
    values = streams[0].target_values()
    assert len(values) == streams[0].num_utterances
    assert np.isnan(values).all(axis=1).sum() == len(damaged)
    assert values.shape[1] == len(target.columns)


def test_a_damaged_array_keeps_the_targets_of_the_others(tmp_path: Path) -> None:
    pack(corpus(), tmp_path / "d")
    tar = tmp_path / "d" / "train-000001.tar"
    with np.load(tar.with_suffix(".index.npz")) as file:
        offset, key = int(file["offset.audio"][1]), str(file["key"][1])
    content = bytearray(tar.read_bytes())
    content[offset] ^= 0x40
    tar.write_bytes(content)
    [stream] = read(tmp_path / "d", skip_damaged=True, check_crc=True)
    rows = [row for step in places([stream]) for row in step.values()]
    assert len(rows) == 39
    assert key not in {row[0] for row in rows}
    for name, _, values in rows:
        assert values == [str(value) for value in of_columns(number(name), AFFECT)]


def test_a_remote_dataset(tmp_path: Path) -> None:
    url = f"memory://targets-{tmp_path.name}"
    pack(corpus(), url)
    [stream] = read(url, target="some", cache_dir=tmp_path / "cache")
    [by_name] = read(url, target="speaker", cache_dir=tmp_path / "cache")
    assert (stream.num_utterances, by_name.classes) == (10, ["s0", "s1", "s2", "s3"])
    for batch in stream.epoch(0):
        np.testing.assert_array_equal(batch.target, [of_columns(number(k), stream.target) for k in batch.key])
    fsspec.filesystem("memory").rm(url.removeprefix("memory:/"), recursive=True)


def test_classes_are_the_default(tmp_path: Path) -> None:
    from shards_support import corpus as labeled
    from shards_support import pack as pack_labeled

    pack_labeled(labeled(), tmp_path / "d")
    plain, named = read(tmp_path / "d"), read(tmp_path / "d", target="label", task="classification")
    assert plain[0].target == named[0].target == CLASSES
    assert places(plain) == places(named)
    assert plain[0].target_values().shape == (40, 0)
    by_value = read(tmp_path / "d", target="gain")
    assert [
        {place: (key, 0, [str(number(key) / 2)]) for place, (key, _, _) in step.items()}
        for step in places(plain)
    ] == places(by_value), "the order does not depend on the target"
