"""Tables, packed arrays, the published code's files and MMSA's pickles whose targets are values or labels.

Each is packed and read back: the values of every batch are those that were written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpora_support import MMSA_SCORES, mmsa_splits, write_mmsa

import shards
from shards import FeatureStream, Sample
from shards.format.schema import OPTIONAL, BadSample
from shards.format.targets import CLASSES, Target
from shards.sources import Source, mmsa, npz, reference, table

NAN = float("nan")


def packed(source: Source, out: Path, on_bad: str = "refuse") -> shards.Manifest:
    return shards.pack(
        source.samples,
        str(out),
        classes=source.classes,
        provenance=source.provenance,
        target=source.target,
        targets=source.targets,
        on_bad=on_bad,
        progress=False,
    )


def read_back(out: Path, split: str, **options: Any) -> tuple[FeatureStream, dict[str, list[float]]]:
    """The stream, and the target's values by key, from batches of two."""
    stream = FeatureStream(str(out), split=split, global_batch_size=2, shuffle=False, **options)
    found: dict[str, list[float]] = {}
    for batch in stream.epoch(0):
        assert batch.target.dtype == torch.float64
        for key, values in zip(batch.key, batch.target.tolist(), strict=True):
            found[key] = values
    return stream, found


def assert_values(found: Mapping[str, list[float]], expected: Mapping[str, list[float]]) -> None:
    assert list(found) == list(expected)
    np.testing.assert_array_equal(np.array(list(found.values())), np.array(list(expected.values())))


def skipped(out: Path) -> dict[str, str]:
    """Causes by key, without the place in the file."""
    lines = (out / "skipped.jsonl").read_text().splitlines()
    records = map(json.loads, lines)
    return {record["key"]: re.sub(r"^.*?/[tx]\.\w+: (row \d+: )?", "", record["cause"]) for record in records}


# --- Tables --------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """A function that writes a table whose rows end in `a.npy`, one modality of 4 steps."""
    np.save(tmp_path / "a.npy", np.ones((4, 3), np.float32))

    def table_of(text: str) -> Path:
        header, *rows = text.split()
        path = tmp_path / "t.csv"
        path.write_text("\n".join([f"{header},audio", *(f"{row},a.npy" for row in rows)]))
        return path

    return table_of


def test_values_of_a_table(write: Callable[[str], Path], tmp_path: Path) -> None:
    path = write(
        """key,split,Valence,arousal,age
        u0,train,3.5,2,30
        u1,train,,4,
        u2,train,n/a?,4,30
        u3,train,2,inf,30
        u4,train,9,1,30
        u5,train,,,30
        u6,test,1,5,31"""
    )
    options: dict[str, Any] = {"target": "regression", "target_columns": ["Valence=1:5", "arousal=1:5"]}
    with pytest.raises(ValueError, match=r"t\.csv: row 3: utterance 'u2': its 'Valence' is 'n/a\?', not a"):
        packed(table.read(path, **options), tmp_path / "out")
    manifest = packed(table.read(path, **options), tmp_path / "out", "skip")
    assert manifest.target == Target("regression", {"Valence": [1, 5], "arousal": [1, 5]}, missing=True)
    assert manifest.classes == []
    assert manifest.columns == {"Valence": OPTIONAL, "arousal": "float", "age": OPTIONAL}
    assert {key: cause.partition(";")[0] for key, cause in skipped(tmp_path / "out").items()} == {
        "u2": "its 'Valence' is 'n/a?', not a number",
        "u3": "its 'arousal' is 'inf', not a number",
        "u4": "its 'Valence' is 9.0, outside of 1 to 5",
        "u5": "has no target, 'Valence' and 'arousal'",
    }
    stream, values = read_back(tmp_path / "out", "train")
    assert stream.target == manifest.target
    assert_values(values, {"u0": [3.5, 2], "u1": [NAN, 4]})
    assert_values(read_back(tmp_path / "out", "test")[1], {"u6": [1, 5]})
    # A column of numbers with empty cells is a target, too.
    assert_values(read_back(tmp_path / "out", "train", target="age")[1], {"u0": [30]})


