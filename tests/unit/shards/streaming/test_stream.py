"""Streaming: exact epochs on any number of ranks, resume, selection, and the faults that must be told."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shards_support import CLASSES, DIMS, corpus, global_keys, pack, utterance, utterances
from support import LIMIT

from shards import FeatureStream


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("dataset")
    pack(corpus(), folder)
    return str(folder)


def streams(url: str, world_size: int, **options: Any) -> list[FeatureStream]:
    settings = {"global_batch_size": 12, "seed": 3} | options
    return [FeatureStream(url, rank=rank, world_size=world_size, **settings) for rank in range(world_size)]


def test_batches_hold_what_was_packed(dataset: str) -> None:
    wanted = {sample.key: sample for sample in corpus()}
    seen = []
    for step, batch in enumerate(FeatureStream(dataset, global_batch_size=12).epoch(0)):
        assert (batch.epoch, batch.step, batch.first_place, batch.num_places) == (0, step, 0, 12)
        assert batch.label.dtype == batch.place.dtype == torch.int64
        assert batch.features["audio"].offsets.dtype == torch.int32
        assert batch.features["audio"].values.dtype == torch.float16
        for _, key, label, features in utterances(batch):
            seen.append(key)
            assert CLASSES[label] == wanted[key].label
            for name, dim in DIMS.items():
                values = wanted[key].features[name]
                expected = np.zeros((0, dim)) if values is None else values
                np.testing.assert_array_equal(features[name], expected)
    assert sorted(seen) == sorted(key for key in wanted if key.startswith("train-"))


def test_same_global_batches_and_fingerprints_on_any_number_of_ranks(dataset: str) -> None:
    alone = global_keys(streams(dataset, 1), epoch=2)
    prints = [batch.fingerprint() for batch in streams(dataset, 1)[0].epoch(2)]
    assert len(alone) == 4
    for world_size in (2, 3, 4, 6, 12):
        ranks = streams(dataset, world_size)
        assert global_keys(ranks, epoch=2) == alone
        steps = zip(*(rank.epoch(2) for rank in ranks), strict=True)
        sums = [sum(batch.fingerprint() for batch in batches) for batches in steps]
        assert [total % 2**64 for total in sums] == prints


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """By number of shards."""
    found = {}
    for shard_bytes in (1, 20_000, 10**9):
        folder = tmp_path_factory.mktemp("datasets")
        manifest = pack(corpus(29, 0), folder, shard_bytes=shard_bytes)
        found[len(manifest.splits["train"].shards)] = str(folder)
    assert min(found) == 1
    assert max(found) == 29
    return found


@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_the_contract(datasets: dict[int, str], data: st.DataObject) -> None:
    """The same global batches for every layout, from any step on, and each utterance exactly once.

    Among the layouts are fewer shards than ranks, one shard, ranks that divide the streams and that do not.
    """
    url = datasets[data.draw(st.sampled_from(sorted(datasets)), label="shards")]
    options = {
        "streams": data.draw(st.sampled_from([None, 1, 2, 3, 4, 6, 12]), label="streams"),
        "shuffle": data.draw(st.booleans(), label="shuffle"),
        "balance": data.draw(st.booleans(), label="balance"),
        "window": data.draw(st.sampled_from([1, 10, 10_000]), label="window"),
    }
    epoch = data.draw(st.integers(0, 3), label="epoch")
    alone = global_keys(streams(url, 1, **options), epoch)
    assert sorted(key for step in alone for _, key in step) == sorted(f"train-{i}" for i in range(29))
    assert [len(step) for step in alone] == [12, 12, 5]
    world_size = data.draw(st.sampled_from([2, 3, 4, 6, 12]), label="ranks")
    start = data.draw(st.integers(0, 3), label="start")
    assert global_keys(streams(url, world_size, **options), epoch, start) == alone[start:]


def test_ranks_without_utterances_run_the_same_steps(dataset: str) -> None:
    ranks = streams(dataset, 12, split="test")
    batches = [list(stream.epoch(0)) for stream in ranks]
    assert {len(steps) for steps in batches} == {1}
    assert sum(len(steps[0]) for steps in batches) == 7
    empty = batches[-1][0]
    assert len(empty) == 0
    assert empty.features["audio"].values.shape == (0, DIMS["audio"])
    assert empty.fingerprint() == 0


def test_resume_at_any_step(dataset: str) -> None:
    whole = global_keys(streams(dataset, 2), epoch=1)
    for step in range(len(whole) + 1):
        assert global_keys(streams(dataset, 2), epoch=1, start_step=step) == whole[step:]
    with pytest.raises(ValueError, match="an epoch has 4 steps"):
        FeatureStream(dataset, global_batch_size=12).epoch(0, 5)


def test_epochs_differ_and_evaluation_keeps_the_natural_order(dataset: str) -> None:
    assert global_keys(streams(dataset, 1), 0) != global_keys(streams(dataset, 1), 1)
    natural = [key for step in global_keys(streams(dataset, 1, shuffle=False), 0) for _, key in step]
    assert natural == [f"train-{i}" for i in range(40)]


def test_all_batches_may_be_kept(dataset: str) -> None:
    kept = list(FeatureStream(dataset, shuffle=False).epoch(0))
    again = FeatureStream(dataset, shuffle=False, prefetch=0).epoch(0)
    for one, other in zip(kept, again, strict=True):
        assert torch.equal(one.features["video"].values, other.features["video"].values)


@pytest.mark.parametrize(
    "url", ["{}", "{}/", "{}/manifest.json", "file://{}", "{}#train", "{}/manifest.json#train"]
)
def test_urls(dataset: str, url: str) -> None:
    assert FeatureStream(url.format(dataset)).num_utterances == 40


def test_fragment_names_the_split(dataset: str) -> None:
    assert FeatureStream(f"{dataset}#test", "train").split == "test"


def test_the_split_all_stands_for_any(tmp_path: Path) -> None:
    pack([utterance(i, "all") for i in range(4)], tmp_path / "d")
    assert FeatureStream(str(tmp_path / "d"), "test").split == "all"


def test_select(dataset: str) -> None:
    stream = FeatureStream(dataset, global_batch_size=4, select={"fold": [0, 2], "speaker": "s1"})
    wanted = [i for i in range(40) if i % 3 in (0, 2) and i % 4 == 1]
    found = [key for batch in stream.epoch(0) for key in batch.key]
    assert sorted(found) == sorted(f"train-{i}" for i in wanted)
    assert stream.num_utterances == len(wanted)
    assert stream.class_counts().tolist() == [sum(i % 3 == c for i in wanted) for c in range(3)]
    assert stream.steps_per_epoch == -(-len(wanted) // 4)


def test_select_by_float_and_over_ranks(dataset: str) -> None:
    ranks = streams(dataset, 4, select={"gain": [0, 2.5, 7]})
    assert sorted(k for step in global_keys(ranks, 0) for _, k in step) == ["train-0", "train-14", "train-5"]


def test_metadata_and_overlap(dataset: str) -> None:
    one = FeatureStream(dataset, select={"fold": [0, 1]})
    two = FeatureStream(dataset, select={"fold": [1, 2]})
    assert one.overlap(two) == two.overlap(one) == 13
    assert one.overlap(FeatureStream(dataset)) == 27
    assert one.overlap(FeatureStream(dataset, "test")) == 0
    assert two.overlap(FeatureStream(dataset, select={"fold": 0})) == 0
    records = list(two.metadata())
    assert [key for key, _ in records] == [f"train-{i}" for i in range(40) if i % 3]
    assert records[0][1] == {"label": "happy", "speaker": "s1", "fold": 1, "gain": 0.5, "notes": ["n", 1]}


@pytest.mark.parametrize("select", [None, {"fold": [0, 2]}])
@pytest.mark.parametrize("world_size", [1, 3])
def test_statistics_add_up_over_ranks(dataset: str, select: dict[str, Any] | None, world_size: int) -> None:
    parts = [stream.statistics() for stream in streams(dataset, world_size, select=select)]
    chosen = [utterance(i) for i in range(40) if select is None or i % 3 in (0, 2)]
    for name in DIMS:
        steps = np.concatenate([s.features[name] for s in chosen if s.features[name] is not None])
        assert sum(part[name].count for part in parts) == len(steps)
        np.testing.assert_allclose(sum(part[name].sum for part in parts), steps.sum(0), atol=1e-6)
        np.testing.assert_allclose(
            sum(part[name].sum_of_squares for part in parts), np.square(steps, dtype=np.float64).sum(0)
        )


def test_statistics_of_everything_read_nothing(tmp_path: Path) -> None:
    pack(corpus(), tmp_path / "d")
    for tar in (tmp_path / "d").glob("*.tar"):
        tar.unlink()
    assert FeatureStream(str(tmp_path / "d")).statistics()["audio"].count > 0


def test_modalities(dataset: str) -> None:
    stream = FeatureStream(dataset, modalities=["video"])
    assert list(stream.modalities) == list(next(stream.epoch(0)).features) == ["video"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, r"no split 'dev'; it has \['train', 'test'\]"),
        ({"modalities": ["text"]}, r"no modality 'text'; it has audio, video"),
        ({"select": {"age": 3}}, r"no column 'age' .* it has \['fold', 'gain', 'speaker'\]"),
        ({"select": {"notes": "n"}}, r"no column 'notes'"),
        ({"select": {"fold": [0, 7]}}, r"no utterance has fold \[7\]; it has \[0, 1, 2\]"),
        ({"select": {"fold": "0"}}, r"no utterance has fold \['0'\]; it has \[0, 1, 2\]"),
        ({"select": {"gain": 0, "fold": 1}}, r"no utterance matches"),
        ({"world_size": 3}, r"3 ranks do not divide the global batch of 32"),
        ({"streams": 5}, r"5 streams do not divide"),
        ({"cache_limit": "a lot"}, r"not a number of bytes"),
        ({"prefetch": -1}, r"prefetch must be at least 0 and prefetch_bytes at least 1, not -1 and"),
        ({"prefetch_bytes": 0}, r"prefetch_bytes at least 1, not 4 and 0"),
        ({"modalities": []}, r"modalities is empty; it has audio, video"),
    ],
)
def test_refusals(dataset: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureStream(dataset, **options)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise")
@pytest.mark.parametrize("select", [None, {"speaker": "s1"}])
def test_shards_are_read_whole_where_most_of_them_is_wanted(
    dataset: str, select: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    advised = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, *_: advised.append(fd))
    stream = FeatureStream(dataset, select=select)
    batches = stream.epoch(0)
    next(batches)
    deadline = time.monotonic() + LIMIT
    wanted = 0 if select else len(list(Path(dataset).glob("train-*.tar")))
    while len(advised) < wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(advised) == wanted


def test_without_preadv(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [b.features["audio"].values for b in FeatureStream(dataset).epoch(0)]
    monkeypatch.delattr(os, "preadv")
    for one, other in zip(wanted, FeatureStream(dataset).epoch(0), strict=True):
        assert torch.equal(one, other.features["audio"].values)


@pytest.mark.parametrize("prefetch", [0, 4])
def test_faults_while_reading_reach_the_consumer(tmp_path: Path, prefetch: int) -> None:
    pack(corpus(), tmp_path / "d")
    stream = FeatureStream(str(tmp_path / "d"), shuffle=False, global_batch_size=8, prefetch=prefetch)
    tar = tmp_path / "d" / "train-000003.tar"
    tar.write_bytes(tar.read_bytes()[:-1024])
    with pytest.raises(ValueError, match=r"train-000003.tar: \d+ bytes, \d+ by the manifest"):
        list(stream.epoch(0))


def test_shard_that_shrinks_while_open(tmp_path: Path) -> None:
    pack(corpus(4, 0), tmp_path / "d")
    stream = FeatureStream(str(tmp_path / "d"), prefetch=0)
    list(stream.epoch(0))
    for tar in (tmp_path / "d").glob("*.tar"):
        os.truncate(tar, 700)
    with pytest.raises(ValueError, match=r"tar: ends at \d+ bytes, within an array"):
        list(stream.epoch(1))


def test_closing_stops_the_thread(dataset: str) -> None:
    others = set(threading.enumerate())
    batches = FeatureStream(dataset, global_batch_size=1, prefetch=1).epoch(0)
    next(batches)
    assert "shards-read" in {thread.name for thread in set(threading.enumerate()) - others}
    batches.close()  # type: ignore[attr-defined]
    assert "shards-read" not in {thread.name for thread in set(threading.enumerate()) - others}


def open_shards(folder: Path) -> list[str]:
    """The shards of a folder that this process has open; other tests may have other files open."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        # The descriptor of the listing itself is among them, and closed by now.
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return [path for path in found if Path(path).parent == folder]


