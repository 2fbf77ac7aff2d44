"""Recordings with values or several labels, tables that name no files, and the tables of MER."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from corpora_support import bad, good, put, write_clip_table, write_tree

from shards.format.targets import CLASSES, Target
from shards.sources import recordings
from shards.sources.base import Clip, ClipSource


def values_in(source: ClipSource, *columns: str) -> dict[str, list[Any]]:
    return {key: [clip.meta.get(name) for name in columns] for key, clip in good(source).items()}


def write_rows(path: Path, **columns: list[Any]) -> Path:
    """A table of clips u0, u1, ..., all of one sound, with these columns."""
    put("tone.wav", path.parent / "a.wav")
    count = len(next(iter(columns.values())))
    rows = [
        {
            "key": f"u{i}",
            "split": "train",
            "path": "a.wav",
            **{name: values[i] for name, values in columns.items()},
        }
        for i in range(count)
    ]
    return write_clip_table(path, rows)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_table_with_values_needs_no_labels(tmp_path: Path, suffix: str) -> None:
    table = write_rows(tmp_path / f"a{suffix}", valence=[1, 2.5, "", 7, ""], arousal=[5, "", 3, 2, ""])
    source = recordings.read(table, target="regression", target_columns=["valence=1:5", "arousal"])
    assert source.target == Target("regression", {"valence": [1, 5], "arousal": None}, missing=True)
    assert (source.classes, source.provenance["label_map"]) == ([], {})
    assert {clip.label for clip in good(source).values()} == {None}
    assert values_in(source, "valence", "arousal") == {"u0": [1, 5], "u1": [2.5, None], "u2": [None, 3]}
    causes = bad(source)
    assert causes["u3"] == "its 'valence' is 7.0, outside of 1 to 5"
    assert causes["u4"].startswith("has no target")
    assert causes.keys() == {"u3", "u4"}


def test_values_that_are_no_numbers_are_listed_by_name(tmp_path: Path) -> None:
    table = write_rows(tmp_path / "a.csv", valence=["1", "high", "nan", "inf", "2,5"])
    source = recordings.read(table, target="regression", target_columns=["valence"])
    assert values_in(source, "valence") == {"u0": [1.0]}
    causes = bad(source)
    assert causes["u1"].startswith("its 'valence' is 'high', not a number")
    assert causes["u2"].startswith("has no target")
    assert all("valence" in cause for cause in causes.values())
    assert causes.keys() == {"u1", "u2", "u3", "u4"}


def test_labels_beside_values_stay_the_classes(tmp_path: Path) -> None:
    table = write_rows(tmp_path / "a.csv", label=["sad", "calm", ""], valence=[1, 2, 3])
    source = recordings.read(table, target="regression", target_columns=["valence"])
    assert (source.classes, source.target.type) == (["calm", "sad"], "regression")
    assert {key: clip.label for key, clip in good(source).items()} == {"u0": "sad", "u1": "calm"}
    assert bad(source)["u2"].startswith("has no label")
    mapped = recordings.read(
        table, label_map={"sad": "", "calm": "Calm"}, target="regression", target_columns=["valence"]
    )
    assert (list(good(mapped)), mapped.classes) == (["u1"], ["Calm"])


def test_several_labels_at_once(tmp_path: Path) -> None:
    table = write_rows(tmp_path / "a.csv", happy=[1, 0, 1], sad=[0, 0, 1])
    source = recordings.read(table, target="multilabel", target_columns=["happy", "sad"])
    assert source.target == Target("multilabel", {"happy": [0, 1], "sad": [0, 1]})
    assert values_in(source, "happy", "sad") == {"u0": [1, 0], "u1": [0, 0], "u2": [1, 1]}
    table = write_rows(tmp_path / "b.csv", emotions=["happy;sad", "none", "sad:0.5"])
    source = recordings.read(table, target="multilabel", target_columns=["emotions"], labels=["sad", "happy"])
    assert list(source.target.columns) == ["sad", "happy"]
    assert values_in(source, "sad", "happy", "emotions") == {
        "u0": [1, 1, None],
        "u1": [0, 0, None],
        "u2": [0.5, 0, None],
    }
    assert source.classes == []


def test_values_in_the_names_of_a_folder(tmp_path: Path) -> None:
    for name in ("a_v3", "b_v1.5", "c_v9"):
        put("tone.wav", tmp_path / "set" / f"{name}.wav")
    source = recordings.read(
        tmp_path,
        pattern=r"(?P<key>\w)_v(?P<valence>[\d.]+)\.wav",
        target="regression",
        target_columns=["valence=1:5"],
    )
    assert values_in(source, "valence") == {"a": [3], "b": [1.5]}
    assert bad(source) == {"c": "its 'valence' is 9.0, outside of 1 to 5"}
    assert source.classes == []


def test_a_folder_without_values(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no value of 'valence', which --target_columns names; there are"):
        recordings.read(write_tree(tmp_path, splits=[]), target="regression", target_columns=["valence=1:5"])


# --- Tables that name no files -------------------------------------------------------------------


def write_mer(root: Path) -> Path:
    """Labels as MER gives them, and their clips in folders; returns the table."""
    for number, name in enumerate(("samplenew_1", "samplenew_2", "007")):
        put("both.avi" if number else "both.mp4", root / "clips" / f"{name}.{'avi' if number else 'mp4'}")
    rows = [
        {"name": "samplenew_1", "discrete": "happy", "valence": 3.5},
        {"name": "samplenew_2", "discrete": "worried", "valence": -1},
        {"name": "007", "discrete": "sad", "valence": ""},
        {"name": "samplenew_4", "discrete": "sad", "valence": -2},
    ]
    return write_clip_table(root / "label-disdim.csv", rows)


def test_labels_and_valence_of_mer(tmp_path: Path) -> None:
    table = write_mer(tmp_path)
    options: dict[str, Any] = {"clip_folder": tmp_path / "clips", "split": "train"}
    source = recordings.read(table, **options)
    assert (source.target, source.classes) == (CLASSES, ["happy", "sad", "worried"])
    assert good(source)["samplenew_2"] == Clip(
        key="samplenew_2",
        split="train",
        label="worried",
        audio=tmp_path / "clips" / "samplenew_2.avi",
        video=tmp_path / "clips" / "samplenew_2.avi",
        meta={"valence": -1.0},
        source=f"{table}: row 2",
    )
    assert good(source).keys() == {"samplenew_1", "samplenew_2", "007"}
    assert bad(source) == {"samplenew_4": f"no clip of this name in {tmp_path / 'clips'}"}
    source = recordings.read(table, **options, target="regression", target_columns=["valence"])
    assert source.target == Target("regression", {"valence": None})
    assert values_in(source, "valence") == {"samplenew_1": [3.5], "samplenew_2": [-1]}
    assert bad(source)["007"].startswith("has no target")
    assert source.classes == ["happy", "worried"]


def test_clips_of_a_name_in_two_folders_are_listed(tmp_path: Path) -> None:
    write_mer(tmp_path)
    put("both.mp4", tmp_path / "clips" / "test" / "samplenew_1.mp4")
    put("tone.wav", tmp_path / "clips" / "samplenew_2.wav")
    source = recordings.read(
        tmp_path / "label-disdim.csv", clip_folder=str(tmp_path / "clips"), split="train"
    )
    assert bad(source)["samplenew_1"].startswith("two clips have its name: ")
    # In one folder the one with pictures is taken.
    assert good(source)["samplenew_2"].video == tmp_path / "clips" / "samplenew_2.avi"


def test_columns_of_other_tables_keep_their_meaning(tmp_path: Path) -> None:
    table = write_rows(tmp_path / "a.csv", label=["x"], name=["Ann"], discrete=[7])
    [clip] = recordings.read(table).clips
    assert isinstance(clip, Clip)
    assert (clip.key, clip.label, clip.meta) == ("u0", "x", {"name": "Ann", "discrete": 7})


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"split": "test"}, "has a column 'split'; leave --split out, or the column"),
        ({"clip_folder": "."}, "has a column 'path'; leave --clip_folder out, or the column"),
        ({"target": "regression"}, "--target regression needs --target_columns"),
        ({"target_columns": ["valence"]}, "say what they hold, --target regression or --target multilabel"),
        ({"target": "regression", "target_columns": ["path"]}, "path: this column holds no target"),
        ({"target": "regression", "target_columns": ["mood"]}, "no value of 'mood', which --target_columns"),
        (
            {"target": "regression", "target_columns": ["valence"], "labels": ["x"]},
            "name classes, but no clip has a label",
        ),
        ({}, "expected key, split, label and path"),
    ],
)
def test_options_that_a_table_does_not_take(tmp_path: Path, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        recordings.read(write_rows(tmp_path / "a.csv", valence=[1, 2]), **options)


def test_options_of_tables_are_not_those_of_folders(tmp_path: Path) -> None:
    write_tree(tmp_path / "clips", splits=[])
    for option in ("split", "clip_folder"):
        with pytest.raises(ValueError, match=f"--{option} belongs to a table, which this is not"):
            recordings.read(tmp_path / "clips", **{option: "train"})
    table = write_clip_table(tmp_path / "a.csv", [{"name": "a", "discrete": "x"}])
    with pytest.raises(ValueError, match="none: no such folder of clips"):
        recordings.read(table, clip_folder=tmp_path / "none", split="all")