def test_labels_of_a_table_stay_its_classes(write: Callable[[str], Path], tmp_path: Path) -> None:
    path = write("key,split,label,v u0,train,sad,1 u1,train,calm,2")
    options: dict[str, Any] = {"target": "regression", "target_columns": ["v"]}
    manifest = packed(table.read(path, **options), tmp_path / "out")
    assert manifest.classes == ["calm", "sad"]
    assert manifest.target == Target("regression", {"v": None})
    stream, values = read_back(tmp_path / "out", "train")
    assert_values(values, {"u0": [1], "u1": [2]})
    assert stream.classes == []
    stream = FeatureStream(str(tmp_path / "out"), target="label", shuffle=False)
    assert (stream.classes, next(stream.epoch(0)).label.tolist()) == (["calm", "sad"], [1, 0])
    # Without the options it is a dataset of classes, as ever.
    source = table.read(path)
    assert (source.target, source.targets, source.classes) == (CLASSES, {}, ["calm", "sad"])
    assert [sample.meta for sample in source.samples if isinstance(sample, Sample)] == [{"v": 1}, {"v": 2}]


def test_a_label_that_is_missing_beside_others(write: Callable[[str], Path]) -> None:
    options: dict[str, Any] = {"target": "regression", "target_columns": ["v"]}
    _, bad = table.read(write("key,split,label,v u0,train,sad,1 u1,train,,2"), **options).samples
    assert isinstance(bad, BadSample)
    assert bad.cause.endswith("to pack no classes, rename the column 'label'")
    source = table.read(write("key,split,label,v u0,train,,1 u1,train,,2"), **options)
    assert source.classes == []
    assert [sample.label for sample in source.samples if isinstance(sample, Sample)] == [None, None]


@pytest.mark.parametrize(
    ("text", "columns", "labels", "expected", "bounds"),
    [
        (
            "key,split,happy,sad u0,train,1,0 u1,train,true,TRUE u2,train,0,",
            ["happy", "sad"],
            None,
            {"u0": [1, 0], "u1": [1, 1], "u2": [0, NAN]},
            [0, 1],
        ),
        (
            "key,split,happy,sad u0,train,2.5,0 u1,train,1,0.5",
            ["happy=0:3", "sad=0:3"],
            None,
            {"u0": [2.5, 0], "u1": [1, 0.5]},
            [0, 3],
        ),
        (
            "key,split,emotions u0,train,sad;happy u1,train,none u2,train,sad",
            ["emotions"],
            None,
            {"u0": [1, 1], "u1": [0, 0], "u2": [0, 1]},
            [0, 1],
        ),
        (
            "key,split,emotions u0,train,sad:0.5;happy:2 u1,train,sad",
            ["emotions"],
            ["sad", "happy"],
            {"u0": [0.5, 2], "u1": [1, 0]},
            [0, 2],
        ),
    ],
    ids=["present or absent", "intensities", "sets", "sets with intensities"],
)
def test_several_labels_of_a_table(
    write: Callable[[str], Path],
    tmp_path: Path,
    text: str,
    columns: list[str],
    labels: list[str] | None,
    expected: dict[str, list[float]],
    bounds: list[float],
) -> None:
    source = table.read(write(text), labels, target="multilabel", target_columns=columns)
    manifest = packed(source, tmp_path / "out")
    names = labels or ["happy", "sad"]
    missing = any(value != value for values in expected.values() for value in values)
    assert manifest.target == Target("multilabel", dict.fromkeys(names, bounds), missing)
    assert_values(read_back(tmp_path / "out", "train")[1], expected)


