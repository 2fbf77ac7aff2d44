"""info, preview and verify: what they tell of a sound dataset, and of every way to damage one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
from shards_support import CLASSES, DIMS, corpus, pack, utterance

from shards import FeatureStream
from shards.storage.store import open_dataset
from shards.streaming.reader import ShardReader
from shards.tools.info import format_bytes, format_info, format_preview, info, preview
from shards.tools.verify import Fault, format_verified, verify


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    pack(corpus(), tmp_path / "d", provenance={"encoder": "wav2vec2"})
    return tmp_path / "d"


def test_info(dataset: Path) -> None:
    found = info(str(dataset))
    samples = [sample for sample in corpus() if sample.split == "train"]
    train = found.splits["train"]
    assert (train.utterances, list(found.splits)) == (40, ["train", "test"])
    assert train.class_counts == {c: sum(s.label == c for s in samples) for c in CLASSES}
    assert train.bytes == sum(path.stat().st_size for path in dataset.glob("train-*.tar"))
    lengths = [len(s.features["video"]) for s in samples if s.features["video"] is not None]
    video = train.lengths["video"]
    assert (video.least, video.most, video.missing) == (min(lengths), max(lengths), 40 - len(lengths))
    assert video.median == np.median(lengths)
    for low, high, count in zip(video.edges, video.edges[1:], video.counts, strict=False):
        assert count == sum(low <= length < high for length in lengths)
    text = format_info(found)
    for part in ("audio", "float16", "split test", "calm", "wav2vec2", "fold (int)", "without"):
        assert part in text


def test_info_of_one_split_without_lengths(dataset: Path) -> None:
    for index in dataset.glob("*.npz"):
        index.unlink()
    found = info(f"{dataset}#test", lengths=False)
    assert list(found.splits) == ["test"]
    assert "split test" in format_info(found)
    with pytest.raises(ValueError, match=r"no split 'dev'; it has \['train', 'test'\]"):
        info(f"{dataset}#dev")


def test_preview(dataset: Path) -> None:
    found = list(preview(str(dataset), 6))
    for one, sample in zip(found, corpus(), strict=False):
        assert (one.key, one.label, one.split) == (sample.key, sample.label, "train")
        assert one.meta["speaker"] == sample.meta["speaker"]
        for name, dim in DIMS.items():
            expected = sample.features[name]
            np.testing.assert_array_equal(
                one.features[name], np.zeros((0, dim)) if expected is None else expected
            )
        assert sample.key in format_preview(one)
    assert len(found) == 6
    assert "video: missing" in format_preview(found[4])
    assert next(preview(str(dataset), 1, split="test")).key == "test-1000"
    assert len(list(preview(f"{dataset}#test", 1_000))) == 7


def test_preview_of_a_remote_dataset_fetches_no_shard(remote: str, tmp_path: Path) -> None:
    assert next(preview(remote, 1, cache_dir=tmp_path)).key == "train-0"
    assert not list(tmp_path.rglob("*.tar"))


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (1_500, "1.5 kB"), (999_900, "1 MB"), (2 * 10**15, "2 PB")]
)
def test_human(size: int, text: str) -> None:
    assert format_bytes(size) == text


def test_verify_a_sound_dataset(dataset: Path, remote: str, tmp_path: Path) -> None:
    for url in (str(dataset), remote):
        found = verify(url, progress=False, cache_dir=tmp_path / "cache")
        assert (found.faults, found.utterances) == ([], 47)
        assert "all as in the manifest" in format_verified(found)
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    ("name", "factor", "shift"),
    [("mean", 1, 1000.0), ("mean", 1, 0.1), ("std", 1e-3, 0.0), ("std", 1.01, 0.0)],
)
def test_moments_that_are_not_those_of_the_values_are_named(
    dataset: Path, name: str, factor: float, shift: float
) -> None:
    """Training standardizes with them, and no hash covers them."""
    path = dataset / "manifest.json"
    record = json.loads(path.read_text())
    moments = record["splits"]["train"]["moments"]["audio"]
    moments[name][1] = moments[name][1] * factor + shift
    path.write_text(json.dumps(record))
    [fault] = verify(str(dataset), progress=False).faults
    assert (fault.file, fault.key) == ("manifest.json", None)
    assert fault.cause.startswith(f"splits.train.moments.audio: {name}[1] is ")


def test_moments_are_the_same_however_the_values_are_read(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "shards.tools.statistics_checks.CHUNK_BYTES", 30
    )  # three steps of audio, and five of video
    assert verify(str(dataset), progress=False).faults == []
    constant = {"audio": np.full((7, 5), 1.1, np.float32), "video": None}
    pack([utterance(i, features=constant) for i in range(6)], tmp_path / "constant")
    assert verify(str(tmp_path / "constant"), progress=False).faults == []


def place_of(dataset: Path, key: str, part: str) -> tuple[Path, int]:
    """Shard, and first byte of an array or JSON member of an utterance."""
    store, manifest, _ = open_dataset(str(dataset))
    entries = manifest.splits["train"].shards
    reader = ShardReader(store, manifest, "train")
    for shard, entry in enumerate(entries):
        index = reader.index(shard)
        for row in np.flatnonzero(index.key == key):
            offset = index.json_offset if part == "json" else index.offset[part]
            return dataset / entry.name, int(offset[row])
    raise KeyError(key)


def flip(path: Path, byte: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("part", ["audio", "video", "json"])
def test_a_single_bit_names_shard_and_key(dataset: Path, part: str) -> None:
    path, byte = place_of(dataset, "train-7", part)
    flip(path, byte + 1)
    found = verify(str(dataset), progress=False)
    assert Fault(path.name, "train-7", f"{part} is damaged") in found.faults
    assert {fault.key for fault in found.faults} == {None, "train-7"}
    assert f"{path.name}: train-7: {part} is damaged" in format_verified(found)


def test_a_remote_shard_damaged_in_the_store(remote: str, tmp_path: Path) -> None:
    """What the cache holds is sound: what lies in the store is what counts."""
    fs, path = fsspec.filesystem("memory"), remote.removeprefix("memory:/") + "/train-000001.tar"
    content = bytearray(fs.cat_file(path))
    content[600:700] = bytes(100)
    fs.pipe_file(path, bytes(content))
    found = verify(remote, progress=False, cache_dir=tmp_path)
    assert {fault.file for fault in found.faults} == {"train-000001.tar"}
    assert any(fault.key for fault in found.faults)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def swap(path: Path) -> None:
    other = path.with_name("train-000003.tar")
    path.write_bytes(other.read_bytes())


def header(path: Path) -> None:
    flip(path, 10)


@pytest.mark.parametrize(
    ("damage", "cause", "names_keys"),
    [
        (truncate, r"\d+ bytes, \d+ by the manifest", True),
        (swap, r"bytes, \d+ by the manifest|hash is not", True),
        (header, "its hash is not the manifest's; none of its utterances is damaged", False),
        (Path.unlink, "missing", False),
    ],
)
def test_damaged_shards(dataset: Path, damage: Callable[[Path], None], cause: str, names_keys: bool) -> None:
    damage(dataset / "train-000002.tar")
    found = verify(str(dataset), progress=False)
    assert {fault.file for fault in found.faults} == {"train-000002.tar"}
    assert re.search(cause, found.faults[0].cause)
    assert any(fault.key for fault in found.faults) == names_keys


def test_a_damaged_index(dataset: Path) -> None:
    flip(dataset / "train-000002.index.npz", 300)
    flip(dataset / "train-000002.tar", 3_000)
    found = verify(str(dataset), progress=False)
    assert [fault.file for fault in found.faults] == ["train-000002.index.npz", "train-000002.tar"]
    assert "can be checked" in found.faults[1].cause


@pytest.mark.parametrize("where", ["middle", "end"])
def test_a_damaged_index_is_told_by_info_and_preview(dataset: Path, where: str) -> None:
    """Its hash is looked at first: what NumPy and zip say of damage is of every kind."""
    path = dataset / "train-000000.index.npz"
    content = bytearray(path.read_bytes())
    at = len(content) // 2 if where == "middle" else len(content) - 20
    content[at : at + 20] = bytes(b ^ 255 for b in content[at : at + 20])
    path.write_bytes(content)
    for look in (info, lambda url: list(preview(url))):
        with pytest.raises(ValueError, match=r"train-000000.index.npz: not the index the manifest names"):
            look(str(dataset))


def hashed_again(folder: Path, name: str) -> None:
    """Let the manifest name an index as it is now."""
    path = folder / "manifest.json"
    manifest, content = json.loads(path.read_text()), (folder / name).read_bytes()
    for split in manifest["splits"].values():
        for entry in split["shards"]:
            if entry["index"] == name:
                entry["index_bytes"] = len(content)
                entry["index_sha256"] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"PK\3\4 oops" + bytes(500), "not the index of a shard"),
        (bytes(500), "not the index of a shard"),
        (None, "utterances, "),
    ],
)
def test_an_index_that_is_named_but_none(dataset: Path, content: bytes | None, told: str) -> None:
    name = "train-000001.index.npz"
    other = (dataset / "test-000001.index.npz").read_bytes()
    (dataset / name).write_bytes(other if content is None else content)
    hashed_again(dataset, name)
    with pytest.raises(ValueError, match=f"{name}: .*{told}"):
        info(str(dataset))
    [fault] = verify(str(dataset), progress=False).faults
    assert (fault.file, fault.key) == (name, None)
    assert told in fault.cause


def test_metadata_that_are_no_object_are_refused_by_every_reader(dataset: Path) -> None:
    """The manifest names the shard's bytes as they are."""
    shard = dataset / "train-000000.tar"
    content = shard.read_bytes()
    begin = content.index(b'{"label"')
    end = content.index(b"\0", begin)
    shard.write_bytes(content[:begin] + b"[" + b" " * (end - begin - 2) + b"]" + content[end:])
    manifest = (dataset / "manifest.json").read_text()
    digests = [hashlib.sha256(each).hexdigest() for each in (content, shard.read_bytes())]
    (dataset / "manifest.json").write_text(manifest.replace(*digests))
    with pytest.raises(ValueError, match=r"train-000000\.tar: 'train-0': its metadata are not a JSON object"):
        next(preview(str(dataset)))
    fault, *_ = verify(str(dataset), progress=False).faults
    assert (fault.file, fault.key, fault.cause.partition(";")[0]) == (
        "train-000000.tar",
        "train-0",
        "its metadata are not a JSON object",
    )
    with pytest.raises(ValueError, match="'train-0': its metadata are not a JSON object"):
        list(FeatureStream(str(dataset)).metadata())


def test_no_workers(dataset: Path) -> None:
    with pytest.raises(ValueError, match="workers 0: there must be at least one"):
        verify(str(dataset), workers=0)


def test_verified_text_is_bounded(tmp_path: Path) -> None:
    pack([utterance(i) for i in range(90)], tmp_path / "d", shard_bytes=1 << 20)
    path = tmp_path / "d" / "train-000000.tar"
    path.write_bytes(bytes(path.stat().st_size))
    text = format_verified(verify(str(tmp_path / "d"), progress=False))
    assert "90 utterances named" in text
    assert len(text.splitlines()) == 52


def test_indexes_without_crcs_still_read(dataset: Path) -> None:
    """An index made before arrays had CRCs: the shard is named, and what cannot be told."""
    path = dataset / "train-000002.index.npz"
    with np.load(path) as file:
        arrays = {name: values for name, values in file.items() if not name.startswith(("crc.", "form."))}
    np.savez(path, **arrays)
    hashed_again(dataset, path.name)
    assert verify(str(dataset), progress=False).faults == []
    flip(dataset / "train-000002.tar", 3_000)
    [fault] = verify(str(dataset), progress=False).faults
    assert "can be checked" in fault.cause
