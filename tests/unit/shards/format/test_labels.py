"""One way from a label to a class, for all sources: what is missing is no class, what is alike is refused."""

from __future__ import annotations

import json
import pickle
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from shards_support import pack as pack_samples
from shards_support import utterance

import shards
from shards import FeatureStream, Sample
from shards.format.labels import found_classes, given_classes, label_name
from shards.format.schema import BadSample
from shards.sources import Source, mmsa, npz, recordings, reference, table
from shards.sources.base import Clip
from shards.tools.index_tars import index_url

NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("happy ", "happy"),
        (b"happy", "happy"),
        (np.bytes_(b"happy"), "happy"),
        (np.str_(" happy\n"), "happy"),
        (unicodedata.normalize("NFD", "fröhlich"), unicodedata.normalize("NFC", "fröhlich")),
        (1, "1"),
        (1.0, "1"),
        ("1.0", "1"),
        (np.float32(2), "2"),
        (np.array([3]), "3"),
        (0.5, "0.5"),
        ("01", "01"),
        ("none", "none"),
    ],
)
def test_a_label_names_one_class_however_it_is_written(value: Any, name: str) -> None:
    assert label_name(value) == name


@pytest.mark.parametrize("value", [None, NAN, np.float32("nan"), "", "  ", b"", "nan", "None", "<NA>"])
def test_a_missing_label_is_no_class(value: Any) -> None:
    with pytest.raises(ValueError, match="has no label"):
        label_name(value)


def test_what_is_no_single_label_is_refused() -> None:
    with pytest.raises(ValueError, match=r"its label is b'\\xff', which is not UTF-8"):
        label_name(b"\xff")
    with pytest.raises(ValueError, match=r"its label is \['a', 'b'\], not a single value"):
        label_name(["a", "b"])
    assert label_name("None", ["None", "happy"]) == "None", "a class by name"


def test_numbers_are_sorted_as_numbers() -> None:
    assert found_classes(["10", "2", 0, 1.0, "-1", None], "t") == ["-1", "0", "1", "2", "10"]
    assert found_classes(["b", "10", "a", "9"], "t") == ["9", "10", "a", "b"]


def test_labels_that_differ_in_case_or_spaces_only_are_refused_with_their_counts() -> None:
    told = r"t: labels differ only .*: 'Happy' \(1\), 'happy' \(2\); write them alike, or, .*--labels"
    with pytest.raises(ValueError, match=told):
        found_classes(["Happy", "happy", "happy ", "sad"], "t")
    with pytest.raises(ValueError, match="differ only in case"):
        found_classes(["very  sad", "very sad"], "t")
    with pytest.raises(ValueError, match="t: none of the utterances has a label"):
        found_classes([None, ""], "t")


@pytest.mark.parametrize("mark", ["\u200b", "\u200d", "\ufeff", "\u00ad", "\u2060", "\ufe0f"])
def test_labels_that_differ_in_invisible_characters_only_are_refused(mark: str) -> None:
    shown = repr(f"ha{mark}ppy")
    with pytest.raises(ValueError, match=r"invisible characters: .*write them alike") as caught:
        found_classes(["happy", f"ha{mark}ppy"], "t")
    if mark != "\ufe0f":  # which Python prints as it is
        assert shown in str(caught.value)
        assert shown.isascii(), "the message shows where the character is"
    assert found_classes([f"ha{mark}ppy", "sad"], "t") == [f"ha{mark}ppy", "sad"], "alone it is a name"
    with pytest.raises(ValueError, match="has no label"):
        label_name(mark)
    with pytest.raises(ValueError, match="must be distinct names"):
        given_classes(["happy", mark])


def test_given_classes_are_labels_too() -> None:
    assert given_classes([" happy", b"sad", 1.0]) == ["happy", "sad", "1"]
    with pytest.raises(ValueError, match="must be distinct names"):
        given_classes(["happy", "happy "])


def test_pack_takes_labels_in_any_form(tmp_path: Path) -> None:
    labels: list[Any] = [b"happy", np.str_("sad"), " calm", "calm"]
    samples = [utterance(i, label=label, meta={"place": b"lab"}) for i, label in enumerate(labels)]
    manifest = pack_samples(samples, tmp_path / "d")
    assert manifest.splits["train"].class_counts == [2, 1, 1]
    meta = dict(FeatureStream(str(tmp_path / "d")).metadata())
    assert meta["train-0"] == {"label": "happy", "place": "lab"}
    for missing in (None, NAN, ""):
        with pytest.raises(ValueError, match="utterance 'train-0': has no label"):
            pack_samples([utterance(0, label=missing)], tmp_path / "e")