@pytest.mark.parametrize(
    ("text", "options", "complaint"),
    [
        (
            "key,split,v u,train,1",
            {},
            "row 1 has columns .* expected key, split, label .*paths of .npy files.*--target_columns",
        ),
        ("key,split,v u,train,1", {"target": "regression"}, "needs --target_columns"),
        ("key,split,v u,train,1", {"target_columns": ["w"]}, "say what they hold"),
        (
            "key,split,v u,train,1",
            {"target": "regression", "target_columns": ["w"]},
            "no column 'w', which --target_columns names; it has key, split, v, audio",
        ),
        (
            "key,split,v u,train,1",
            {"target": "regression", "target_columns": ["split"]},
            "--target_columns split: this column holds no target",
        ),
        (
            "key,split,v u,train,1",
            {"target": "regression", "target_columns": ["v"], "labels": ["a"]},
            "--labels names classes, but no row has a label",
        ),
        (
            "key,split,v,sad u,train,sad;happy,1",
            {"target": "multilabel", "target_columns": ["v"]},
            "the label 'sad' is also a column",
        ),
    ],
)
def test_targets_that_a_table_has_not(
    write: Callable[[str], Path], text: str, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=rf"t\.csv: .*{complaint}"):
        table.read(write(text), **options)


def test_sets_in_json(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((4, 3), np.float32))
    rows: list[Any] = [["happy"], {"sad": 2}, [], None]
    lines = [{"key": f"u{i}", "split": "train", "audio": "a.npy", "felt": of} for i, of in enumerate(rows)]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    packed(table.read(path, target="multilabel", target_columns=["felt"]), tmp_path / "out", "skip")
    assert_values(read_back(tmp_path / "out", "train")[1], {"u0": [1, 0], "u1": [0, 2], "u2": [0, 0]})
    assert list(skipped(tmp_path / "out")) == ["u3"]


def test_numbers_of_a_csv_with_empty_cells_are_numbers(write: Callable[[str], Path]) -> None:
    path = write(
        """key,split,label,whole,real,code,word,none
        u0,train,a,1,0.5,01,x,
        u1,train,b,,,,,
        u2,train,a,3,2,02,7,"""
    )
    metas = [sample.meta for sample in table.read(path).samples if isinstance(sample, Sample)]
    assert metas == [
        {"whole": 1, "real": 0.5, "code": "01", "word": "x", "none": ""},
        {"code": "", "word": "", "none": ""},
        {"whole": 3, "real": 2.0, "code": "02", "word": "7", "none": ""},
    ]


# --- Packed arrays -------------------------------------------------------------------------------

ARRAYS: dict[str, Any] = {
    "ids": np.array(["a", "b", "c"]),
    "split": np.array(["train"] * 3),
    "audio": np.ones((3, 2, 4), np.float32),
    "valence": np.array([1, NAN, 4.5], np.float32),
    "arousal": np.array([[2], [3], [4]]),
    "vad": np.array([[1, 2, 3], [4, NAN, 5], [1, 1, 1]]),
    "emotions": np.array([[0, 1], [1, 1], [0, 0]]),
    "felt": np.array(["sad", "happy;sad", "none"]),
}