def open_shards_at_rest(folder: Path) -> int:
    """Their number once no thread fetches any: an iterator that ends does not wait for these."""
    deadline = time.monotonic() + LIMIT
    while "shards-fetch" in {thread.name for thread in threading.enumerate()}:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return len(open_shards(folder))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads /proc")
def test_many_shards_few_open_files(tmp_path: Path) -> None:
    pack(corpus(), tmp_path)
    stream = FeatureStream(str(tmp_path))
    assert len(stream.shards) > 2
    stream._reader._open_shards = 2
    assert sum(len(batch) for batch in stream.epoch(0)) == 40
    assert open_shards_at_rest(tmp_path) == 2


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads /proc")
@pytest.mark.parametrize("options", [{}, {"prefetch": 0}, {"select": {"fold": [0, 2]}}, {"balance": False}])
def test_a_stream_that_nothing_refers_to_closes_its_files(tmp_path: Path, options: dict[str, Any]) -> None:
    """At once, without Python's collector, which may not run before a process has too many files open."""
    pack(corpus(), tmp_path)
    gc.collect()
    gc.disable()
    try:
        stream = FeatureStream(str(tmp_path), **options)
        assert sum(len(batch) for batch in stream.epoch(0)) == stream.num_utterances
        assert open_shards_at_rest(tmp_path) > 2
        del stream
        assert open_shards_at_rest(tmp_path) == 0
    finally:
        gc.enable()