# --- In each source ------------------------------------------------------------------------------


def labels_of(source: Source) -> list[str | None]:
    """By utterance its label; None for a bad one."""
    found = list(source.samples)
    assert len(found) == source.total
    assert all(s.label in source.classes for s in found if isinstance(s, Sample))
    return [s.label if isinstance(s, Sample) else None for s in found]


def saved(path: Path, **arrays: Any) -> Path:
    utterances = len(arrays["label"])
    ids = np.array([f"u{i}" for i in range(utterances)])
    audio = np.arange(utterances * 12, dtype=np.float32).reshape(utterances, 4, 3) + 1
    np.savez(path, **({"ids": ids, "audio": audio} | arrays))
    return path


@pytest.mark.parametrize(
    ("arrays", "labels"),
    [
        ({"label": np.array([0, 1, NAN, 1.0])}, ["class_0", "class_1", None, "class_1"]),
        ({"label": np.array([0.0, 1]), "label_names": np.array(["calm", "sad"])}, ["calm", "sad"]),
        ({"label": np.array([b"sad", b"calm"])}, ["sad", "calm"]),
        ({"label": np.array(["sad", str(NAN), "", "None"])}, ["sad", None, None, None]),
        ({"label": np.array([[1], [0]]), "label_names": np.array([b"calm", b"sad"])}, ["sad", "calm"]),
        ({"label": np.array([["sad"], ["calm"]])}, ["sad", "calm"]),
        ({"label": np.array([True, False]), "label_names": np.array(["no", "yes"])}, ["yes", "no"]),
    ],
)
def test_labels_of_an_npz(tmp_path: Path, arrays: dict[str, Any], labels: list[str | None]) -> None:
    assert labels_of(npz.read(saved(tmp_path / "x.npz", **arrays))) == labels


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.zeros((2, 2)), r"label has shape \(2, 2\); expected one value per utterance, \[U\]"),
        (np.array([0.5, 1.0]), r"label: 0.5, while classes are whole numbers or names; cut scores"),
        (np.array([np.inf, 1.0]), r"label: inf, while classes"),
        (np.array([NAN, NAN]), "none of the utterances has a label"),
        (np.array([b"\xff", b"a"]), "label: bytes that are not UTF-8"),
        (np.array(["Sad", "sad"]), r"'Sad' \(1\), 'sad' \(1\)"),
    ],
)
def test_labels_that_an_npz_cannot_have(tmp_path: Path, label: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        npz.read(saved(tmp_path / "x.npz", label=label))


def test_bytes_and_columns_of_an_npz(tmp_path: Path) -> None:
    source = npz.read(
        saved(
            tmp_path / "x.npz",
            label=np.array([0, 1]),
            IDs=np.array([b"a", b"b"]),
            ids=np.array([[b"a"], [b"b"]]),
            Split=np.array([b"train", b"dev"]),
            speaker=np.array([[b"s1"], [b"s2"]]),
        )
    )
    one, two = (sample for sample in source.samples if isinstance(sample, Sample))
    assert (one.key, one.split, two.split) == ("a", "train", "val")
    assert one.meta == {"IDs": "a", "speaker": "s1"}


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_labels_of_a_table(tmp_path: Path, suffix: str) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 3), np.float32))
    labels = ["sad", None, "calm ", "nan", "sad"]
    splits = ["train", "train", "valid", "train", None]
    rows = [
        {"Key": f"u{i}", "Split": split, " label": label, "audio": "a.npy"}
        for i, (split, label) in enumerate(zip(splits, labels, strict=True))
    ]
    path = tmp_path / f"t.{suffix}"
    if suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        lines = [",".join(str(value or "") for value in row.values()) for row in rows]
        path.write_text("\n".join([",".join(rows[0]), *lines]))
    source = table.read(path)
    assert source.classes == ["calm", "sad"]
    found = list(source.samples)
    assert [s.split for s in found if isinstance(s, Sample)] == ["train", "val"]
    causes = {s.key: (s.cause, s.source) for s in found if isinstance(s, BadSample)}
    assert causes["u1"] == ("has no label; fill it in, or leave it out", f"{path}: row 2")
    assert causes["u3"][0].startswith("has no label ('nan'); ")
    assert causes["u4"][0].startswith("has no split")
    manifest = shards.pack(
        table.read(path).samples, str(tmp_path / "d"), classes=source.classes, on_bad="skip", progress=False
    )
    assert (manifest.skipped, list(manifest.splits)) == (3, ["train", "val"])


