"""info, preview, verify, simulate and index on datasets that hold sound and pictures as recorded."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from recordings_support import SIDE, clips_of, recorded, sound_of
from shards_support import changed, corpus, pack, utterances

from shards import FeatureStream
from shards.extraction.extract import extract
from shards.format.recording import WAVEFORM, Recording, as_int16
from shards.storage.store import open_dataset
from shards.streaming.reader import ShardReader
from shards.tools.index_tars import index_url
from shards.tools.info import format_info, format_preview, info, preview
from shards.tools.simulate import format_report, simulate, split_sizes, synthetic_sizes
from shards.tools.sizes import format_duration
from shards.tools.utterance_arrays import array_line
from shards.tools.verify import format_verified, verify

FORMS = ("arrays", "jpeg")
SHARD = "train-000000.tar"
# Of the five clips of the training split, and of the two of the test split.
PICTURES, TEST_PICTURES = [5, 12, 8, 20, 10], 6
SAMPLES = [8000, 19680, 12800, 32800, 16000]
STEPS = [5, 13, 8, 21, 10]
BATCH_BYTES = [s * 1600 * 2 + p * SIDE * SIDE * 3 for s, p in zip(STEPS, PICTURES, strict=True)]


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("recordings")
    source = clips_of(folder / "clips")
    for name, options in (("arrays", {}), ("jpeg", {"jpeg": 90})):
        extract(source, str(folder / name), **recorded(**options), progress=False)
    return {name: folder / name for name in FORMS}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def dataset(extracted: dict[str, Path], form: str, tmp_path: Path) -> Path:
    """In either form, to change."""
    return shutil.copytree(extracted[form], tmp_path / form)


@pytest.fixture
def jpeg(extracted: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(extracted["jpeg"], tmp_path / "jpeg")


# --- info ----------------------------------------------------------------------------------------


def test_info(extracted: dict[str, Path], form: str) -> None:
    found = info(str(extracted[form]))
    train, test = found.splits["train"], found.splits["test"]
    assert (train.seconds, train.pictures) == ({"audio": sum(SAMPLES) / 16000}, {"video": 55})
    assert (test.seconds, test.pictures) == ({"audio": 0.7}, {"video": 6})
    assert train.batch_bytes == 57 * 3200 + 55 * 3072 == sum(BATCH_BYTES)
    stored = {"arrays": "arrays", "jpeg": "JPEG of quality 90"}[form]
    lines = format_info(found).splitlines()
    assert lines[0].endswith("(schema 3)")
    assert lines[2:5] == [
        "modality  features/step  dtype  bytes/step  content",
        "audio              1600  int16       3,200  sound at 16000 Hz in steps of 0.1 s",
        f"video              3072  uint8       3,072  pictures of 32 x 32 at 10 per second, as {stored}",
    ]
    size = (extracted[form] / SHARD).stat().st_size
    [at] = [i for i, line in enumerate(lines) if line.startswith("split train: 5 utterances in 1 shard")]
    assert lines[at + 1 : at + 4] == [
        f"  an utterance has {size / 5 / 1000:.3g} kB on disk, 70.3 kB in a batch (means)",
        "  audio: 5.58 s of sound",
        "  video: 55 pictures",
    ]
    assert "  audio: 5 to 21 steps, median 10" in lines
    assert "  video: 6 to 6 steps, median 6, 1 without" in lines


def test_info_reads_seconds_in_indexes_only(jpeg: Path) -> None:
    for index in jpeg.glob("*.npz"):
        index.unlink()
    found = info(str(jpeg), lengths=False)
    assert (found.splits["train"].seconds, found.splits["train"].pictures) == ({}, {"video": 55})
    assert "of sound" not in format_info(found)


def test_info_of_features_tells_their_sizes_too(tmp_path: Path) -> None:
    pack(corpus(12, 6), tmp_path / "d", shard_bytes=1 << 20)
    found = info(str(tmp_path / "d")).splits["train"]
    batches = FeatureStream(str(tmp_path / "d"), global_batch_size=12).epoch(0)
    arrays = [ragged.values for batch in batches for ragged in batch.features.values()]
    assert found.batch_bytes == sum(values.numel() * values.element_size() for values in arrays)
    assert (found.seconds, found.pictures) == ({}, {})
    lines = format_info(info(str(tmp_path / "d"))).splitlines()
    assert lines[2:4] == [
        "modality  features/step  dtype    bytes/step  content",
        "audio                 5  float16          10  features",
    ]
    assert any(line.startswith("  an utterance has ") for line in lines)
    assert not any("of sound" in line or "picture" in line for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (5.5800000001, "5.58 s"),
        (119.96, "120 s"),
        (150, "2.5 min"),
        (7200, "2.0 h"),
        (4e7, "11,111.1 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


# --- preview -------------------------------------------------------------------------------------


def test_preview(extracted: dict[str, Path], form: str) -> None:
    found = list(preview(str(extracted[form]), 5))
    shown = {f"clip{i}": each.features for i, each in enumerate(found)}
    assert [each.key for each in found] == list(shown)
    for batch in FeatureStream(str(extracted[form]), global_batch_size=5).epoch(0):
        for _, key, _, features in utterances(batch):
            np.testing.assert_array_equal(shown[key]["video"], features["video"])
    for i, each in enumerate(found):
        np.testing.assert_array_equal(each.features["audio"], as_int16(sound_of(i)))
        assert each.meta == {"number": i, "num_samples": {"audio": SAMPLES[i]}}
    video = found[1].features["video"]
    assert format_preview(found[1]).splitlines() == [
        f"clip1  (train, {SHARD})  label: loud",
        "  audio: int16 [19680], 1.23 s of sound at 16000 Hz, peak 0.133 of full scale",
        f"  video: uint8 [12, 32, 32, 3], 12 pictures of 32 x 32 at 10 per second, "
        f"{video.min()} to {video.max()}, mean {video.mean():.4g}",
        "  number: 1",
        '  num_samples: {"audio": 19680}',
    ]


def test_preview_of_what_is_missing(extracted: dict[str, Path], form: str) -> None:
    sound, pictures = preview(str(extracted[form]), 5, split="test")
    assert (sound.features["audio"].shape, sound.features["video"].shape) == ((11200,), (0, 32, 32, 3))
    assert (pictures.features["audio"].shape, pictures.features["video"].shape) == ((0,), (6, 32, 32, 3))
    assert "  video: missing" in format_preview(sound).splitlines()
    assert "  audio: missing" in format_preview(pictures).splitlines()


def test_the_peak_of_the_lowest_sample() -> None:
    """It has no absolute value in int16."""
    line = array_line("audio", np.array([-32768, 5], np.int16), Recording(WAVEFORM, 8000.0, [800]))
    assert line == "audio: int16 [2], 0.00025 s of sound at 8000 Hz, peak 1 of full scale"


def test_preview_of_a_remote_dataset_fetches_parts_of_shards(
    extracted: dict[str, Path], form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(extracted[form]), f"/previewed-{form}", recursive=True)
    ranges: list[tuple[str, int]] = []
    cat_file = type(memory).cat_file

    def counted(self: Any, path: str, start: int | None = None, end: int | None = None, **more: Any) -> bytes:
        if path.endswith(".tar"):
            ranges.append((path.rpartition("/")[2], (end or 0) - (start or 0)))
        return cat_file(self, path, start=start, end=end, **more)

    monkeypatch.setattr(type(memory), "cat_file", counted)
    [local] = preview(str(extracted[form]), 1)
    [first] = preview(f"memory://previewed-{form}", 1, cache_dir=tmp_path)
    np.testing.assert_array_equal(first.features["video"], local.features["video"])
    assert not list(tmp_path.rglob("*.tar"))
    assert [name for name, _ in ranges] == [SHARD] * 3, "one read each for sound, all pictures, metadata"
    assert sum(size for _, size in ranges) < 0.3 * (extracted[form] / SHARD).stat().st_size


def test_preview_names_a_picture_that_is_damaged(jpeg: Path) -> None:
    path, start, _ = place_of(jpeg, "clip1", 2)
    overwrite(path, start, bytes(20))
    at = rf"{SHARD}: 'clip1': video: picture 2 not a JPEG that can be read \(.*\): damaged; extract it again"
    with pytest.raises(ValueError, match=at) as caught:
        list(preview(str(jpeg), 5))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [600, 20_000, 100_000])
def test_preview_of_a_shard_that_is_cut_short(dataset: Path, size: int) -> None:
    content = (dataset / SHARD).read_bytes()
    (dataset / SHARD).write_bytes(content[:size])
    with pytest.raises(ValueError, match=rf"{SHARD}: 'clip\d'.*") as caught:
        list(preview(str(dataset), 5))
    assert "\n" not in str(caught.value)


# --- verify --------------------------------------------------------------------------------------


def place_of(dataset: Path, key: str, picture: int | None) -> tuple[Path, int, int]:
    """Shard, offset and size of a picture of an utterance as JPEG; None: of its sound."""
    store, manifest, _ = open_dataset(str(dataset))
    index = ShardReader(store, manifest, "train").index(0)
    row = index.key.tolist().index(key)
    path = dataset / manifest.splits["train"].shards[0].name
    if picture is None:
        return path, int(index.offset["audio"][row]), int(index.steps["audio"][row]) * 3200
    at = int(index.steps["video"][:row].sum()) + picture
    return path, int(index.picture_offset["video"][at]), int(index.picture_size["video"][at])


def overwrite(path: Path, start: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(content)


def named_again(dataset: Path, index: bool = False) -> None:
    """Let the manifest name the first shard as it is now, or its index."""
    name, fields = (SHARD, ("bytes", "sha256"))
    if index:
        name, fields = "train-000000.index.npz", ("index_bytes", "index_sha256")
    content = (dataset / name).read_bytes()
    values = dict(zip(fields, (len(content), hashlib.sha256(content).hexdigest()), strict=True))
    changed(dataset, lambda record: record["splits"]["train"]["shards"][0].update(values))


def with_right_crcs(dataset: Path) -> None:
    """Index the first shard again, as one who forges it would."""
    from shards.format.index import index_tar
    from shards.format.index_file import save_index

    _, manifest, _ = open_dataset(str(dataset))
    index = index_tar(dataset / SHARD, manifest.modalities, manifest.classes)
    save_index(index, dataset / "train-000000.index.npz")
    named_again(dataset)
    named_again(dataset, index=True)


def test_verify_a_sound_dataset(extracted: dict[str, Path], form: str) -> None:
    found = verify(str(extracted[form]), progress=False)
    assert (found.faults, found.utterances) == ([], 7)
    assert "7 utterances: all as in the manifest" in format_verified(found)


def test_a_single_bit_of_a_picture_names_shard_and_key(jpeg: Path) -> None:
    path, start, size = place_of(jpeg, "clip3", 7)
    content = path.read_bytes()
    overwrite(path, start + size - 10, bytes([content[start + size - 10] ^ 1]))
    assert [(f.file, f.key, f.cause) for f in verify(str(jpeg), progress=False).faults] == [
        (SHARD, None, "its hash is not the manifest's; 1 of its 5 utterances are damaged"),
        (SHARD, "clip3", "video is damaged"),
    ]
    # Where the manifest names the damaged shard, the index knows.
    named_again(jpeg)
    assert [(f.file, f.key, f.cause) for f in verify(str(jpeg), progress=False).faults] == [
        (SHARD, "clip3", "CRC-32 of video: the index differs from the shard; pack it again")
    ]


def test_a_single_bit_of_sound_names_shard_and_key(dataset: Path) -> None:
    path, start, size = place_of(dataset, "clip2", None)
    content = path.read_bytes()
    overwrite(path, start + size - 10, bytes([content[start + size - 10] ^ 1]))
    faults = verify(str(dataset), progress=False).faults
    assert [(f.file, f.key, f.cause) for f in faults[1:]] == [(SHARD, "clip2", "audio is damaged")]


def test_a_shard_that_is_cut_short(dataset: Path) -> None:
    content = (dataset / SHARD).read_bytes()
    (dataset / SHARD).write_bytes(content[: len(content) // 2])
    first, *others = verify(str(dataset), progress=False).faults
    assert first.cause.startswith(f"{len(content) // 2} bytes, {len(content)} by the manifest; ")
    assert {f.key for f in others} == {"clip3", "clip4"}
    assert {f.cause for f in others} >= {"audio is cut short", "video is cut short"}


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda content: bytes(20) + content[20:], "video: picture 7 not a JPEG that can be read ("),
        (lambda content: content[: len(content) // 3].ljust(len(content), b"\0"), "video: picture 7 "),
        (
            lambda content: content.replace(b"\0\x11\x08\0\x20\0\x20", b"\0\x11\x08\0\x20\0\x10"),
            "video: picture 7 is RGB of 16 x 32, not RGB of 32 x 32; extract it again",
        ),
    ],
)
def test_a_picture_that_cannot_be_decoded_though_all_hashes_are_right(
    jpeg: Path, damage: Callable[[bytes], bytes], cause: str
) -> None:
    path, start, size = place_of(jpeg, "clip3", 7)
    content = path.read_bytes()[start : start + size]
    assert damage(content) != content
    assert len(damage(content)) == size
    overwrite(path, start, damage(content))
    with_right_crcs(jpeg)
    [fault] = verify(str(jpeg), progress=False).faults
    assert (fault.file, fault.key) == (SHARD, "clip3")
    assert fault.cause.startswith(cause)
    assert f"{SHARD}: clip3: video: picture 7 " in format_verified(verify(str(jpeg), progress=False))


def test_samples_that_do_not_make_the_steps(dataset: Path) -> None:
    """The metadata in the shard say otherwise than its sound; all hashes are right."""
    path = dataset / SHARD
    content = path.read_bytes()
    assert content.count(b'"num_samples": {"audio": 12800}') == 1
    path.write_bytes(content.replace(b'{"audio": 12800}', b'{"audio": 12801}'))
    named_again(dataset)
    [fault] = verify(str(dataset), progress=False).faults
    assert fault.file == SHARD
    assert fault.cause == (
        "'clip2': num_samples of audio is 12801, which does not make 8 steps of 1600 samples; write it again"
    )


# --- simulate ------------------------------------------------------------------------------------


def report(url: Path, ranks: int, batch: int) -> Any:
    store, manifest, _ = open_dataset(str(url))
    return simulate(split_sizes(store, manifest, "train"), 1, ranks, batch)


def test_memory_of_a_rank_is_that_of_decoded_pictures(extracted: dict[str, Path]) -> None:
    found = {name: report(extracted[name], 1, 5) for name in FORMS}
    for each in found.values():
        assert (
            each.rank_bytes.low == each.rank_bytes.mean == each.rank_bytes.high == sum(BATCH_BYTES) == 351360
        )
    assert found["jpeg"].node_bytes.high < found["arrays"].node_bytes.high
    assert "memory of a batch  351 kB per rank, 351 kB at most" in format_report(found["jpeg"])


def test_memory_of_ranks_is_that_of_their_batches(extracted: dict[str, Path], form: str) -> None:
    """The only full step of two, of one utterance per rank."""
    found = report(extracted[form], 4, 4)
    stream = FeatureStream(str(extracted[form]), global_batch_size=4, prefetch=0)
    batch = next(iter(stream.epoch(0)))
    sizes = [BATCH_BYTES[int(key.removeprefix("clip"))] for key in batch.key]
    assert (found.rank_bytes.low, found.rank_bytes.high) == (min(sizes), max(sizes))
    assert found.rank_bytes.mean == sum(sizes) / 4


def test_memory_of_features(tmp_path: Path) -> None:
    pack(corpus(24, 0), tmp_path / "d")
    found = report(tmp_path / "d", 1, 24)
    [batch] = FeatureStream(str(tmp_path / "d"), global_batch_size=24, prefetch=0).epoch(0)
    values = [ragged.values for ragged in batch.features.values()]
    assert found.rank_bytes.high == sum(each.numel() * each.element_size() for each in values)
    drawn = simulate(synthetic_sizes("1000x10"), 1, 2, 8).rank_bytes
    assert 4 * 30 * 1700 <= drawn.low < drawn.mean < drawn.high <= 4 * 904 * 1700


# --- index ---------------------------------------------------------------------------------------


def tars_alone(dataset: Path, folder: Path, keep: Callable[[str], bool]) -> str:
    """The first shard in a new folder, with some of its members."""
    folder.mkdir()
    with tarfile.open(dataset / SHARD) as source, tarfile.open(folder / "a.tar", "w") as target:
        for member in source:
            if keep(member.name):
                target.addfile(member, source.extractfile(member))
    return str(folder)


@pytest.mark.parametrize(
    ("of", "ending", "told"),
    [
        ("arrays", "audio.npy", "a.tar: clip0: audio is int16 of shape (5, 1600), sound as recorded"),
        ("arrays", "video.npy", "a.tar: clip0: video is uint8 of shape (5, 32, 32, 3), pictures as recorded"),
        ("jpeg", "audio.npy", "a.tar: clip0: audio is int16 of shape (5, 1600), sound as recorded"),
        (
            "jpeg",
            ".jpg",
            "no arrays; features are members <key>.<modality>.npy, [steps, features per step]; pict",
        ),
        ("jpeg", "", "a.tar: clip0: audio is int16 of shape (5, 1600), sound as recorded"),
    ],
)
def test_tars_of_recordings_are_not_indexed_as_features(
    extracted: dict[str, Path], tmp_path: Path, of: str, ending: str, told: str
) -> None:
    url = tars_alone(extracted[of], tmp_path / "t", lambda name: name.endswith((ending, ".json")))
    with pytest.raises(ValueError, match="`awtpn extract` makes datasets of recordings") as caught:
        index_url(url, cache_dir=tmp_path / "cache", progress=False)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == ["a.tar"]


def test_a_dataset_of_recordings_needs_no_indexing(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a packed dataset already; it needs no indexing"):
        index_url(str(dataset), cache_dir=tmp_path / "cache", progress=False)
