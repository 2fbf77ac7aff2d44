"""IEMOCAP and MELD: what each clip is, which are bad and why, and what is refused."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from corpora_support import (
    APPLE_DOUBLE,
    IEMOCAP_TURNS,
    MELD_ROWS,
    bad,
    good,
    meld_table,
    put,
    put_bytes,
    write_iemocap,
    write_meld,
)

from shards.extraction.shard_jobs import mark_missing_files
from shards.sources import iemocap, meld
from shards.sources.base import Clip
from shards.sources.reading.transcripts import Transcript

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


# --- IEMOCAP -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def iemocap_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_iemocap(tmp_path_factory.mktemp("iemocap") / "IEMOCAP_full_release")


def test_a_turn_of_iemocap(iemocap_root: Path) -> None:
    source = iemocap.read(iemocap_root)
    assert good(source)["Ses01F_impro01_F001"] == Clip(
        key="Ses01F_impro01_F001",
        split="all",
        label="happy",
        audio=iemocap_root / "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F001.wav",
        video=iemocap_root / "Session1/dialog/avi/DivX/Ses01F_impro01.avi",
        audio_span=None,
        video_span=(0.5, 0.9),
        crop=LEFT,
        meta={
            "session": "Ses01",
            "speaker": "Ses01F",
            "gender": "F",
            "dialog": "Ses01F_impro01",
            "scenario": "improvised",
            "emotion": "exc",
            "valence": 2.5,
            "activation": 3.5,
            "dominance": 1.6667,
        },
        source=f"{iemocap_root}/Session1/dialog/EmoEvaluation/Ses01F_impro01.txt: line 13",
        text=Transcript(("Well", "--", "yes.")),
    )


def test_the_actress_with_markers_is_on_the_left(iemocap_root: Path) -> None:
    clips = good(iemocap.read(iemocap_root, label_set=6))
    assert clips["Ses02F_impro01_F000"].crop == LEFT
    assert clips["Ses02F_impro01_M000"].crop == RIGHT
    mirrored = good(iemocap.read(iemocap_root, label_set=6, markers_side="right"))
    assert mirrored["Ses02F_impro01_F000"].crop == RIGHT
    assert mirrored["Ses02F_impro01_M000"].crop == LEFT


def test_an_actor_with_markers_is_on_the_left(tmp_path: Path) -> None:
    write_iemocap(tmp_path, sessions=[3])
    put("both.avi", tmp_path / "Session3/dialog/avi/DivX/Ses03M_script01_1.avi")
    clips = good(iemocap.read(tmp_path))
    assert clips["Ses03M_script01_1_M003"].crop == LEFT
    assert clips["Ses03M_script01_1_F000"].crop == RIGHT
    assert clips["Ses03M_script01_1_F000"].meta["scenario"] == "scripted"


@pytest.mark.parametrize(
    ("label_set", "classes", "labels", "left_out"),
    [
        (
            4,
            ["angry", "happy", "neutral", "sad"],
            {"ang": "angry", "hap": "happy", "exc": "happy", "neu": "neutral", "sad": "sad"},
            {"fru": 4, "sur": 4, "xxx": 4},
        ),
        (
            6,
            ["angry", "happy", "excited", "neutral", "sad", "frustrated"],
            {
                "ang": "angry",
                "hap": "happy",
                "exc": "excited",
                "neu": "neutral",
                "sad": "sad",
                "fru": "frustrated",
            },
            {"sur": 4, "xxx": 4},
        ),
    ],
)
def test_label_sets_of_iemocap(
    iemocap_root: Path, label_set: int, classes: list[str], labels: dict[str, str], left_out: dict[str, int]
) -> None:
    source = iemocap.read(iemocap_root, label_set=label_set)
    assert source.classes == classes
    assert source.provenance["left_out"] == left_out
    assert source.provenance["label_map"] == labels
    clips = good(source)
    assert {clip.meta["emotion"]: clip.label for clip in clips.values()} == labels
    turns = [code for _, code, *_ in IEMOCAP_TURNS if code in labels]
    assert len(clips) + len(bad(source)) == 4 * len(turns)


def test_turns_of_iemocap_without_any_file_are_listed(tmp_path: Path) -> None:
    write_iemocap(tmp_path, sessions=[1])
    source = iemocap.read(tmp_path)
    whole = good(source).keys()
    assert not bad(source), "each has its sound or its picture"
    (tmp_path / "Session1/dialog/avi/DivX/Ses01F_impro01.avi").unlink()
    listed = bad(iemocap.read(tmp_path))
    assert list(listed) == ["Ses01F_impro01_M002"]
    assert listed["Ses01F_impro01_M002"].endswith("wav/Ses01F_impro01/Ses01F_impro01_M002.wav")
    assert whole - listed.keys() == good(iemocap.read(tmp_path)).keys()


def test_sessions_become_splits(iemocap_root: Path) -> None:
    source = iemocap.read(iemocap_root, test_session=2)
    assert Counter((c.split, c.meta["session"]) for c in good(source).values()).keys() == {
        ("train", "Ses01"),
        ("test", "Ses02"),
    }
    source = iemocap.read(iemocap_root, test_session=2, val_session=1)
    assert source.provenance["splits"] == {"Ses01": "val", "Ses02": "test"}


def test_iemocap_without_videos_is_sound_alone(tmp_path: Path) -> None:
    source = iemocap.read(write_iemocap(tmp_path, video=False))
    assert {(c.video, c.video_span, c.crop) for c in good(source).values()} == {(None, None, None)}
    assert list(bad(source)) == ["Ses01F_impro01_M002"]


def test_the_folder_above_can_be_given(iemocap_root: Path) -> None:
    assert good(iemocap.read(iemocap_root.parent)).keys() == good(iemocap.read(iemocap_root)).keys()


def test_a_line_that_is_no_turn_is_listed(tmp_path: Path) -> None:
    write_iemocap(tmp_path, sessions=[1])
    annotation = tmp_path / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    text = annotation.read_text(encoding="latin-1")
    annotation.write_text(text.replace("[0.1000 - 0.5000]", "[0.1000 - ]"), encoding="latin-1")
    listed = bad(iemocap.read(tmp_path))
    assert listed["Ses01F_impro01-line-3"].startswith("not a turn as IEMOCAP writes them: '[0.1000 - ]")


def test_a_turn_that_ends_before_it_begins_is_listed(tmp_path: Path) -> None:
    write_iemocap(tmp_path, sessions=[1])
    annotation = tmp_path / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    text = annotation.read_text(encoding="latin-1")
    annotation.write_text(text.replace("[0.1000 - 0.5000]", "[0.5000 - 0.1000]"), encoding="latin-1")
    assert bad(iemocap.read(tmp_path))["Ses01F_impro01_F000"] == "ends at 0.1 s, but begins at 0.5 s"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"label_set": 5}, "label_set 5: IEMOCAP has 4 and 6"),
        ({"markers_side": "top"}, "markers_side 'top': must be 'left' or 'right'"),
        ({"test_session": 4}, r"test_session 4: no such session; there are \[1, 2\]"),
        ({"val_session": 1}, "val_session 1: needs another session for the test"),
        ({"test_session": 1, "val_session": 1}, "val_session 1: needs another session for the test"),
    ],
)
def test_options_that_iemocap_does_not_have(
    iemocap_root: Path, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        iemocap.read(iemocap_root, **options)


def test_what_is_not_iemocap_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no Session1 \.\.\. Session5 in it; give the folder IEMOCAP_full_release"
    ):
        iemocap.read(tmp_path)
    put_bytes(tmp_path / "Session1/dialog/EmoEvaluation/._Ses01F_impro01.txt", APPLE_DOUBLE)
    with pytest.raises(
        ValueError, match=r"EmoEvaluation: no annotations \(\*\.txt\) there; unpack the whole"
    ):
        iemocap.read(tmp_path)
    turn = "[1.0000 - 2.0000]\tSes01F_impro01_F000\tjoy\t[2.5000, 2.5000, 2.5000]\n"
    put_bytes(tmp_path / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt", turn.encode())
    with pytest.raises(
        ValueError, match=r"impro01\.txt: line 1: label 'joy' is not one of IEMOCAP's: ang, hap"
    ):
        iemocap.read(tmp_path)


# --- MELD ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [True, False], ids=["as it unpacks", "side by side"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_meld(tmp_path: Path, nested: bool, encoding: str) -> None:
    root = write_meld(tmp_path / "MELD.Raw", nested, encoding)
    source = meld.read(root)
    clips = good(source)
    # The names recur, the keys do not; the clips that no table names stay out.
    assert list(clips) == [
        "train_dia0_utt0",
        "train_dia0_utt1",
        "train_dia125_utt3",
        "val_dia0_utt0",
        "test_dia0_utt0",
        "test_dia1_utt0",
    ]
    assert list(bad(source)) == ["val_dia110_utt7"]
    assert bad(source)["val_dia110_utt7"].endswith("dev_splits_complete/dia110_utt7.mp4")
    assert source.classes == ["neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"]
    base = root / "train" if nested else root
    assert clips["train_dia0_utt1"] == Clip(
        key="train_dia0_utt1",
        split="train",
        label="sadness",
        audio=base / "train_splits/dia0_utt1.mp4",
        video=base / "train_splits/dia0_utt1.mp4",
        meta={
            "dialogue": 0,
            "utterance": 1,
            "speaker": "Mike’s Mom",
            "sentiment": "neutral",
            "season": 4,
            "episode": 7,
        },
        source=f"{base / 'train_sent_emo.csv'}: row 2",
        text=Transcript(("Oh", "my", "God,", "he\u2019s", "lost", "it.")),
    )
    assert good(meld.read(tmp_path)) == clips
    with (base / "train_sent_emo.csv").open("ab") as table:
        table.write(b"," * 10 + b"\r\n")
    assert good(meld.read(tmp_path)) == clips, "spreadsheets leave empty rows"


def test_a_split_of_meld_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    write_meld(tmp_path, nested=False)
    (tmp_path / "dev_sent_emo.csv").unlink()
    shutil.rmtree(tmp_path / "dev_splits_complete")
    assert {clip.split for clip in good(meld.read(tmp_path)).values()} == {"train", "test"}


def test_what_is_not_meld_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no train_sent_emo\.csv in it; give the folder MELD\.Raw"):
        meld.read(tmp_path)
    write_meld(tmp_path)
    table = tmp_path / "dev_sent_emo.csv"
    table.rename(tmp_path / "elsewhere.csv")
    with pytest.raises(
        ValueError, match=r"dev_splits_complete: its counterpart dev_sent_emo\.csv is neither"
    ):
        meld.read(tmp_path)
    (tmp_path / "elsewhere.csv").rename(table)
    shutil.rmtree(tmp_path / "dev/dev_splits_complete")
    source = meld.read(tmp_path)
    for wanted in ("audio", "video"):
        with pytest.raises(
            ValueError, match=r"dev_sent_emo\.csv: its counterpart dev_splits_complete is neither"
        ):
            mark_missing_files(source, [wanted])
    assert len(mark_missing_files(source, ["text"]).clips) == 7


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        (
            meld_table(MELD_ROWS["train"]).replace("Emotion", "Mood"),
            r"train_sent_emo\.csv: column 'Emotion' is missing; it has \['Sr No\.', 'Utterance'",
        ),
        (
            meld_table([(0, 0, "Ross", "bored")]),
            r"row 1: Emotion 'bored' is not one of MELD's: neutral, surprise",
        ),
        (meld_table(MELD_ROWS["train"]).replace(",125,3,", ",125,three,"), "row 3: .*'three'.* are numbers"),
        (meld_table(MELD_ROWS["train"]) + "4,cut short,Ross,joy\r\n", "row 4: .* are numbers"),
    ],
)
def test_tables_that_meld_does_not_have(tmp_path: Path, table: str, complaint: str) -> None:
    write_meld(tmp_path)
    (tmp_path / "train/train_sent_emo.csv").write_text(table, encoding="utf-8")
    with pytest.raises(ValueError, match=complaint):
        meld.read(tmp_path)