def test_labels_of_tensors(tmp_path: Path) -> None:
    record = {
        "audio_feats": torch.ones(3, 4, 2, requires_grad=True),
        "labels": torch.tensor([[0.0], [NAN], [1]]),
    }
    torch.save(record, tmp_path / "Train.pt")
    torch.save(record | {"labels": [1, 1, 0]}, tmp_path / "dev.pt")
    assert labels_of(reference.read(tmp_path)) == [
        "class_0",
        None,
        "class_1",
        "class_1",
        "class_1",
        "class_0",
    ]
    assert {s.split for s in reference.read(tmp_path).samples if isinstance(s, Sample)} == {"train", "val"}
    torch.save(record, tmp_path / "valid.pt")
    with pytest.raises(ValueError, match=r"dev.pt and valid.pt both mean 'val'; remove one"):
        reference.read(tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(2, 2), r"labels have shape \[2, 2\]; expected one per utterance"),
        (torch.tensor([0.5, 1]), "labels must be integers from 0 on"),
        (["a", "b"], "labels must be integers from 0 on"),
    ],
)
def test_labels_that_tensors_cannot_have(tmp_path: Path, labels: Any, message: str) -> None:
    torch.save({"audio_feats": torch.ones(2, 4, 2), "labels": labels}, tmp_path / "train.pt")
    with pytest.raises(ValueError, match=message):
        reference.read(tmp_path)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.ones(1, 4, 2).to_sparse(), "audio_feats is a sparse tensor; save a dense one"),
        ([[[1.0, 2.0]]], "audio_feats is a list; save a tensor"),
    ],
)
def test_tensors_that_are_none_of_numbers_are_bad_utterances(
    tmp_path: Path, features: Any, message: str
) -> None:
    torch.save({"audio_feats": features, "labels": [0]}, tmp_path / "train.pt")
    [bad] = reference.read(tmp_path).samples
    assert isinstance(bad, BadSample)
    assert message in bad.cause


def mosi(path: Path, **labels: Any) -> Path:
    rng = np.random.default_rng(0)

    def split(name: str) -> dict[str, Any]:
        ids = [f"{name}{i}" for i in range(4)]
        return {
            "id": ids,
            "audio": rng.normal(size=(4, 6, 5)),
            "vision": rng.normal(size=(4, 6, 3)),
            **labels,
        }

    path.write_bytes(pickle.dumps({name: split(name) for name in ("train", "dev", "test")} | {"about": 1}))
    return path