@pytest.mark.parametrize(
    ("change", "target", "columns", "expected", "found"),
    [
        (
            {},
            "regression",
            ["valence=1:5", "arousal"],
            {"valence": [1, 5], "arousal": None},
            [[1, 2], [NAN, 3], [4.5, 4]],
        ),
        (
            {},
            "regression",
            ["vad=0:5"],
            {"vad_0": [0, 5], "vad_1": [0, 5], "vad_2": [0, 5]},
            [[1, 2, 3], [4, NAN, 5], [1, 1, 1]],
        ),
        (
            {"target_names": np.array(["happy", "sad"])},
            "multilabel",
            ["emotions"],
            {"happy": [0, 1], "sad": [0, 1]},
            [[0, 1], [1, 1], [0, 0]],
        ),
        ({}, "multilabel", ["felt"], {"happy": [0, 1], "sad": [0, 1]}, [[0, 1], [1, 1], [0, 0]]),
    ],
)
def test_targets_of_packed_arrays(
    tmp_path: Path,
    change: dict[str, Any],
    target: Any,
    columns: list[str],
    expected: dict[str, list[float] | None],
    found: list[list[float]],
) -> None:
    given = ("ids", "split", "audio", *(name.partition("=")[0] for name in columns))
    np.savez(tmp_path / "x.npz", **{name: ARRAYS[name] for name in given}, **change)
    source = npz.read(tmp_path / "x.npz", target=target, target_columns=columns)
    manifest = packed(source, tmp_path / "out")
    assert manifest.classes == []
    assert manifest.target == Target(target, expected, missing=bool(np.isnan(found).any()))
    assert_values(read_back(tmp_path / "out", "train")[1], dict(zip("abc", found, strict=True)))


def test_labels_of_packed_arrays_stay_their_classes(tmp_path: Path) -> None:
    given = {name: ARRAYS[name] for name in ("ids", "split", "audio", "valence")}
    np.savez(tmp_path / "x.npz", **given, label=np.array([0, 1, 0]))
    source = npz.read(
        tmp_path / "x.npz", labels=["a", "b"], target="regression", target_columns=["valence=1:5"]
    )
    manifest = packed(source, tmp_path / "out", "skip")
    assert (manifest.classes, manifest.skipped) == (["a", "b"], 1)
    assert skipped(tmp_path / "out") == {
        "b": "has no target, 'valence'; fill it in, or leave the utterance out (on_bad skip)"
    }
    # Beside classes it is metadata with missing values, which a run can choose as its target.
    manifest = packed(npz.read(tmp_path / "x.npz"), tmp_path / "classes")
    assert (manifest.columns, manifest.target) == ({"valence": OPTIONAL}, CLASSES)
    assert_values(read_back(tmp_path / "classes", "train", target="valence")[1], {"a": [1], "c": [4.5]})


def test_packed_arrays_that_are_not_the_target_are_metadata(tmp_path: Path) -> None:
    given = {name: ARRAYS[name] for name in ("ids", "split", "audio", "vad")}
    path = tmp_path / "x.npz"
    np.savez(path, **given, label=np.array([0, 1, 0]), target_names=np.array(["v", "a"]))
    packed(npz.read(path), tmp_path / "out")
    metas = [meta for _, meta in FeatureStream(str(tmp_path / "out"), shuffle=False).metadata()]
    assert [meta["vad"] for meta in metas] == [[1, 2, 3], [4, None, 5], [1, 1, 1]]


@pytest.mark.parametrize("label", [[NAN] * 3, ["", "nan", ""]])
def test_packed_arrays_without_any_label_have_no_classes(tmp_path: Path, label: list[Any]) -> None:
    given = {name: ARRAYS[name] for name in ("ids", "split", "audio", "valence")}
    np.savez(tmp_path / "x.npz", **given, label=np.array(label))
    with pytest.raises(ValueError, match="none of the utterances has a label"):
        npz.read(tmp_path / "x.npz")
    source = npz.read(tmp_path / "x.npz", target="regression", target_columns=["valence"])
    assert packed(source, tmp_path / "out", "skip").classes == []