def damaged_manifest(folder: Path, change: dict[str, Any]) -> str:
    pack(corpus(4, 0), folder)
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return str(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, r"manifest.json: schema version 99, .* upgrade"),
        ({"classes": "calm"}, r"field 'classes' must be list, not str"),
        ({"splits": {"train": {}}}, r"splits.train: field 'shards' is missing"),
        ({"modalities": {"audio": {"dim": 3}}}, r"modalities.audio: field 'dtype' is missing"),
        ({"modalities": {}}, r"manifest.json: there must be a modality and a class"),
        ({"modalities": {"audio": {"dim": 0, "dtype": "float16"}}}, r"modalities.audio: .* dim must be"),
        ({"modalities": {"audio": {"dim": 5, "dtype": "int8"}}}, r"modalities.audio: .* dtype one of"),
        ({"modalities": {"audio": {"dim": True, "dtype": "float16"}}}, r"'dim' must be a count, not True"),
        (
            {"modalities": {m: {"dim": 3, "dtype": "float16"} for m in ("audio", "video")}},
            r"audio: 5 means .* of 3 features",
        ),
        (
            {"modalities": {"audio": {"dim": 5, "dtype": "float16"}}},
            r"steps of 'video', which is not a modality",
        ),
        ({"classes": ["calm", 1, "sad"]}, r"manifest.json: classes\[1\] must be str, not 1"),
        ({"classes": ["calm"]}, r"splits.train: class_counts \[2, 1, 1\] do not add up to 4 .* of 1 classes"),
        ({"columns": {"fold": "date"}}, r"columns must be"),
        ({"skipped": -1}, r"field 'skipped' must be a count, not -1"),
    ],
)
def test_damaged_manifests(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureStream(damaged_manifest(tmp_path / "d", change))


def test_a_dim_changed_by_hand_is_found(tmp_path: Path) -> None:
    """The manifest fits itself: only the shards' indexes know better."""
    pack(corpus(4, 0), tmp_path / "d")
    path = tmp_path / "d" / "manifest.json"
    record = json.loads(path.read_text())
    record["modalities"]["audio"]["dim"] = 4
    moments = record["splits"]["train"]["moments"]["audio"]
    moments["mean"].pop(), moments["std"].pop()
    path.write_text(json.dumps(record))
    told = (
        r"index.npz: audio is float16 \[steps, 5\], by the manifest float16 \[steps, 4\]: one of the two was"
    )
    with pytest.raises(ValueError, match=told):
        list(FeatureStream(str(tmp_path / "d")).epoch(0))


def test_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    pack(corpus(4, 0), tmp_path / "d")
    path = tmp_path / "d" / "manifest.json"
    path.write_text(path.read_text().replace("train-000000.tar", "../../secret"))
    with pytest.raises(ValueError, match=r"'../../secret' is not a plain file name"):
        FeatureStream(str(tmp_path / "d"))


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere: no such folder; `awtpn pack` makes a dataset"):
        FeatureStream(str(tmp_path / "nowhere"))
    (tmp_path / "manifest.json").write_text("oops")
    with pytest.raises(ValueError, match=r"manifest.json: not JSON"):
        FeatureStream(str(tmp_path))


def test_damaged_index(tmp_path: Path) -> None:
    pack(corpus(4, 0), tmp_path / "d")
    for path in (tmp_path / "d").glob("*.index.npz"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"index.npz: not the index the manifest names"):
        list(FeatureStream(str(tmp_path / "d")).epoch(0))