@pytest.mark.parametrize(
    ("name", "labels"),
    [("regression_labels", [1.0, -1, 0, NAN]), ("labels", np.array([[[1.0]], [[-1]], [[0]], [[NAN]]]))],
)
def test_pickles_with_scores_alone(
    tmp_path: Path, name: str, labels: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = mosi(tmp_path / "x.pkl", **{name: labels})
    with pytest.raises(ValueError, match=rf"train: .* but '{name}' is there: .*--label_set sentiment2, "):
        mmsa.read(path)
    source = mmsa.read(path, label_set="sentiment3")
    assert labels_of(source)[:4] == ["positive", "negative", "neutral", None]
    assert {s.split for s in mmsa.read(path, label_set="sentiment3").samples if isinstance(s, Sample)} == {
        "train",
        "val",
        "test",
    }
    assert "1 keys are not used: about" in caplog.text


def test_pickles_with_several_scores_each_are_refused(tmp_path: Path) -> None:
    path = mosi(tmp_path / "x.pkl", labels=np.zeros((4, 1, 7)))
    with pytest.raises(ValueError, match=r"labels has shape \[4, 1, 7\]; expected one number per utterance"):
        mmsa.read(path, label_set="sentiment3")


def test_a_class_that_is_nan_is_a_bad_utterance(tmp_path: Path) -> None:
    path = mosi(tmp_path / "x.pkl", classification_labels=[0, 1, 2, NAN])
    assert labels_of(mmsa.read(path))[:4] == ["negative", "neutral", "positive", None]


def test_labels_of_recordings(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"x")
    labels = ["10", "9", NAN, "9.0", None]
    rows = [
        {"key": f"u{i}", "split": "Dev", "label": label, "path": "a.wav"} for i, label in enumerate(labels)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = recordings.read(tmp_path / "t.jsonl")
    assert source.classes == ["9", "10"]
    clips = [clip for clip in source.clips if isinstance(clip, Clip)]
    assert [(clip.label, clip.split) for clip in clips] == [("10", "val"), ("9", "val"), ("9", "val")]
    assert f"{tmp_path / 't.jsonl'}: split 'Dev' is 'val' here" in source.remarks
    (tmp_path / "t.jsonl").write_text(
        "\n".join(json.dumps(row | {"label": c}) for row, c in zip(rows, "aA", strict=False))
    )
    with pytest.raises(ValueError, match=r"'A' \(1\), 'a' \(1\)"):
        recordings.read(tmp_path / "t.jsonl")


def tar(path: Path, labels: list[Any]) -> None:
    with webdataset.TarWriter(str(path)) as writer:
        for i, label in enumerate(labels):
            features = np.full((2, 3), i, np.float16)
            writer.write({"__key__": f"{path.stem}{i}", "audio.npy": features, "json": {"label": label}})


def test_labels_of_tars_of_others(tmp_path: Path) -> None:
    tar(tmp_path / "train-0.tar", [10, 9.0, " 9 "])
    tar(tmp_path / "dev-0.tar", ["10"])
    manifest = index_url(str(tmp_path), progress=False).manifest
    assert manifest.classes == ["9", "10"]
    assert {name: split.class_counts for name, split in manifest.splits.items()} == {
        "val": [0, 1],
        "train": [2, 1],
    }
    for labels, message in (
        (["sad", "Sad "], r"'Sad' \(1\), 'sad' \(1\)"),
        (["sad", NAN], r"train-01: no label \(nan\); name the JSON field"),
        (["sad", "None"], r"train-01: no label \('None'\)"),
    ):
        tar(tmp_path / "train-0.tar", labels)
        with pytest.raises(ValueError, match=message):
            index_url(str(tmp_path), progress=False)


# --- Padding, and what is not used ---------------------------------------------------------------


def test_padding_is_left_out_by_the_lengths(tmp_path: Path) -> None:
    padded = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    path = saved(tmp_path / "x.npz", label=np.array([0, 1]), audio=padded, Audio_Lengths=np.array([[3], [0]]))
    one, two = (s for s in npz.read(path).samples if isinstance(s, Sample))
    np.testing.assert_array_equal(one.features["audio"], padded[0, :3])
    assert len(two.features["audio"]) == 0, "missing"  # type: ignore[arg-type]
    assert one.meta == {}
    steps = padded.reshape(8, 3)
    path = saved(tmp_path / "y.npz", label=np.array([0, 1]), audio=steps, audio_len=np.array([2, 6]))
    assert [len(s.features["audio"]) for s in npz.read(path).samples] == [2, 6]  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"audio_lengths": [5, 1]},
            r"audio_lengths must be 2 numbers from 0 to 4, .* it has 2, one of which is 5",
        ),
        ({"audio_lengths": [4, -1]}, "audio_lengths must be 2 numbers from 0 to 4"),
        ({"audio_lengths": [4]}, "audio_lengths must be 2 numbers .* it has 1"),
        ({"audio_lengths": [1.5, 2]}, "expected integers"),
        ({"lengths": [4, 2]}, r"lengths seems to tell .* save lengths as audio_lengths \[U\], or,"),
        ({"sound_len": [4, 2]}, "sound_len seems to tell which steps of audio"),
        ({"audio_mask": np.ones((2, 4), bool)}, r"save audio_mask.sum\(1\), if it is 1 .* as audio_lengths"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = saved(tmp_path / "x.npz", label=np.array([0, 1]), **arrays)
    with pytest.raises(ValueError, match=message):
        npz.read(path)


def test_what_is_not_used_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    audio = np.ones((2, 4, 3), np.float32)
    audio[1, 2:] = 0
    saved(
        tmp_path / "x.npz",
        label=np.array([0, 1]),
        audio=audio,
        rate=np.array(16000),
        video=np.ones((2, 5), np.float32),
        split=np.array(["train", "valid"]),
    )
    list(npz.read(tmp_path / "x.npz").samples)
    assert "1 arrays of a single value are not used: rate" in caplog.text
    assert "in 1 of 2 utterances the last step of audio is all zeros; if they are padded" in caplog.text
    assert "video [2, 5] is kept as metadata; features of one step are [U, 1, D]" in caplog.text
    assert "split 'valid' is 'val' here" in caplog.text
    torch.save({"audio_feats": torch.ones(1, 4, 2), "labels": [0], "ids": ["a"]}, tmp_path / "train.pt")
    reference.read(tmp_path)
    assert "1 keys are not used: ids" in caplog.text
    assert "1 files are not used: x.npz" in caplog.text
    np.save(tmp_path / "a.npy", np.ones((2, 3)))
    (tmp_path / "t.csv").write_text("key,split,label,audio,text,\nu,train,sad,a.npy,t.npy,?\n")
    table.read(tmp_path / "t.csv")
    assert "column 'text' names .npy files (t.npy), but only audio and video are features" in caplog.text
    assert "1 columns without a name in the header are not used" in caplog.text