@pytest.mark.parametrize(
    ("change", "options", "complaint"),
    [
        ({}, {}, "array 'label' is missing"),
        ({}, {"columns": ["x"]}, "no array 'x', which --target_columns names; it has "),
        ({}, {"columns": ["audio"]}, r"audio has shape \[3, 2, 4\]; a target is \[3\]"),
        ({"v": np.ones(2)}, {"columns": ["v"]}, r"v has shape \[2\]; a target is \[3\]"),
        (
            {"target_names": np.array(["a", "b"])},
            {"columns": ["vad"]},
            "but vad has 3 columns; give each",
        ),
        ({"target_names": np.array(["a", "a", "b"])}, {"columns": ["vad"]}, "give each one name"),
        ({"vad_0": np.ones(3)}, {"columns": ["vad"]}, "'vad_0', a column of vad, is another array"),
        (
            {},
            {"columns": ["valence"], "labels": ["a"]},
            "--labels names classes, but no utterance has a label",
        ),
    ],
)
def test_targets_that_packed_arrays_have_not(
    tmp_path: Path, change: dict[str, Any], options: dict[str, Any], complaint: str
) -> None:
    np.savez(tmp_path / "x.npz", **ARRAYS, **change)
    columns = options.pop("columns", None)
    kind: Any = {"target": "regression", "target_columns": columns} if columns else {}
    with pytest.raises(ValueError, match=rf"x\.npz: .*{complaint}"):
        npz.read(tmp_path / "x.npz", **kind, **options)


# --- The published code's files ------------------------------------------------------------------


def test_values_of_the_published_codes_files(tmp_path: Path) -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, NAN], [NAN, NAN], [9.0, 1.0]])
    torch.save({"audio_feats": torch.ones(4, 3, 2), "labels": rows}, tmp_path / "train.pt")
    torch.save({"audio_feats": torch.ones(1, 3, 2), "labels": [[4.5, 5.0]]}, tmp_path / "test.pt")
    source = reference.read(tmp_path, target="regression", target_columns=["valence=1:5", "arousal"])
    manifest = packed(source, tmp_path / "out", "skip")
    assert manifest.target == Target("regression", {"valence": [1, 5], "arousal": None}, missing=True)
    assert skipped(tmp_path / "out").keys() == {"train-000002", "train-000003"}
    _, values = read_back(tmp_path / "out", "train")
    assert_values(values, {"train-000000": [1, 2], "train-000001": [3, NAN]})
    assert_values(read_back(tmp_path / "out", "test")[1], {"test-000000": [4.5, 5]})


@pytest.mark.parametrize(
    ("labels", "target", "expected"),
    [
        (torch.tensor([0.5, -1.0]), "regression", {"target": None}),
        (torch.tensor([[1], [0]]), "multilabel", {"target": [0, 1]}),
        (torch.tensor([[1, 0, 2], [0, 0, 1]]), "multilabel", {f"target_{i}": [0, 2] for i in range(3)}),
    ],
)
def test_names_of_the_published_codes_values(
    tmp_path: Path, labels: torch.Tensor, target: Any, expected: dict[str, Any]
) -> None:
    torch.save({"audio_feats": torch.ones(2, 3, 2), "labels": labels}, tmp_path / "train.pt")
    packed(reference.read(tmp_path, target=target), tmp_path / "out")
    stream, values = read_back(tmp_path / "out", "train")
    assert stream.target == Target(target, expected)
    np.testing.assert_array_equal(list(values.values()), labels.reshape(2, -1))


@pytest.mark.parametrize(
    ("labels", "options", "complaint"),
    [
        (torch.ones(2, 3, 1), {}, r"train\.pt: labels are torch.float32, shape \[2, 3, 1\]"),
        (torch.ones(2, 3), {"target_columns": ["a"]}, "names 1 columns, but labels have 3"),
        (torch.ones(2, 0), {}, r"labels have 0 columns; save \[U, K\]"),
        (torch.ones(2), {"labels": ["a"]}, "--labels names classes"),
        (torch.full((2,), NAN), {}, "no utterance has a value of 'target'"),
    ],
)
def test_values_that_the_published_codes_files_have_not(
    tmp_path: Path, labels: torch.Tensor, options: dict[str, Any], complaint: str
) -> None:
    torch.save({"audio_feats": torch.ones(2, 3, 2), "labels": labels}, tmp_path / "train.pt")
    with pytest.raises(ValueError, match=complaint):
        reference.read(tmp_path, target="regression", **options)


