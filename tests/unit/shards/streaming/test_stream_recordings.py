"""Streams of recordings: the same samples and pictures on any ranks, after a resume, in parts of batches."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
import webdataset
from extraction_support import extracted
from recordings_support import Row, clips_of, one_split, recorded, rows_of, steps_of
from shards_support import in_fork
from support import LIMIT, environment
from torch.utils.data import DataLoader, IterableDataset

from shards import FeatureBatch, FeatureStream
from shards.extraction.encoders import open_audio_encoder, open_video_encoder
from shards.sources.base import ClipSource
from shards.streaming.scattered_reads import Reads, read_scattered

FORMS: dict[str, dict[str, Any]] = {"arrays": {}, "jpeg": {"jpeg": 90}}
SAMPLES = {"clip0": 8000, "clip1": 19680, "clip2": 12800, "clip3": 32800, "clip4": 16000, "sound": 11200}
PICTURES = {"clip0": 5, "clip1": 12, "clip2": 8, "clip3": 20, "clip4": 10, "pictures": 6}
STEPS = {"clip0": 5, "clip1": 13, "clip2": 8, "clip3": 21, "clip4": 10, "sound": 7}
KEYS = sorted({*SAMPLES, *PICTURES})


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipSource:
    return one_split(clips_of(tmp_path_factory.mktemp("clips")))


@pytest.fixture(scope="module", params=FORMS)
def dataset(
    request: pytest.FixtureRequest, clips: ClipSource, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Seven utterances in four shards."""
    folder = tmp_path_factory.mktemp(request.param)
    extracted(clips, folder, clips_per_shard=2, **recorded(**FORMS[request.param]))
    return folder


def streams(url: Path | str, world_size: int = 1, **options: Any) -> list[FeatureStream]:
    """Of a global batch of four, so an epoch has a step of four and one of three."""
    common = {"global_batch_size": 4, "seed": 3} | options
    return [FeatureStream(str(url), rank=rank, world_size=world_size, **common) for rank in range(world_size)]


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8")
    return {sample["__key__"]: sample for sample in samples}


# --- Values --------------------------------------------------------------------------------------


def test_batches_hold_what_is_stored(dataset: Path) -> None:
    wanted, seen = stored(dataset), []
    for batch in streams(dataset)[0].epoch(0):
        audio, video = batch.features["audio"].values, batch.features["video"].values
        assert (audio.dtype, video.dtype) == (torch.int16, torch.uint8)
        assert (audio.shape[1:], video.shape[1:]) == ((1600,), (32, 32, 3))
        assert (batch.samples["audio"].dtype, list(batch.samples)) == (torch.int64, ["audio"])
        assert batch.num_bytes == audio.numel() * 2 + video.numel()
        for row in rows_of(batch):
            seen.append(row.key)
            sample = wanted[row.key]
            assert row.samples == SAMPLES.get(row.key, 0)
            assert (len(row.sound), len(row.pictures)) == (STEPS.get(row.key, 0), PICTURES.get(row.key, 0))
            assert ["calm", "loud"][row.label] == sample["json"]["label"]
            if row.key in SAMPLES:
                np.testing.assert_array_equal(row.sound, sample["audio.npy"])
            if "video.npy" in sample:
                np.testing.assert_array_equal(row.pictures, sample["video.npy"])
            elif row.key in PICTURES:
                pictures = [sample[name] for name in sorted(sample) if name.endswith(".jpg")]
                np.testing.assert_array_equal(row.pictures, pictures)
    assert sorted(seen) == KEYS


@pytest.mark.parametrize("balance", [True, False])
def test_the_same_global_batches_on_any_number_of_ranks(dataset: Path, balance: bool) -> None:
    alone = steps_of(streams(dataset, balance=balance), 1)
    assert [len(step) for step in alone] == [4, 3]
    assert sorted(row.key for step in alone for row in step) == KEYS
    for ranks in (2, 4):
        assert steps_of(streams(dataset, ranks, balance=balance), 1) == alone
    for ranks in (3, 4):
        assert steps_of(streams(dataset, ranks, balance=balance, uneven=True), 1) == alone


def test_resume_in_the_middle_of_an_epoch(dataset: Path) -> None:
    whole = steps_of(streams(dataset, 2, global_batch_size=2), 2)
    assert len(whole) == 4
    for step in range(5):
        assert steps_of(streams(dataset, 2, global_batch_size=2), 2, step) == whole[step:]


def test_all_epochs_have_equal_pixels(dataset: Path) -> None:
    [stream] = streams(dataset)
    first = {row.key: replace(row, place=0) for step in steps_of([stream], 0) for row in step}
    orders = set()
    for epoch in range(1, 5):
        rows = [row for step in steps_of([stream], epoch) for row in step]
        orders.add(tuple(row.key for row in rows))
        assert {row.key: replace(row, place=0) for row in rows} == first
    assert len(orders) > 1


