"""Recordings that are damaged: named by shard, utterance and picture, or left out where that is asked for."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from extraction_support import extracted
from PIL import Image
from recordings_support import clips_of, one_split, recorded, steps_of

from shards import FeatureStream
from shards.format.jpeg import encode_jpeg
from shards.sources.base import ClipSource

SHARD, CLIP = "train-000001", "clip3"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipSource:
    return one_split(clips_of(tmp_path_factory.mktemp("clips")))


@pytest.fixture(scope="module")
def whole(clips: ClipSource, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Seven utterances in four shards, "clip2" and "clip3" in the second one."""
    folders = {}
    for name, form in {"arrays": {}, "jpeg": {"jpeg": 90}}.items():
        folders[name] = tmp_path_factory.mktemp(name)
        extracted(clips, folders[name], clips_per_shard=2, **recorded(**form))
    return folders


@pytest.fixture
def arrays(whole: dict[str, Path], tmp_path: Path) -> Path:
    return copied(whole["arrays"], tmp_path / "arrays")


@pytest.fixture
def jpeg(whole: dict[str, Path], tmp_path: Path) -> Path:
    return copied(whole["jpeg"], tmp_path / "jpeg")


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def read(url: Path | str, ranks: int = 1, **options: Any) -> list[FeatureStream]:
    common = {"global_batch_size": 4, "world_size": ranks, "seed": 3, "skip_damaged": True} | options
    return [FeatureStream(str(url), rank=rank, **common) for rank in range(ranks)]


def left_out(streams: list[FeatureStream], epoch: int = 0) -> dict[str, str]:
    return {k: v for s in streams for batch in s.epoch(epoch) for k, v in batch.damaged.items()}


def index_of(dataset: Path) -> dict[str, np.ndarray]:
    with np.load(dataset / f"{SHARD}.index.npz") as index:
        return dict(index)


def picture_at(dataset: Path, number: int) -> tuple[int, int]:
    """Offset and size of a picture of the clip in its shard."""
    index = index_of(dataset)
    row = index["key"].tolist().index(CLIP)
    at = int(index["steps.video"][:row].sum()) + number
    return int(index["picture.offset.video"][at]), int(index["picture.size.video"][at])


def write_at(dataset: Path, at: int, content: bytes) -> None:
    with open(dataset / f"{SHARD}.tar", "r+b") as tar:
        tar.seek(at)
        tar.write(content)


def flip(dataset: Path, at: int) -> None:
    byte = (dataset / f"{SHARD}.tar").read_bytes()[at]
    write_at(dataset, at, bytes([byte ^ 0x10]))


def assert_only_the_clip_is_lost(dataset: Path, before: Path, cause: str, **options: Any) -> None:
    """All ranks leave out the same, all others stay what and where they are, in each epoch."""
    for epoch in (0, 1):
        wanted = [[row for row in step if row.key != CLIP] for step in steps_of(read(before), epoch)]
        for ranks in (1, 2, 4):
            streams = read(dataset, ranks, **options)
            assert steps_of(streams, epoch) == wanted
            causes = left_out(streams, epoch)
            assert list(causes) == [CLIP]
            assert cause in causes[CLIP]
            assert f"{SHARD}.tar: " in causes[CLIP]
            assert left_out(streams, epoch) == causes, "it is remembered"


# --- Pictures that cannot be decoded -------------------------------------------------------------


def no_jpeg(dataset: Path, number: int) -> None:
    write_at(dataset, picture_at(dataset, number)[0], bytes(4))