# --- MMSA ----------------------------------------------------------------------------------------


def sims_splits() -> dict[str, dict[str, Any]]:
    """A CH-SIMS pickle: scores within -1..1, and others of text, sound and picture."""
    splits = mmsa_splits()
    for name, record in splits.items():
        whole = np.array(MMSA_SCORES[name], np.float32) / 3
        record["regression_labels"] = whole
        for i, modality in enumerate("TAV"):
            record[f"regression_labels_{modality}"] = np.roll(whole, i)
            record[f"classification_labels_{modality}"] = np.sign(np.roll(whole, i)) + 1
    splits["train"]["regression_labels_A"][0] = NAN
    return splits


def test_sentiment_is_a_further_target_beside_the_classes(tmp_path: Path) -> None:
    source = mmsa.read(write_mmsa(tmp_path / "x.pkl"))
    assert source.target == CLASSES
    manifest = packed(source, tmp_path / "out")
    assert manifest.targets == {"sentiment": Target("regression", {"sentiment": [-3, 3]})}
    assert manifest.columns == {"id": "str", "sentiment": "float"}
    stream = FeatureStream(str(tmp_path / "out"), shuffle=False)
    assert (stream.classes, stream.target) == (["negative", "neutral", "positive"], CLASSES)
    _, values = read_back(tmp_path / "out", "train", target="sentiment")
    assert_values(values, {f"videotrain_{i}": [score] for i, score in enumerate(MMSA_SCORES["train"])})


@pytest.mark.parametrize("target", ["sentiment", "regression"])
@pytest.mark.parametrize("classes", [True, False])
def test_sentiment_is_the_own_target(tmp_path: Path, target: Any, classes: bool) -> None:
    splits = mmsa_splits()
    splits["train"]["regression_labels"][0] = NAN
    for record in splits.values():
        if not classes:
            record["classification_labels"] = [NAN] * len(record["id"])  # as MMSA-FET writes
    manifest = packed(
        mmsa.read(write_mmsa(tmp_path / "x.pkl", splits), target=target), tmp_path / "out", "skip"
    )
    assert manifest.target == Target("regression", {"sentiment": [-3, 3]})
    assert manifest.targets == {}
    assert manifest.classes == (["negative", "neutral", "positive"] if classes else [])
    assert skipped(tmp_path / "out").keys() == {"videotrain_0"}
    _, values = read_back(tmp_path / "out", "test")
    assert_values(values, {f"videotest_{i}": [score] for i, score in enumerate(MMSA_SCORES["test"])})


def test_scores_of_other_origin_are_sentiment_on_request(tmp_path: Path) -> None:
    splits = mmsa_splits()
    for record in splits.values():
        del record["classification_labels"]
        record["labels"] = np.array(record.pop("regression_labels")).reshape(-1, 1, 1)
    path = write_mmsa(tmp_path / "x.pkl", splits)
    with pytest.raises(ValueError, match="make them the target with --target sentiment, or cut classes"):
        mmsa.read(path)
    manifest = packed(mmsa.read(path, target="sentiment"), tmp_path / "out")
    assert manifest.target.columns == {"sentiment": [-3, 3]}
    assert mmsa.read(path, label_set="sentiment2").targets["sentiment"].columns == {"sentiment": [-3, 3]}


def test_sentiment_by_modality(tmp_path: Path) -> None:
    splits = sims_splits()
    path = write_mmsa(tmp_path / "x.pkl", splits)
    names = ["sentiment_text", "sentiment_audio", "sentiment_video"]
    by_modality = Target("regression", {name: [-1, 1] for name in names}, missing=True)
    packed(mmsa.read(path), tmp_path / "out")
    stream, values = read_back(tmp_path / "out", "train", target="sentiment-by-modality")
    assert stream.target == by_modality
    arrays = [splits["train"][f"regression_labels_{modality}"] for modality in "TAV"]
    np.testing.assert_array_equal(list(values.values()), np.stack(arrays, axis=1))
    source = mmsa.read(path, target="sentiment-by-modality")
    assert source.target == by_modality
    assert source.targets == {"sentiment": Target("regression", {"sentiment": [-1, 1]})}
    packed(source, tmp_path / "own")
    assert_values(read_back(tmp_path / "own", "train")[1], values)