@pytest.mark.parametrize("options", [{"prefetch": 0}, {"prefetch": 1}, {"prefetch_bytes": 1}, {"window": 2}])
def test_reading_ahead_changes_no_value(dataset: Path, options: dict[str, int]) -> None:
    def all_of(**more: int) -> dict[str, Row]:
        rows = [row for step in steps_of(streams(dataset, **more), 0) for row in step]
        return {row.key: replace(row, place=0) for row in rows}

    assert all_of(**options) == all_of()


# --- Parts and copies of a batch -----------------------------------------------------------------


def test_parts_have_their_samples_and_pictures(dataset: Path) -> None:
    for batch in streams(dataset)[0].epoch(0):
        whole = rows_of(batch)
        for parts in (batch.split(2), batch.split(4), batch.cut([0, 0, 3, 4])):
            assert [row for part in parts for row in rows_of(part)] == whole
            assert all(len(part.samples["audio"]) == len(part) for part in parts)
        assert [len(part) for part in batch.cut([0, 0, 3, 4])][:2] == [0, 3]
        storage = batch.features["video"].values.untyped_storage().data_ptr()
        assert {p.features["video"].values.untyped_storage().data_ptr() for p in batch.split(2)} == {storage}
        for part in batch.split(2)[1].split(2):
            assert rows_of(part) == [row for row in whole if row.place == part.first_place]


def test_another_device_keeps_the_samples_on_the_host(dataset: Path) -> None:
    batch = next(streams(dataset)[0].epoch(0))
    moved = batch.to("meta")
    assert moved.features["video"].values.device.type == moved.features["audio"].values.device.type == "meta"
    assert moved.samples["audio"].device.type == "cpu"
    assert torch.equal(moved.samples["audio"], batch.samples["audio"])
    halves = torch.cat([part.samples["audio"] for part in moved.split(2)])
    assert torch.equal(halves, batch.samples["audio"])
    on_host = next(streams(dataset)[0].epoch(0, device="cpu"))
    assert rows_of(on_host) == rows_of(batch)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(dataset: Path) -> None:
    wanted = steps_of(streams(dataset), 0)
    for batch, rows in zip(streams(dataset)[0].epoch(0, device="cuda"), wanted, strict=True):
        assert batch.features["video"].values.device.type == "cuda"
        assert rows_of(batch.to("cpu")) == rows
    pinned = next(streams(dataset)[0].epoch(0)).pin()
    assert pinned.features["video"].values.is_pinned()
    assert rows_of(pinned) == wanted[0]


def test_all_batches_may_be_kept(dataset: Path) -> None:
    """And parts of them, while their memory would be reused for others."""
    [stream] = streams(dataset, global_batch_size=1)
    kept, wanted = [], []
    for epoch in range(4):
        kept += list(stream.epoch(epoch))
        wanted += [rows_of(batch) for batch in streams(dataset, global_batch_size=1)[0].epoch(epoch)]
    assert [rows_of(batch) for batch in kept] == wanted
    pictures = [batch.features["video"].values[:1] for batch in kept]
    copies = [part.clone() for part in pictures]
    del kept
    gc.collect()
    steps_of([stream], 5)
    assert all(torch.equal(one, other) for one, other in zip(pictures, copies, strict=True))


# --- Selections ----------------------------------------------------------------------------------


def test_select(dataset: Path) -> None:
    chosen = [1, 3, 5, 6]
    all_rows = {row.key: row for step in steps_of(streams(dataset), 0) for row in step}
    for ranks in (1, 2):
        found = steps_of(streams(dataset, ranks, select={"number": chosen}), 0)
        rows = [replace(row, place=0) for step in found for row in step]
        assert sorted(row.key for row in rows) == ["clip1", "clip3", "pictures", "sound"]
        assert rows == [replace(all_rows[row.key], place=0) for row in rows]


def test_statistics_leave_recordings_out(dataset: Path, clips: ClipSource, tmp_path: Path) -> None:
    assert streams(dataset)[0].statistics() == {}
    assert streams(dataset, select={"number": [1, 2]})[0].statistics() == {}
    features = {"audio": open_audio_encoder("waveform"), "video": open_video_encoder("descriptor", fps=10.0)}
    extracted(clips, tmp_path / "d", **features)
    for select in (None, {"number": [0, 1, 2, 3, 4, 6]}):
        found = streams(tmp_path / "d", select=select)[0].statistics()
        assert {name: sums.count for name, sums in found.items()} == {"video": 61}


def test_metadata(dataset: Path) -> None:
    found = dict(streams(dataset)[0].metadata())
    assert found["clip1"] == {"label": "loud", "number": 1, "num_samples": {"audio": 19680}}
    assert found["pictures"] == {"label": "loud", "number": 6}