def cut_jpeg(dataset: Path, number: int) -> None:
    at, size = picture_at(dataset, number)
    write_at(dataset, at + size // 2, bytes(size - size // 2))


def another_size(dataset: Path, number: int) -> None:
    at, size = picture_at(dataset, number)
    content = encode_jpeg(np.zeros((16, 24, 3), np.uint8), 1)
    write_at(dataset, at, content + bytes(size - len(content)))


def gray(dataset: Path, number: int) -> None:
    at, size = picture_at(dataset, number)
    file = io.BytesIO()
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(file, "JPEG", quality=1)
    write_at(dataset, at, file.getvalue() + bytes(size - len(file.getvalue())))


UNDECODABLE = [
    (no_jpeg, 0, "not a JPEG that can be read"),
    (cut_jpeg, 13, "not a JPEG that can be read"),
    (another_size, 19, "is RGB of 24 x 16, not RGB of 32 x 32"),
    (gray, 5, "is L of 32 x 32, not RGB of 32 x 32"),
]


@pytest.mark.parametrize(("damage", "number", "cause"), UNDECODABLE)
def test_a_picture_that_cannot_be_decoded(
    whole: dict[str, Path], jpeg: Path, damage: Callable[[Path, int], None], number: int, cause: str
) -> None:
    damage(jpeg, number)
    for prefetch in (0, 4):
        with pytest.raises(ValueError, match=rf"{SHARD}\.tar: '{CLIP}': video: picture {number} {cause}"):
            steps_of(read(jpeg, skip_damaged=False, prefetch=prefetch), 0)
    assert_only_the_clip_is_lost(jpeg, whole["jpeg"], "tar: pictures of video cannot be decoded: damaged")
    # Its sound is whole.
    [sound] = read(jpeg, modalities=["audio"], check_crc=True, skip_damaged=False)
    assert CLIP in [key for batch in sound.epoch(0) for key in batch.key]


def test_several_damaged_utterances_of_a_batch(jpeg: Path) -> None:
    content = bytearray((jpeg / f"{SHARD}.tar").read_bytes())
    index = index_of(jpeg)
    for at in index["picture.offset.video"].tolist():
        content[at : at + 4] = bytes(4)
    (jpeg / f"{SHARD}.tar").write_bytes(content)
    for ranks in (1, 2):
        streams = read(jpeg, ranks)
        causes = left_out(streams)
        assert causes.keys() == {"clip2", "clip3"}
        assert len({*causes.values()}) == 1, "one cause, so that they are reported together"
        found = sorted(row.key for step in steps_of(streams, 1) for row in step)
        assert found == ["clip0", "clip1", "clip4", "pictures", "sound"]


# --- CRC-32 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["audio", "video"])
@pytest.mark.parametrize("prefetch", [0, 4])
def test_a_flipped_bit_of_an_array(
    whole: dict[str, Path], arrays: Path, modality: str, prefetch: int
) -> None:
    index = index_of(arrays)
    flip(arrays, int(index[f"offset.{modality}"][index["key"].tolist().index(CLIP)]) + 100)
    damaged, sound = (
        {row.key: row for s in steps_of(read(d), 0) for row in s} for d in (arrays, whole["arrays"])
    )
    assert [key for key in sound if damaged[key] != sound[key]] == [CLIP], "unseen where it is not checked"
    told = rf"{SHARD}\.tar: the CRC-32 of {modality} of '{CLIP}' is not that of the index: damaged"
    with pytest.raises(ValueError, match=told):
        steps_of(read(arrays, check_crc=True, skip_damaged=False, prefetch=prefetch), 0)
    assert_only_the_clip_is_lost(
        arrays, whole["arrays"], f"the CRC-32 of {modality}", check_crc=True, prefetch=prefetch
    )


@pytest.mark.parametrize("number", [0, 19])
def test_a_flipped_bit_of_a_jpeg(whole: dict[str, Path], jpeg: Path, number: int) -> None:
    """In the data of its pixels, which it is decoded with all the same."""
    at, size = picture_at(jpeg, number)
    flip(jpeg, at + size - 10)
    assert left_out(read(jpeg)) == {}
    told = rf"{SHARD}\.tar: the CRC-32 of video of '{CLIP}' is not that of the index: damaged"
    with pytest.raises(ValueError, match=told):
        steps_of(read(jpeg, check_crc=True, skip_damaged=False), 0)
    assert_only_the_clip_is_lost(jpeg, whole["jpeg"], "the CRC-32 of video", check_crc=True)
    assert left_out(read(jpeg, check_crc=True, modalities=["audio"])) == {}


@pytest.mark.parametrize("form", ["arrays", "jpeg"])
def test_checking_changes_nothing_that_is_whole(whole: dict[str, Path], form: str) -> None:
    plain, checked = (steps_of(read(whole[form], check_crc=check), 0) for check in (False, True))
    assert plain == checked
    assert [len(step) for step in checked] == [4, 3]


# --- Shards that are cut short -------------------------------------------------------------------


@pytest.mark.parametrize("form", ["arrays", "jpeg"])
def test_a_shard_that_is_cut_short(whole: dict[str, Path], tmp_path: Path, form: str) -> None:
    dataset = copied(whole[form], tmp_path / "d")
    os.truncate(dataset / f"{SHARD}.tar", 20_000)
    with pytest.raises(ValueError, match=rf"{SHARD}\.tar: 20000 bytes, \d+ by the manifest"):
        steps_of(read(dataset, skip_damaged=False), 0)
    for ranks in (1, 2):
        streams = read(dataset, ranks)
        rows = sorted(row.key for step in steps_of(streams, 0) for row in step)
        assert rows == ["clip0", "clip1", "clip4", "pictures", "sound"]
        assert left_out(streams).keys() == {"clip2", "clip3"}


@pytest.mark.parametrize("form", ["arrays", "jpeg"])
def test_a_shard_that_shrinks_while_open(whole: dict[str, Path], tmp_path: Path, form: str) -> None:
    dataset = copied(whole[form], tmp_path / "d")
    strict, lenient = read(dataset, skip_damaged=False), read(dataset)
    assert steps_of(strict, 0) == steps_of(lenient, 0)
    os.truncate(dataset / f"{SHARD}.tar", 20_000)
    with pytest.raises(ValueError, match=rf"{SHARD}\.tar: ends at 20000 bytes, within an array"):
        steps_of(strict, 1)
    assert left_out(lenient, 1).keys() == {"clip2", "clip3"}


def test_a_damaged_download_is_not_used(jpeg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hash is compared, so no picture of it is decoded."""
    monkeypatch.setattr("shards.storage.retry.FIRST_PAUSE_S", 0.001)
    another_size(jpeg, 3)
    fs, name = fsspec.filesystem("memory"), f"/{tmp_path.name}"
    for path in jpeg.iterdir():
        fs.pipe_file(f"{name}/d/{path.name}", path.read_bytes())
    streams = read(f"memory:/{name}/d", cache_dir=tmp_path / "cache")
    assert left_out(streams).keys() == {"clip2", "clip3"}
    fs.rm(name, recursive=True)
