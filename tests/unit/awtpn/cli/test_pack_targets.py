"""`awtpn pack` with targets other than classes, as typed: what it writes, prints and refuses."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from corpora_support import write_mmsa

from awtpn.cli import main
from shards import FeatureStream
from shards.format.targets import CLASSES, Target, target_in_words


def awtpn(*words: object) -> None:
    main([str(word) for word in words])


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    np.save(tmp_path / "a.npy", np.ones((4, 3), np.float32))
    (tmp_path / "clips.csv").write_text(
        "key,split,label,valence,arousal,happy,sad,audio\n"
        "u0,train,calm,1.5,,1,0,a.npy\n"
        "u1,train,sad,2,4,1,1,a.npy\n"
        "u2,test,sad,8,4,0,0,a.npy\n"
    )
    return tmp_path / "clips.csv"


def test_values_of_a_table(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--target", "regression", "--target_columns", "valence=1:5,arousal"]
    command = ["pack", clips, tmp_path / "out", "--format", "table", *words]
    with pytest.raises(
        SystemExit, match=r"clips\.csv: row 3: utterance 'u2': its 'valence' is 8\.0, outside"
    ):
        awtpn(*command)
    awtpn(*command, "--on_bad", "skip")
    shown = capsys.readouterr().out
    assert "target: regression of valence (1 to 5), arousal; values may be missing\n" in shown
    assert "further target: the classes; choose it with --data.target label\n" in shown
    assert "1 bad utterances left out; see skipped.jsonl" in shown
    [batch] = FeatureStream(str(tmp_path / "out"), shuffle=False).epoch(0)
    np.testing.assert_array_equal(batch.target, [[1.5, np.nan], [2, 4]])


def test_several_labels_of_a_table(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--target", "multilabel", "--target_columns", "happy,sad"]
    awtpn("pack", clips, tmp_path / "out", "--format", "table", *words)
    assert "target: multilabel of happy (0 to 1), sad (0 to 1)\n" in capsys.readouterr().out
    [batch] = FeatureStream(str(tmp_path / "out"), shuffle=False).epoch(0)
    assert batch.target.tolist() == [[1, 0], [1, 1]]


def test_the_command_does_not_fold_by_the_target_or_by_what_is_missing(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "all.csv").write_text(
        "key,split,valence,fold,scene,audio\nu0,all,1.5,,2,a.npy\nu1,all,2,1,1,a.npy\n"
    )
    words = ["--target", "regression", "--target_columns", "valence"]
    awtpn("pack", tmp_path / "all.csv", tmp_path / "out", "--format", "table", *words)
    shown = capsys.readouterr().out
    assert "--by COLUMN, a column of metadata; it has scene\n" in shown


def test_classes_of_a_table_say_nothing_of_targets(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    awtpn("pack", clips, tmp_path / "out", "--format", "table")
    assert "target" not in capsys.readouterr().out


def test_sentiment_of_a_pickle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_mmsa(tmp_path / "x.pkl")
    awtpn("pack", path, tmp_path / "classes", "--format", "mmsa")
    shown = capsys.readouterr().out
    assert re.search(
        r"^further target: regression of sentiment \(-3 to 3\); choose it with --data.target sentiment$",
        shown,
        re.MULTILINE,
    )
    awtpn("pack", path, tmp_path / "own", "--format", "mmsa", "--target", "sentiment")
    assert "target: regression of sentiment (-3 to 3)\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["table", "--target", "sentiment"], "--target sentiment: must be classification or regression or"),
        (["mmsa", "--target", "multilabel"], "--target multilabel: must be classification or regression or"),
        (["table", "--target", "regression"], "needs --target_columns: NAME or NAME=LOW:HIGH"),
        (["table", "--target_columns", "valence"], "say what they hold, --target regression or"),
        (["mmsa", "--target_columns", "x"], "--target_columns is an option of --format npz and reference"),
        (["demo", "--target", "regression"], "--target regression: must be classification or values or"),
    ],
)
def test_options_that_are_refused(clips: Path, tmp_path: Path, words: list[str], complaint: str) -> None:
    with pytest.raises(SystemExit, match=complaint):
        awtpn("pack", clips, tmp_path / "out", "--format", *words)
    assert not (tmp_path / "out").exists()


def test_targets_in_words() -> None:
    assert target_in_words(CLASSES) == "the classes"
    assert target_in_words(Target("multilabel", {"happy": [0, 3], "b": None}, True)) == (
        "multilabel of happy (0 to 3), b; values may be missing"
    )