def test_sound_alone_reads_no_pictures(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {row.key: row.sound for step in steps_of(streams(dataset), 0) for row in step}
    sizes: list[int] = []

    def counted(files: Any, reads: list[Reads], *rest: Any) -> None:
        sizes.extend(int(each.size.sum()) for each in reads)
        read_scattered(files, reads, *rest)

    monkeypatch.setattr("shards.streaming.reader.read_scattered", counted)
    monkeypatch.setattr("shards.streaming.reader.decode_jpegs", None)
    for batch in streams(dataset, modalities=["audio"])[0].epoch(0):
        assert list(batch.features) == list(batch.samples) == ["audio"]
        audio = batch.features["audio"]
        for i, key in enumerate(batch.key):
            sound = audio.values[audio.offsets[i] : audio.offsets[i + 1]].numpy()
            np.testing.assert_array_equal(sound, wanted[key])
            assert int(batch.samples["audio"][i]) == SAMPLES.get(key, 0)
    assert sum(sizes) == 64 * 1600 * 2, "all 64 steps of sound, and nothing else"


def test_pictures_alone_have_no_samples(dataset: Path) -> None:
    [stream] = streams(dataset, modalities=["video"])
    for batch in stream.epoch(0):
        assert (list(batch.features), batch.samples) == (["video"], {})
        assert [part.samples for part in batch.split(2)] == [{}, {}]


# --- Memory, processes, stores -------------------------------------------------------------------


def test_memory_is_bounded(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = FeatureStream._batch

    def counted(stream: FeatureStream, *args: Any) -> FeatureBatch:
        batch = real(stream, *args)
        made.append(batch.num_bytes)
        return batch

    monkeypatch.setattr(FeatureStream, "_batch", counted)
    for budget, most in [(1, 2), (10**9, 7)]:
        made.clear()
        [stream] = streams(dataset, global_batch_size=1, prefetch=10, prefetch_bytes=budget)
        batches = stream.epoch(0)
        next(batches)
        deadline = time.monotonic() + LIMIT
        while len(made) < most:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(made) == most, "one is always read ahead, others while they are within the budget"
        list(batches)
        # Decoded: 61 pictures of 3,072 bytes and 64 steps of 3,200 bytes.
        assert sum(made) == 61 * 3072 + 64 * 3200
        gc.collect()
        assert stream._reader.pool.free_bytes <= budget


def test_a_stream_that_was_read_goes_on_in_a_fork(dataset: Path) -> None:
    """The threads that decode pictures do not come along."""
    [stream] = streams(dataset)
    wanted = steps_of([stream], 0)

    def read() -> None:
        assert steps_of([stream], 0) == wanted

    in_fork(read)
    assert steps_of([stream], 0) == wanted


class Epoch(IterableDataset[FeatureBatch]):
    def __init__(self, stream: FeatureStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[FeatureBatch]:
        return self.stream.epoch(0)


def test_in_a_worker_of_a_loader(dataset: Path) -> None:
    [stream] = streams(dataset)
    wanted = steps_of([stream], 0)
    loader = DataLoader(Epoch(stream), batch_size=None, num_workers=1, timeout=LIMIT)
    assert [rows_of(batch) for batch in loader] == wanted


ENDING = """
import sys
from shards import FeatureStream

batches = FeatureStream(sys.argv[1], global_batch_size=1, prefetch=2).epoch(0)
print(len(next(batches)))
"""


def test_a_process_may_end_while_pictures_are_decoded(dataset: Path) -> None:
    command = [sys.executable, "-c", ENDING, str(dataset)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LIMIT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_an_object_store(dataset: Path, tmp_path: Path) -> None:
    fs, name = fsspec.filesystem("memory"), uuid.uuid4().hex
    for path in dataset.iterdir():
        fs.pipe_file(f"/{name}/d/{path.name}", path.read_bytes())
    url = f"memory://{name}/d"
    try:
        for ranks in (1, 2):
            found = streams(url, ranks, cache_dir=tmp_path / str(ranks), check_crc=True)
            assert steps_of(found, 0) == steps_of(streams(dataset), 0)
        limited = streams(url, cache_dir=tmp_path / "limited", cache_limit="2MB")
        assert steps_of(limited, 1) == steps_of(streams(dataset), 1)
    finally:
        fs.rm(f"/{name}", recursive=True)


def test_an_extraction_into_an_object_store(clips: ClipSource, dataset: Path, tmp_path: Path) -> None:
    fs, name = fsspec.filesystem("memory"), uuid.uuid4().hex
    form = FORMS["jpeg"] if streams(dataset)[0].modalities["video"].is_jpeg else {}
    try:
        extracted(clips, f"memory://{name}/d", clips_per_shard=2, **recorded(**form))
        found = streams(f"memory://{name}/d", cache_dir=tmp_path)
        assert steps_of(found, 0) == steps_of(streams(dataset), 0)
    finally:
        fs.rm(f"/{name}", recursive=True)
