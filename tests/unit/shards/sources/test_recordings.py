"""Recordings of your own: tables and folders of clips."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from corpora_support import bad, good, put, write_clip_table, write_tree
from support import REPO

from shards.format.schema import BadSample
from shards.sources import recordings
from shards.sources.base import Clip
from shards.sources.reading.transcripts import Transcript

CREMA_D = REPO.parent / "shared" / "data" / "crema_d" / "clips"
RAVDESS = REPO.parent / "shared" / "data" / "ravdess"


def test_a_folder_tells_splits_and_labels(tmp_path: Path) -> None:
    source = recordings.read(write_tree(tmp_path))
    clips = good(source)
    assert source.classes == ["calm", "happy"]
    assert sorted(clips) == sorted(
        f"{split}_{label}_{name}"
        for split in ("train", "test")
        for label in ("calm", "happy")
        for name in ("a", "b_take_2", "c")
    )
    film, sound = clips["train_calm_b_take_2"], clips["test_happy_c"]
    assert film.audio == film.video == tmp_path / "train" / "calm" / "b.take 2.avi"
    assert (film.split, film.label) == ("train", "calm")
    assert (sound.audio, sound.video) == (tmp_path / "test" / "happy" / "c.WAV", None)


def test_a_folder_of_labels_is_one_split(tmp_path: Path) -> None:
    source = recordings.read(write_tree(tmp_path, splits=[]), labels=["happy", "calm"])
    assert {clip.split for clip in good(source).values()} == {"all"}
    assert source.classes == ["happy", "calm"]


def test_a_pattern_finds_label_and_metadata_in_names(tmp_path: Path) -> None:
    for name in ("1001_DFA_ANG_XX", "1001_DFA_XXX_XX", "1002_IEO_HAP_HI"):
        put("both.flv", tmp_path / "VideoFlash" / f"{name}.flv")
    put("both.mp4", tmp_path / "trailer.mp4")
    source = recordings.read(
        tmp_path,
        pattern=r"(?P<actor>\d+)_(?P<sentence>\w+)_(?P<label>[A-Z]{3})_(?P<level>\w+)",
        label_map={"HAP": "happy", "ANG": "angry", "XXX": ""},
    )
    assert source.classes == ["happy", "angry"]
    clips = good(source)
    assert clips.keys() == {"VideoFlash_1001_DFA_ANG_XX", "VideoFlash_1002_IEO_HAP_HI"}
    clip = clips["VideoFlash_1002_IEO_HAP_HI"]
    assert (clip.label, clip.split) == ("happy", "all")
    assert clip.meta == {"actor": "1002", "sentence": "IEO", "level": "HI"}
    assert source.provenance["left_out"] == {"XXX": 1}
    assert list(bad(source)) == ["trailer"]
    assert bad(source)["trailer"].endswith("does not match its path")


def test_a_pattern_may_name_split_and_key(tmp_path: Path) -> None:
    put("tone.wav", tmp_path / "fold1" / "u7-sad.wav")
    source = recordings.read(tmp_path, pattern=r"(?P<split>fold\d)/(?P<key>\w+)-(?P<label>\w+)\.")
    [clip] = good(source).values()
    assert (clip.key, clip.split, clip.label, clip.meta) == ("u7", "fold1", "sad", {})


@pytest.mark.skipif(not CREMA_D.is_dir(), reason=f"the shared clips are not at {CREMA_D}")
def test_real_names() -> None:
    source = recordings.read(CREMA_D, pattern=r"(?P<actor>\d+)_\w+_(?P<label>[A-Z]{3})_")
    assert source.classes == ["ANG", "DIS", "FEA", "HAP", "NEU", "SAD"]
    assert {clip.meta["actor"] for clip in good(source).values()} == {"1001"}
    source = recordings.read(RAVDESS / "flac", pattern=r"03-01-(?P<label>..)-..-..-..-(?P<actor>..)")
    assert source.classes == [f"{i:02}" for i in range(1, 9)]
    assert len(good(source)) == 240


ROWS: list[dict[str, Any]] = [
    {
        "key": "u1",
        "split": "train",
        "label": "calm",
        "path": "a.mp4",
        "begin": "0.25",
        "end": "0.75",
        "take": 1,
    },
    {"key": "02", "split": "train", "label": "happy", "path": "c.wav", "begin": "", "end": "", "take": 2},
    {"key": "u3", "split": "test", "label": "calm", "path": "gone.mp4", "begin": "", "end": "", "take": 3},
    {"key": "u4", "split": "test", "label": "calm", "path": "a.mp4", "begin": "2", "end": "1", "take": 4},
    {"key": "u5", "split": "test", "label": "calm", "path": "a.mp4", "begin": "1", "end": "", "take": 5},
    {"key": "u6", "split": "test", "label": "calm", "path": "a.mp4", "begin": "one", "end": "2", "take": 6},
    {"key": "u7", "split": "test", "label": "calm", "path": "", "begin": "", "end": "", "take": 7},
]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_table_of_clips(tmp_path: Path, suffix: str) -> None:
    put("both.mp4", tmp_path / "a.mp4")
    put("tone.wav", tmp_path / "c.wav")
    table = write_clip_table(tmp_path / f"clips{suffix}", ROWS)
    source = recordings.read(table)
    assert good(source) == {
        "u1": Clip(
            key="u1",
            split="train",
            label="calm",
            audio=tmp_path / "a.mp4",
            video=tmp_path / "a.mp4",
            audio_span=(0.25, 0.75),
            video_span=(0.25, 0.75),
            meta={"take": 1},
            source=f"{table}: row 1",
        ),
        "02": Clip(
            key="02",
            split="train",
            label="happy",
            audio=tmp_path / "c.wav",
            video=None,
            meta={"take": 2},
            source=f"{table}: row 2",
        ),
    }
    assert bad(source) == {
        "u3": f"no such file {tmp_path / 'gone.mp4'}",
        "u4": "begin 2 and end 1: must be 0 <= begin < end, in seconds",
        "u5": "begin and end go together; fill both, or neither",
        "u6": "begin 'one' and end '2' must be seconds",
        "u7": "no file is named; fill path, audio or video",
    }


def test_sound_and_picture_in_files_of_their_own(tmp_path: Path) -> None:
    put("both.avi", tmp_path / "pictures" / "a.avi")
    put("tone.wav", tmp_path / "a.wav")
    rows = [
        {"key": "u1", "split": "all", "label": "calm", "audio": "a.wav", "video": "pictures/a.avi"},
        {"key": "u2", "split": "all", "label": "calm", "audio": "", "video": "pictures/a.avi"},
        {"key": "u3", "split": "all", "label": "calm", "audio": "a.wav", "video": "gone.avi"},
        {"key": "u4", "split": "all", "label": "calm", "audio": "gone.wav", "video": "gone.avi"},
    ]
    source = recordings.read(write_clip_table(tmp_path / "clips.csv", rows))
    clips = good(source)
    # Only the extraction knows whether it needs the missing picture.
    assert clips["u3"].video == tmp_path / "gone.avi"
    assert bad(source) == {"u4": f"no such file {tmp_path / 'gone.wav'}"}
    assert (clips["u1"].audio, clips["u1"].video) == (tmp_path / "a.wav", tmp_path / "pictures" / "a.avi")
    assert (clips["u2"].audio, clips["u2"].video) == (None, tmp_path / "pictures" / "a.avi")


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        (
            "a.csv",
            "key,split,label,path\né,all,x,a.wav\n".encode("latin-1"),
            r"UTF-8 \(byte 21\); save it again",
        ),
        ("a.csv", "key,split,label,path\nu,all,x,a.wav\n".encode("utf-16"), "not in UTF-8"),
        ("a.jsonl", '{"key": "é"}'.encode("latin-1"), "not in UTF-8"),
        (
            "a.csv",
            b'key,split,label,path\n"u' + b"x" * 200_000,
            r"up to line 2: not CSV .*is a quote not closed",
        ),
    ],
)
def test_tables_in_another_form_are_refused_by_name(
    tmp_path: Path, name: str, content: bytes, complaint: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(name)}: .*{complaint}"):
        recordings.read(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        "key,split,label,path,take\nu1,all,x,a.wav,1\nu2,all,y,a.wav,2\n,,,,\n , ,,,\n,,\n",
        "key;split;label;path;take\nu1;all;x;a.wav;1\nu2;all;y;a.wav;2\n;;;;\n",
        "key\tsplit\tlabel\tpath\ttake\nu1\tall\tx\ta.wav\t1\nu2\tall\ty\ta.wav\t2\n",
        ",key,split,label,path,take,,\r\n0,u1,all,x,a.wav,1,,\r\n1,u2,all,y,a.wav,2,,\r\n,,,,,,,\r\n",
    ],
    ids=["empty rows", "semicolons", "tabs", "columns without a name"],
)
def test_tables_as_spreadsheets_write_them(tmp_path: Path, content: str) -> None:
    put("tone.wav", tmp_path / "a.wav")
    (tmp_path / "T.CSV").write_text(content, newline="")
    source = recordings.read(tmp_path / "T.CSV")
    assert {key: (clip.label, clip.meta) for key, clip in good(source).items()} == {
        "u1": ("x", {"take": 1}),
        "u2": ("y", {"take": 2}),
    }
    assert not bad(source)


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("key,split,label,path,label\nu,all,x,a.wav,y\n")
    with pytest.raises(ValueError, match=r"a\.csv: column 'label' is there twice; rename or remove one"):
        recordings.read(tmp_path / "a.csv")


def test_keys_of_tables_are_made_as_those_of_folders(tmp_path: Path) -> None:
    put("tone.wav", tmp_path / "a.wav")
    rows = [{"key": key, "split": "all", "label": "x", "path": "a.wav"} for key in ("clip 1", "b/c.2")]
    source = recordings.read(write_clip_table(tmp_path / "a.csv", rows))
    assert list(good(source)) == ["clip_1", "b_c_2"]
    rows.append(rows[0] | {"key": "clip.1"})
    with pytest.raises(ValueError, match=r"row 3 and .*row 1 both have the key 'clip_1'"):
        recordings.read(write_clip_table(tmp_path / "a.csv", rows))


def test_files_of_other_suffixes_are_counted_and_reported(tmp_path: Path) -> None:
    for name in ("a.MKA", "b.m2ts", "c.xyz", "d.xyz", "notes", ".hidden"):
        put("tone.wav", tmp_path / "x" / name)
    source = recordings.read(tmp_path)
    assert {key: clip.video is None for key, clip in good(source).items()} == {"x_a": True, "x_b": False}
    assert source.provenance["left_out"] == {".xyz": 2, "no suffix": 1}
    told = (
        f"{tmp_path}: 3 files are left out; their suffixes are not those of recordings: .xyz 2, no suffix 1"
    )
    assert source.remarks == [told]


def test_if_every_clip_is_bad_the_first_is_named(tmp_path: Path) -> None:
    rows = [{"key": f"u{i}", "split": "all", "label": "x", "path": f"{i}.wav"} for i in range(2)]
    with pytest.raises(ValueError, match=r"no clips left, 2 bad ones .* the first: no such file .*0\.wav"):
        recordings.read(write_clip_table(tmp_path / "a.csv", rows))


@pytest.mark.parametrize("value", [["u0"], {"name": "u0"}])
@pytest.mark.parametrize("column", ["key", "path", "audio", "video"])
def test_a_cell_that_is_no_single_value_is_a_bad_clip(tmp_path: Path, column: str, value: Any) -> None:
    put("tone.wav", tmp_path / "a.wav")
    row = {"split": "all", "label": "x", "path": "a.wav"}
    rows = [{"key": f"u{i}", **row} for i in range(3)]
    rows[1:] = [record | {column: value} for record in rows[1:]]
    clips = recordings.read(write_clip_table(tmp_path / "a.jsonl", rows)).clips
    assert isinstance(clips[0], Clip)
    for number, (clip, key) in enumerate(zip(clips[1:], ("u1", "u2"), strict=True), start=2):
        assert isinstance(clip, BadSample)
        assert clip.key == ("" if column == "key" else key)
        assert clip.source == f"{tmp_path / 'a.jsonl'}: row {number}"
        assert clip.cause == f"its {column} is {value!r}, not a single value"


def test_json_lines_end_where_lines_do(tmp_path: Path) -> None:
    """Spoken text has marks that Python takes for ends of lines, and editors put a mark before the first."""
    put("tone.wav", tmp_path / "a.wav")
    row = {"key": "u", "split": "all", "label": "x", "path": "a.wav", "text": "one\u2028two\x85three"}
    (tmp_path / "a.jsonl").write_text("\ufeff" + json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    [clip] = good(recordings.read(tmp_path / "a.jsonl")).values()
    assert clip.text == Transcript(("one", "two", "three"))
    assert clip.meta == {}, "what is said is no metadata"


def test_a_clip_without_a_label_is_listed(tmp_path: Path) -> None:
    put("tone.wav", tmp_path / "a.wav")
    rows = [{"key": f"u{i}", "split": "all", "label": label, "path": "a.wav"} for i, label in enumerate("x ")]
    source = recordings.read(write_clip_table(tmp_path / "a.csv", rows))
    assert (source.classes, list(good(source)), list(bad(source))) == (["x"], ["u0"], ["u1"])
    rows.append({"key": None, "split": "all", "label": None, "path": "a.wav"})
    source = recordings.read(write_clip_table(tmp_path / "a.jsonl", rows))
    assert source.classes == ["x"]
    assert bad(source)[""] == "has no label; fill it in, or leave it out"


def test_folders_that_are_links_are_read(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put("tone.wav", root / "sad" / "a.wav")
    put("tone.wav", tmp_path / "elsewhere" / "b.wav")
    (root / "happy").symlink_to(tmp_path / "elsewhere")
    (root / "sad" / "c.wav").symlink_to(tmp_path / "elsewhere" / "b.wav")
    (root / "sad" / "gone.wav").symlink_to(tmp_path / "gone.wav")
    (tmp_path / "elsewhere" / "home").symlink_to(root)
    (root / "again").symlink_to(root)
    source = recordings.read(root)
    assert {key: clip.label for key, clip in good(source).items()} == {
        "sad_a": "sad",
        "sad_c": "sad",
        "happy_b": "happy",
    }


def test_names_of_any_letters_make_keys(tmp_path: Path) -> None:
    names = ["-dash #1.wav", "50%.wav", "日本.wav", "line\nbreak.wav", os.fsdecode(b"latin-\xe9.wav")]
    for name in names:
        put("tone.wav", tmp_path / "x" / name)
    clips = good(recordings.read(tmp_path))
    assert clips.keys() == {"x_-dash_#1", "x_50%", "x_日本", "x_line_break", "x_latin-_"}
    assert {clip.audio.name for clip in clips.values() if clip.audio} == set(names)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"pattern": "("}, r"pattern '\(': not a regular expression"),
        ({"pattern": r"\w+"}, "needs a group that is the label"),
        ({"pattern": "(?P<label>nothing like it)"}, "matches none of its 6 clips, such as .*calm/a.mp4"),
        ({"pattern": "(?P<label>calm|happy)/(?P<key>.)"}, "both have the key 'a'; rename one"),
        ({"labels": ["calm", "sad"]}, r"label 'happy' is not one of the classes \['calm', 'sad'\]"),
        (
            {"label_map": {"calm": "Calm"}},
            "label 'happy' is not in the label map; .*leave it out, write happy=",
        ),
        ({"label_map": {"calm": "", "happy": ""}}, "no clips left, 0 bad ones and 6 left out"),
    ],
)
def test_folders_that_do_not_fit_the_options_are_refused(
    tmp_path: Path, options: dict[str, Any], complaint: str
) -> None:
    write_tree(tmp_path, splits=[])
    with pytest.raises(ValueError, match=complaint):
        recordings.read(tmp_path, **options)


def test_what_is_no_source_of_recordings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"clips\.csv: no such table"):
        recordings.read(tmp_path / "clips.csv")
    with pytest.raises(ValueError, match=r"no recordings in it; known are \.3gp"):
        recordings.read(tmp_path)
    table = write_clip_table(tmp_path / "clips.csv", [{"key": "u", "split": "all", "label": "x"}])
    with pytest.raises(
        ValueError, match=re.escape("expected key, split, label and path, or audio and video")
    ):
        recordings.read(table)
    with pytest.raises(ValueError, match="pattern reads the names in a folder"):
        recordings.read(table, pattern="(?P<label>x)")
    table = write_clip_table(tmp_path / "whole.csv", [{"key": "u", "label": "x", "path": "a.wav"}])
    with pytest.raises(ValueError, match=r"or text \(--split NAME puts all rows into one split\)$"):
        recordings.read(table)
    put("tone.wav", tmp_path / "a.wav")
    with pytest.raises(ValueError, match=r"a\.wav: must lie in .*/<label> or .*/<split>/<label>; else say"):
        recordings.read(tmp_path)
    rows = [{"key": "u", "split": "all", "label": "x", "path": "a.wav"}] * 2
    with pytest.raises(ValueError, match=r"row 2 and .*row 1 both have the key 'u'"):
        recordings.read(write_clip_table(tmp_path / "twice.csv", rows))