@pytest.mark.parametrize("target", ["classification", "sentiment"])
def test_an_utterance_without_any_score_of_a_modality_is_packed(tmp_path: Path, target: Any) -> None:
    splits = mmsa_splits()
    for record in splits.values():
        for modality in "TAV":
            record[f"regression_labels_{modality}"] = np.array(record["regression_labels"], np.float32)
            record[f"regression_labels_{modality}"][0] = NAN
    manifest = packed(mmsa.read(write_mmsa(tmp_path / "x.pkl", splits), target=target), tmp_path / "out")
    assert manifest.targets["sentiment-by-modality"].missing
    stream, values = read_back(tmp_path / "out", "train", target="sentiment-by-modality")
    assert "videotrain_0" not in values
    assert stream.without_target == 1
    assert read_back(tmp_path / "out", "train")[0].without_target == 0


def drop_scores(splits: dict[str, Any]) -> None:
    for record in splits.values():
        del record["regression_labels"]


@pytest.mark.parametrize(
    ("spoil", "target", "complaint"),
    [
        (
            drop_scores,
            "sentiment",
            "'regression_labels', scores of sentiment, is missing; to recognize its classes, leave --target",
        ),
        (lambda s: None, "sentiment-by-modality", "'regression_labels_T', scores of sentiment, is missing"),
        (
            lambda s: s["train"].update(regression_labels=[0, 50, 100]),
            "sentiment",
            "its scores go from -3 to 100, while sentiment is from -3 to 3 .* or from -1 to 1 .*scale them",
        ),
        (
            lambda s: s["test"].update(regression_labels=np.ones((2, 3))),
            "sentiment",
            r"test: regression_labels has shape \[2, 3\]; expected one number of each of 2",
        ),
        (lambda s: s["test"].update(regression_labels=["a", "b"]), "sentiment", "must be numbers"),
        (lambda s: None, "arousal", "target 'arousal': must be one of classification, regression, sentiment"),
    ],
)
def test_scores_that_a_pickle_has_not(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], None], target: Any, complaint: str
) -> None:
    splits = mmsa_splits()
    spoil(splits)
    with pytest.raises(ValueError, match=complaint):
        mmsa.read(write_mmsa(tmp_path / "x.pkl", splits), target=target)


@pytest.mark.parametrize(
    ("spoil", "warning", "targets"),
    [
        (drop_scores, "", {}),
        (lambda s: s["train"].update(regression_labels=["a", "b", "c"]), "'sentiment' is left out", {}),
        (
            lambda s: s["train"].update(regression_labels=[0, 50, 100]),
            "the range of the target 'sentiment' is not known",
            {"sentiment": Target("regression", {"sentiment": None})},
        ),
        (
            lambda s: s["train"].update(regression_labels=[0, np.inf, 1]),
            "1 scores of 'sentiment' are infinite: taken as missing",
            {"sentiment": Target("regression", {"sentiment": [-3, 3]}, missing=True)},
        ),
    ],
)
def test_classes_of_a_pickle_are_read_whatever_its_scores_are(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[dict[str, Any]], None],
    warning: str,
    targets: dict[str, Target],
) -> None:
    splits = mmsa_splits()
    spoil(splits)
    source = mmsa.read(write_mmsa(tmp_path / "x.pkl", splits))
    assert (source.target, source.targets) == (CLASSES, targets)
    assert warning in caplog.text
    assert packed(source, tmp_path / "out").skipped == 0
