"""Sources: what each reads, and what it refuses."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import REPO

import shards
from awtpn.cli import main as awtpn
from shards import FeatureStream, Sample
from shards.sources import Source, demo, npz, reference, table

RAVDESS = REPO.parent / "shared" / "data" / "ravdess" / "ravdess_features.npz"


def samples(source: Source) -> list[Sample]:
    found = list(source.samples)
    assert all(isinstance(sample, Sample) for sample in found)
    assert len(found) == source.total
    return found  # type: ignore[return-value]


def pack(source: Source, out: Path, **options: Any) -> shards.Manifest:
    return shards.pack(
        source.samples,
        str(out),
        classes=source.classes,
        provenance=source.provenance,
        progress=False,
        **options,
    )


# The published code's .pt files


def reference_split(utterances: int) -> dict[str, Any]:
    return {
        "audio_feats": torch.randn(utterances, 6, 4),
        "video_feats": torch.randn(utterances, 3, 2),
        "labels": torch.arange(utterances) % 3,
    }


def test_reference(tmp_path: Path) -> None:
    records = {split: reference_split(size) for split, size in (("train", 7), ("val", 2), ("test", 3))}
    for split, record in records.items():
        torch.save(record, tmp_path / f"{split}.pt")
    source = reference.read(tmp_path)
    assert source.classes == ["class_0", "class_1", "class_2"]
    found = samples(source)
    assert [sample.key for sample in found][6:8] == ["train-000006", "val-000000"]
    np.testing.assert_array_equal(found[3].features["video"], records["train"]["video_feats"][3].numpy())
    manifest = pack(reference.read(tmp_path, labels=["a", "b", "c"]), tmp_path / "out")
    assert {name: split.utterances for name, split in manifest.splits.items()} == {
        "train": 7,
        "val": 2,
        "test": 3,
    }
    assert manifest.classes == ["a", "b", "c"]


def test_reference_of_different_lengths(tmp_path: Path) -> None:
    record = {"audio_feats": [torch.ones(2, 4), torch.ones(5, 4).bfloat16()], "labels": [0, 1]}
    torch.save(record, tmp_path / "train.pt")
    assert [len(sample.features["audio"]) for sample in samples(reference.read(tmp_path))] == [2, 5]


def test_reference_of_old_torch_versions(tmp_path: Path) -> None:
    torch.save(reference_split(2), tmp_path / "train.pt", _use_new_zipfile_serialization=False)
    assert len(samples(reference.read(tmp_path))) == 2


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "no train.pt, val.pt or test.pt"),
        ({"audio_feats": np.ones((2, 3, 4)), "labels": [0, 1]}, r"train.pt: not a file of plain tensors"),
        ([1], r"train.pt: must be a dict"),
        ({"labels": [0]}, r"train.pt: must be a dict"),
        ({"audio_feats": torch.ones(2, 3, 4), "labels": [0]}, r"audio_feats has 2 utterances, labels 1"),
        ({"audio_feats": torch.ones(1, 3, 4), "labels": torch.tensor([-1])}, r"labels must be integers"),
        ({"audio_feats": torch.ones(1, 3, 4), "labels": torch.tensor([5])}, r"go up to 5, but only 2 names"),
    ],
)
def test_reference_refusals(tmp_path: Path, record: Any, message: str) -> None:
    if record is not None:
        torch.save(record, tmp_path / "train.pt")
    with pytest.raises(ValueError, match=message):
        reference.read(tmp_path, labels=["a", "b"])


# Tables


ROWS = [
    {
        "key": "u0",
        "split": "train",
        "label": "sad",
        "audio": "a.npy",
        "video": "v.npy",
        "actor": "1",
        "take": "01",
    },
    {
        "key": "u1",
        "split": "test",
        "label": "calm",
        "audio": "a.npy",
        "video": "",
        "actor": "2",
        "take": "02",
    },
]


def write_csv(folder: Path, rows: list[dict[str, Any]]) -> Path:
    with open(folder / "t.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "t.csv"


def write_jsonl(folder: Path, rows: list[dict[str, Any]]) -> Path:
    lines = [json.dumps({**row, "actor": int(row["actor"])}) for row in rows]
    (folder / "t.jsonl").write_text("\n".join(lines) + "\n\n")
    return folder / "t.jsonl"


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    np.save(tmp_path / "a.npy", np.ones((4, 3), np.float32))
    np.save(tmp_path / "v.npy", np.asfortranarray(np.arange(10.0).reshape(5, 2)))
    return tmp_path


@pytest.mark.parametrize("write", [write_csv, write_jsonl])
def test_table(arrays: Path, write: Callable[[Path, list[dict[str, Any]]], Path]) -> None:
    source = table.read(write(arrays, ROWS))
    assert source.classes == ["calm", "sad"]
    one, two = samples(source)
    assert one.meta == {"actor": 1, "take": "01"}
    assert two.features["video"] is None
    manifest = pack(table.read(write(arrays, ROWS)), arrays / "out")
    assert manifest.columns == {"actor": "int", "take": "str"}
    batch = next(FeatureStream(str(arrays / "out")).epoch(0))
    np.testing.assert_array_equal(batch.features["video"].values, np.arange(10.0).reshape(5, 2))


def test_modalities_of_a_table_are_those_that_are_named(
    arrays: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_csv(arrays, [row | {"text": row["video"]} for row in ROWS])
    one, _ = samples(table.read(path))
    assert one.meta["text"] == "v.npy"
    assert "to make it features, name it among --modalities" in caplog.text
    awtpn(["pack", str(path), str(arrays / "out"), "--format", "table", "--modalities", "audio,text"])
    stream = FeatureStream(str(arrays / "out"))
    assert {name: of.dim for name, of in stream.modalities.items()} == {"audio": 3, "text": 2}
    with pytest.raises(ValueError, match=r"t.csv: no row has 'txt', which --modalities names"):
        table.read(path, modalities=["audio", "txt"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio": "gone.npy"}, r"t.csv: row 1: utterance 'u0': audio: no such file .*gone.npy"),
        ({"audio": "bad.npy"}, r"audio: .*bad.npy is not a plain .npy array"),
        ({"audio": "objects.npy"}, r"audio: .*objects.npy is not a plain .npy array"),
        ({"key": "u.0"}, r"row 1: utterance 'u.0': a key must be"),
        ({"label": "bored"}, r"row 1: utterance 'u0': label 'bored' is unknown"),
    ],
)
def test_table_bad_rows_are_refused_or_skipped(arrays: Path, change: dict[str, str], message: str) -> None:
    (arrays / "bad.npy").write_bytes(b"oops")
    np.save(arrays / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    path = write_csv(arrays, [ROWS[0] | change, ROWS[1]])
    with pytest.raises(ValueError, match=message):
        pack(table.read(path, labels=["sad", "calm"]), arrays / "one")
    manifest = pack(table.read(path, labels=["sad", "calm"]), arrays / "two", on_bad="skip")
    assert (manifest.skipped, list(manifest.splits)) == (1, ["test"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", None, "no such table"),
        ("t.xlsx", "x", "a table is a .csv or a .jsonl"),
        ("t.csv", "key,split,audio\nu,train,a.npy\n", "row 1 has columns .* expected key, split, label"),
        ("t.csv", "key,split,label\nu,train,sad\n", "one of audio, video"),
        ("t.csv", "key,split,label,audio\nu,train,sad,a.npy,x\n", "row 1 has 5 fields, the header 4; put"),
        ("t.jsonl", "{}\n", "row 1 has columns"),
        ("t.jsonl", "oops\n", "line 1: not JSON"),
        ("t.jsonl", "[]\n", "line 1: must be an object"),
    ],
)
def test_table_refusals(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        table.read(tmp_path / name)


# Packed arrays


PACKED: dict[str, Any] = {
    "ids": np.array(["a", "b"]),
    "label": np.array([1, 0]),
    "label_names": np.array(["calm", "sad"]),
    "audio": np.arange(10, dtype=np.float32).reshape(5, 2),
    "audio_offsets": np.array([0, 2, 5]),
    "video": np.ones((2, 1, 3)),
    "fold": np.array([0, 1]),
}


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **PACKED)
    source = npz.read(tmp_path / "x.npz")
    assert source.classes == ["calm", "sad"]
    one, two = samples(source)
    assert (one.key, one.split, one.label, one.meta) == ("a", "all", "sad", {"fold": 0})
    np.testing.assert_array_equal(two.features["audio"], PACKED["audio"][2:])
    np.testing.assert_array_equal(two.features["video"], np.ones((1, 3)))


def test_npz_with_splits_and_named_labels(tmp_path: Path) -> None:
    packed = {name: array for name, array in PACKED.items() if name != "label_names"}
    packed |= {"split": np.array(["train", "test"]), "label": np.array(["sad", "calm"])}
    np.savez(tmp_path / "x.npz", **packed)
    found = [(sample.split, sample.label) for sample in samples(npz.read(tmp_path / "x.npz"))]
    assert found == [("train", "sad"), ("test", "calm")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": None}, "array 'ids' is missing"),
        ({"label": None}, "array 'label' is missing"),
        ({"label": np.array([0, -1])}, "labels count from 0"),
        ({"label": np.array([0, 1 << 40])}, "labels go up to 1099511627776, while classes are numbered 0, 1"),
        ({"label": np.array([0, 9])}, "go up to 9, but only 2 names"),
        ({"label": np.array([0])}, "label has 1 utterances, ids 2"),
        ({"audio_offsets": np.array([0, 2])}, "audio_offsets must rise from 0 to 5"),
        ({"audio_offsets": np.array([0, 7, 5])}, "audio_offsets must rise"),
        ({"audio_offsets": np.array([0, 1, 2, 5])}, "audio has 3 utterances, ids 2"),
        ({"audio_offsets": np.array([0.0, 2, 5])}, "audio_offsets must be integers"),
        ({"fold": np.array([1, 2, 3])}, "fold has 3 utterances, ids 2"),
        ({"audio": None, "audio_offsets": None, "video": None}, "no features"),
        ({"fold": np.array([{}, {}], dtype=object)}, "not an .npz of plain arrays"),
    ],
)
def test_npz_refusals(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    packed = {name: array for name, array in (PACKED | change).items() if array is not None}
    np.savez(tmp_path / "x.npz", **packed)
    with pytest.raises(ValueError, match=message):
        npz.read(tmp_path / "x.npz")


def test_npz_missing_or_other_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        npz.read(tmp_path / "x.npz")
    np.save(tmp_path / "x.npy", np.ones(3))
    with pytest.raises(ValueError, match=r"not an .npz"):
        npz.read(tmp_path / "x.npy")


@pytest.mark.skipif(not RAVDESS.exists(), reason=f"the RAVDESS features are not at {RAVDESS}")
def test_ravdess(tmp_path: Path) -> None:
    manifest = pack(npz.read(RAVDESS), tmp_path / "r")
    assert manifest.columns == {"actor": "int", "fold": "int"}
    url = str(tmp_path / "r")
    folds = [FeatureStream(url, "test", select={"fold": fold}, shuffle=False) for fold in range(4)]
    assert sum(stream.num_utterances for stream in folds) == manifest.splits["all"].utterances == 1192
    train = FeatureStream(url, select={"fold": [1, 2, 3]})
    assert [train.overlap(stream) > 0 for stream in folds] == [False, True, True, True]
    with np.load(RAVDESS) as file:
        offsets, audio = file["audio_offsets"], file["audio"]
        i = int(np.flatnonzero(file["fold"] == 0)[0])
    first = next(folds[0].epoch(0)).features["audio"]
    np.testing.assert_allclose(
        first.values[: first.offsets[1]], audio[offsets[i] : offsets[i + 1]], rtol=1e-3, atol=1e-3
    )


# The demo


def test_demo_is_reproducible_and_records_its_informative_steps() -> None:
    sizes = {"train": 400, "val": 0, "test": 8}
    found, again = samples(demo.samples(seed=1, **sizes)), samples(demo.samples(seed=1, **sizes))
    assert {sample.split for sample in found} == {"train", "test"}
    for one, other in zip(found, again, strict=True):
        np.testing.assert_array_equal(one.features["audio"], other.features["audio"])
    share = []
    for sample in found:
        for name, dim in demo.DIMS.items():
            values, informative = sample.features[name], sample.meta[f"informative_{name}"]
            assert values is not None
            assert demo.SHORTEST <= len(values) <= demo.LONGEST
            assert values.shape[1] == dim
            assert informative
            share.append(len(informative) / len(values))
            loud = np.delete(values, informative, axis=0)
            assert np.abs(values[informative]).mean() < np.abs(loud).mean()
    assert np.mean(share) == pytest.approx(demo.INFORMATIVE_SHARE, abs=0.03)


def test_ensure_demo_packs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SIZES", {"train": 16, "val": 8, "test": 8})
    made = demo.samples
    monkeypatch.setattr(demo, "samples", lambda target: made(0, **demo.SIZES, target=target))
    url = demo.ensure_demo(tmp_path)
    written = (Path(url) / "manifest.json").stat().st_mtime_ns
    assert demo.ensure_demo(tmp_path) == url
    assert FeatureStream(url, split="val").name == "the built-in demo"
    assert (Path(url) / "manifest.json").stat().st_mtime_ns == written
    assert FeatureStream(url, "val").class_counts().tolist() == [1] * 8
    monkeypatch.setattr(demo, "FOLDER", "another")
    assert demo.ensure_demo(tmp_path) != url


def test_other_modalities_of_the_demo_do_not_change_audio_and_video() -> None:
    sizes = {"train": 16, "val": 4, "test": 4}
    usual = samples(demo.samples(0, **sizes))
    more = samples(demo.samples(0, **sizes, modalities=["audio", "video", "text", "pose"]))
    for one, other in zip(usual, more, strict=True):
        assert list(other.features) == ["audio", "video", "text", "pose"]
        for name in one.features:
            np.testing.assert_array_equal(one.features[name], other.features[name])
            assert one.meta[f"informative_{name}"] == other.meta[f"informative_{name}"]
        text, informative = other.features["text"], other.meta["informative_text"]
        assert text is not None
        assert text.shape[1] == demo.OTHER_DIM
        assert 0 < len(informative) < len(text)
    assert any(len(s.features["text"]) != len(s.features["pose"]) for s in more)
    [text_alone] = samples(demo.samples(0, 1, 0, 0, modalities=["text"]))
    assert list(text_alone.features) == ["text"]


@pytest.mark.parametrize("names", [[], ["audio", "audio"], ["Audio"], ["json"], ["a-b"]])
def test_names_that_no_modality_of_the_demo_can_have(names: list[str]) -> None:
    with pytest.raises(ValueError, match="modalities of the demo must be different names"):
        demo.samples(modalities=names)


def test_the_folder_of_the_demo_names_these_utterances() -> None:
    """Give `demo.FOLDER` another value together with the figures here."""
    assert demo.FOLDER == "demo-e5c61bd67b"
    made = [sample for sample in demo.samples(0, 8, 4, 4).samples if isinstance(sample, Sample)]
    lengths = [36, 27, 32, 33, 40, 26, 23, 19, 29, 28, 28, 58, 32, 39, 18, 32]
    assert [len(sample.features["audio"]) for sample in made] == lengths
    total = {name: sum(float(np.abs(s.features[name]).sum()) for s in made) for name in demo.DIMS}
    assert total == pytest.approx({"audio": 24276.253, "video": 16388.949}, rel=1e-5)
    settings = demo.samples().provenance["settings"]
    assert (
        hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16] == "e5c61bd67bac7955"
    )
