"""Text: words of transcripts to features, alone or beside sound and pictures."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora_support import put, write_clip_table, write_sound, write_tree
from extraction_support import Counting, Killed, extracted, files, files_in, skipped
from support import LIMIT, REPO

from shards import FeatureStream
from shards.extraction.encoders import open_text_encoder
from shards.extraction.encoders.chargrams import MOST_FEATURES
from shards.extraction.extract import extract
from shards.extraction.pipeline import TEXT_SPANS, TEXT_WORDS, UNDECODABLE
from shards.extraction.reopen_encoder import reopen_encoder
from shards.extraction.shard_jobs import extraction_id
from shards.format.feature_space import reopenable, space_of
from shards.sources import recordings
from shards.sources.base import Clip, ClipSource
from shards.sources.reading.transcripts import Transcript, transcript_of
from shards.tools.info import preview

RARE = "zyzzyva"


def encoded(*words: str, width: int = 2048) -> np.ndarray:
    encoder = open_text_encoder("chargrams", width=width)
    assert encoder is not None
    [features] = encoder.encode([words])
    return features


def likeness(a: str, b: str) -> float:
    features = encoded(a, b)
    return float(features[0] @ features[1])


def spoken(*texts: str, split: str = "train") -> ClipSource:
    """Utterances that are nothing but text."""
    clips = [
        Clip(f"u{i}", split, ["calm", "happy"][i % 2], None, None, text=transcript_of(text))
        for i, text in enumerate(texts)
    ]
    return ClipSource(clips, ["calm", "happy"], {"corpus": "spoken"})


def clips_of(source: ClipSource) -> dict[str, Clip]:
    return {clip.key: clip for clip in source.clips if isinstance(clip, Clip)}


def metadata(folder: Path) -> dict[str, dict[str, Any]]:
    return {found.key: found.meta for found in preview(str(folder), n=100)}


# --- chargrams -----------------------------------------------------------------------------------


def test_the_features_of_a_word_are_the_same_on_every_machine() -> None:
    features = encoded("Happy", "ok", width=16)
    expected = {
        "Happy": [0, 0, 0, 2, -1, 0, 0, 1, 0, 2, 0, 1, 1, 0, 0, 0],
        "ok": [0, 1, 0, 0, 0, 0, 0, -1, -1, 0, 0, 0, 0, 0, 0, 0],
    }
    assert features.dtype == np.float32
    for row, whole in zip(features, expected.values(), strict=True):
        np.testing.assert_allclose(row * np.linalg.norm(whole), whole, atol=1e-6)


def test_words_that_look_alike_have_similar_features() -> None:
    assert likeness("happy", "happy") == pytest.approx(1)
    assert likeness("happy", "Happy") == pytest.approx(1)
    assert likeness("don\u2019t", "don't") == pytest.approx(1)
    assert likeness("\uff28\uff41\uff50\uff50\uff59", "happy") == pytest.approx(1), "full-width letters"
    assert likeness("happy", "happpy") > 0.5
    assert 0.9 < likeness("happy", "HAPPY") < 1, "shouted"
    assert likeness("I", "i") == pytest.approx(1), "one capital is not shouted"
    assert abs(likeness("happy", "terrible")) < 0.2


def test_every_word_has_features() -> None:
    words = ("!", "...", "123", "\U0001f62d", "\u2764\ufe0f", "\u597d", "\u0645\u0631\u062d\u0628\u0627")
    words += ("\u200b", "x" * 100_000, "\ud800")
    for width in (1, 2, 7, 256):  # in few places the signs of all parts may cancel out
        features = encoded(*words, width=width)
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    distinct = encoded(*words)
    assert len(np.unique(distinct.round(5), axis=0)) == len(words)


def test_width_is_an_option_and_part_of_the_feature_space() -> None:
    encoder = open_text_encoder("chargrams", width=512)
    assert encoder is not None
    assert (encoder.dim, encoder.settings["width"]) == (512, 512)
    again = reopen_encoder("text", json.loads(json.dumps(encoder.settings)))
    assert again.settings == encoder.settings
    default = open_text_encoder("chargrams")
    assert default is not None
    assert space_of(default.settings) != space_of(encoder.settings)
    assert [len(of) for of in encoder.encode([("a", "b"), ("c",), ()])] == [2, 1, 0]
    for width in (0, MOST_FEATURES + 1):
        with pytest.raises(ValueError, match=rf"width={width}; it must be from 1 to 65536"):
            open_text_encoder("chargrams", width=width)
    assert open_text_encoder("none") is None
    with pytest.raises(ValueError, match=r"layer=1: the encoder 'chargrams' has no such option"):
        open_text_encoder("chargrams", layer=1)


def test_the_width_is_measured_on_generated_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = REPO / "tests" / "benchmarks" / "text_width.py"
    spec = importlib.util.spec_from_file_location("text_width", path)
    assert spec is not None
    assert spec.loader is not None
    measured: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(measured)
    first, again = measured.generate(3), measured.generate(3)
    assert first["val"][0] == again["val"][0]
    assert any(word.startswith("happ") for words in first["train"][0] for word in words)
    monkeypatch.setattr(measured, "SIZES", {"train": 300, "val": 60, "test": 60})
    monkeypatch.setattr(measured, "WIDTHS", (16, 256))
    monkeypatch.setattr("sys.argv", ["text_width.py", "--corpora", "1", "--out", str(tmp_path)])
    measured.main()
    [table] = tmp_path.glob("text-width-*.md")
    assert table.read_text() == capsys.readouterr().out
    assert "| 256 | " in table.read_text()
    assert measured.narrowest({256: 40.0, 512: 49.5, 1024: 50.2, 2048: 49.9}) == 512


# --- Extraction ----------------------------------------------------------------------------------


def test_text_alone_has_a_step_per_word(tmp_path: Path) -> None:
    source = spoken(
        "I am happy", "\u6211\u5f88\u96be\u8fc7 \U0001f62d", "", "\u0645\u0631\u062d\u0628\u0627 !"
    )
    manifest = extracted(source, tmp_path / "d", text=open_text_encoder("chargrams", width=64))
    assert manifest.modalities["text"].dim == 64
    assert skipped(tmp_path / "d") == {"u2": "no text to make features of"}
    found = {each.key: each.features["text"] for each in preview(str(tmp_path / "d"), n=9)}
    assert {key: len(of) for key, of in found.items()} == {"u0": 3, "u1": 5, "u3": 2}
    np.testing.assert_array_equal(found["u0"], encoded("I", "am", "happy", width=64).astype(np.float16))
    assert reopenable(manifest.provenance)["text"]["settings"]["id"] == "chargrams"


def test_words_are_stored_only_on_request(tmp_path: Path) -> None:
    times = ((0.0, 0.25), (0.25, 1.23456))
    source = spoken(f"not {RARE}", "fine")
    source.clips[0] = replace(source.clips[0], text=Transcript(("not", RARE), times))
    text = open_text_encoder("chargrams", width=64)
    manifest = extracted(source, tmp_path / "d", text=text)
    assert metadata(tmp_path / "d") == {"u0": {TEXT_SPANS: [[0.0, 0.25], [0.25, 1.235]]}, "u1": {}}
    for content in files_in(tmp_path / "d").values():
        assert RARE.encode() not in content
    stored = extracted(source, tmp_path / "stored", text=text, store_text=True)
    assert metadata(tmp_path / "stored")["u0"][TEXT_WORDS] == ["not", RARE]
    assert stored.provenance["extraction"] != manifest.provenance["extraction"]
    with pytest.raises(ValueError, match=r"store_text .* give an encoder of text"):
        extract(source, str(tmp_path / "x"), audio=Counting(), store_text=True)


def test_text_is_beside_sound_and_may_be_missing(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav")
    sound = spoken("one two three", "")
    clips = [replace(clip, audio=tmp_path / "a.wav") for clip in sound.clips]
    clips.append(replace(clips[0], key="gone", audio=tmp_path / "gone.wav"))
    source = replace(sound, clips=clips)
    encoders = {"audio": Counting(), "text": open_text_encoder("chargrams", width=8)}
    extracted(source, tmp_path / "d", **encoders)
    stream = FeatureStream(str(tmp_path / "d"), split="train", shuffle=False, global_batch_size=8)
    [batch] = list(stream.epoch(0))
    assert np.diff(batch.features["text"].offsets).tolist() == [3, 0, 3]
    assert np.diff(batch.features["audio"].offsets)[[1, 2]].tolist() == [4, 0]
    assert metadata(tmp_path / "d")["gone"] == {UNDECODABLE: {"audio": f"{tmp_path}/gone.wav: no such file"}}


def test_a_stopped_extraction_of_text_continues(tmp_path: Path, tones: ClipSource) -> None:
    clips = [replace(clip, text=transcript_of(f"tone number {i}")) for i, clip in enumerate(tones.clips)]
    source, text = replace(tones, clips=clips), open_text_encoder("chargrams", width=32)
    extracted(source, tmp_path / "alone", audio=Counting(), text=text)
    with pytest.raises(Killed):
        extracted(source, tmp_path / "d", audio=Counting(kill_after=7), text=text)
    last = Counting()
    extracted(source, tmp_path / "d", audio=last, text=text)
    assert last.clips == 20 - 6
    assert files(tmp_path / "d") == files(tmp_path / "alone")


def test_an_extraction_is_another_one_with_other_text(tones: ClipSource) -> None:
    def id_of(source: ClipSource, **encoders: Any) -> str:
        return extraction_id(source, encoders, {"dtype": "float16"})

    narrow, wide = (open_text_encoder("chargrams", width=width) for width in (32, 64))
    one, other = spoken("one"), spoken("other")
    ids = [id_of(one, text=narrow), id_of(other, text=narrow), id_of(one, text=wide)]
    assert len(set(ids)) == 3
    # Recorded before clips had texts: such an extraction still continues.
    bare = ClipSource([Clip("a", "all", "x", Path("a.wav"), None)], ["x"], {})
    assert id_of(bare, audio=Counting()) == "7eeb488f2fcb3f551d77aeca89db9b09"


# --- Recordings of one's own ---------------------------------------------------------------------


def with_texts(root: Path) -> Path:
    """A folder of recordings with a transcript beside some of them, and one beside none."""
    write_tree(root, splits=["train"])
    (root / "train" / "calm" / "a.txt").write_text("\ufeffall is quiet\n", encoding="utf-8")
    (root / "train" / "calm" / "c.TXT").write_text(" \n")
    (root / "train" / "happy" / "a.txt").write_bytes("caf\xe9".encode("latin-1"))
    (root / "train" / "happy" / "alone.txt").write_text("what a day")
    (root / "README.txt").write_text("about these recordings")
    return root


def test_a_text_beside_a_recording_is_what_is_said(tmp_path: Path) -> None:
    source = recordings.read(with_texts(tmp_path))
    clips = clips_of(source)
    assert {key: clip.text.words for key, clip in clips.items() if clip.text} == {
        "train_calm_a": ("all", "is", "quiet")
    }
    fix = "a.txt: not in UTF-8 (byte 3); save it in UTF-8, for instance with: iconv -f WINDOWS-1252 -t UTF-8"
    assert fix in clips["train_happy_a"].missing["text"]
    assert "1 transcript cannot be read; the first, " in "\n".join(source.remarks)
    assert "4 .txt files left out, " in "\n".join(source.remarks)


def test_texts_are_left_alone_where_no_features_of_text_are_made(tmp_path: Path) -> None:
    source = recordings.read(with_texts(tmp_path), modalities=("audio", "video"))
    assert not any(clip.text or clip.missing for clip in clips_of(source).values())
    assert source.provenance["left_out"] == {".txt": 7}


def test_a_text_without_a_recording_is_an_utterance_of_text_alone(tmp_path: Path) -> None:
    source = recordings.read(with_texts(tmp_path / "r"), modalities=["text"])
    clips = clips_of(source)
    assert clips["train_happy_alone"].text == Transcript(("what", "a", "day"))
    assert (clips["train_happy_alone"].audio, clips["train_happy_alone"].label) == (None, "happy")
    assert "README" not in clips
    extracted(source, tmp_path / "d", text=open_text_encoder("chargrams", width=8))
    notes = {"train_calm_notes", "train_happy_notes"}
    assert set(metadata(tmp_path / "d")) == {"train_calm_a", "train_happy_alone", *notes}
    assert "a.txt: not in UTF-8" in skipped(tmp_path / "d")["train_happy_a"]
    assert skipped(tmp_path / "d")["train_calm_c"].endswith("c.WAV: no text to make features of")
    only = tmp_path / "only" / "calm"
    only.mkdir(parents=True)
    (only / "x-1.txt").write_text("hm")
    [clip] = clips_of(recordings.read(tmp_path / "only", modalities=["text"])).values()
    assert (clip.key, clip.split, clip.files) == ("calm_x-1", "all", {})
    with pytest.raises(
        ValueError, match=r"no recordings in it; .*\.txt files alone are read with --audio none"
    ):
        recordings.read(tmp_path / "only")


ROWS: list[dict[str, Any]] = [
    {"key": "a", "split": "train", "label": "calm", "text": "all is quiet", "take": 1},
    {"key": "b", "split": "train", "label": "happy", "text": "2", "take": 2},
    {"key": "c", "split": "train", "label": "happy", "text": "", "take": 3},
]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_table_of_texts_needs_no_recordings(tmp_path: Path, suffix: str) -> None:
    table = write_clip_table(tmp_path / f"t{suffix}", ROWS)
    source = recordings.read(table, modalities=["text"])
    clips = clips_of(source)
    assert {key: clip.text and clip.text.words for key, clip in clips.items()} == {
        "a": ("all", "is", "quiet"),
        "b": ("2",),
    }
    assert clips["a"].meta == {"take": 1}
    extracted(source, tmp_path / "d", text=open_text_encoder("chargrams", width=8))
    assert (
        skipped(tmp_path / "d")["c"] == f"{table}: row 3: no file is named; fill path, audio, video or text"
    )
    with pytest.raises(ValueError, match=r"expected key, split, label and path, or audio and video$"):
        recordings.read(table, modalities=["audio", "video"])


def test_a_column_with_another_name_is_metadata_and_the_user_is_told(tmp_path: Path) -> None:
    rows = [{"key": "a", "split": "all", "label": "x", "text": "so what", "Transcript": "so what"}]
    source = recordings.read(write_clip_table(tmp_path / "t.csv", rows))
    assert [remark for remark in source.remarks if "what" in remark] == [
        f"{tmp_path / 't.csv'}: column 'Transcript' is stored as metadata; if it is what is said, which is "
        "personal data, call it 'text', or remove it"
    ]


def test_a_table_may_have_both(tmp_path: Path) -> None:
    put("tone.wav", tmp_path / "a.wav")
    (tmp_path / "a.txt").write_text("from the file")
    row = {"split": "all", "label": "x", "path": "a.wav"}
    rows = [{"key": "a", **row, "text": "hm"}, {"key": "b", **row, "text": ""}]
    rows += [{"key": "c", **row, "path": "gone.wav", "text": "hm"}]
    source = recordings.read(write_clip_table(tmp_path / "t.csv", rows))
    assert {key: clip.text and clip.text.words for key, clip in clips_of(source).items()} == {
        "a": ("hm",),
        "b": None,
        "c": ("hm",),
    }
    rows = [{"key": "a", **row, "begin": "", "end": ""}, {"key": "b", **row, "begin": "0", "end": "0.5"}]
    beside = clips_of(recordings.read(write_clip_table(tmp_path / "u.csv", rows)))
    assert beside["a"].text == Transcript(("from", "the", "file"))
    assert beside["b"].text is None, "the file tells what is said in all of the clip"


# --- Without media -------------------------------------------------------------------------------

WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(["av", "transformers"]))  # neither can be imported
from awtpn.cli import main
main({words!r})
"""


def test_text_alone_needs_no_media(tmp_path: Path) -> None:
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8") as file:
        lines = [
            ("key", "split", "label", "text"),
            ("a", "train", "calm", RARE),
            ("b", "train", "happy", "so"),
        ]
        csv.writer(file).writerows(lines)
    words = ["extract", str(tmp_path / "t.csv"), str(tmp_path / "d"), "--audio", "none", "--video", "none"]
    words += ["--text", "chargrams", "--text_width", "32"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(words=words)],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    assert "train: 2 utterances in 1 shard" in done.stdout
    assert all(RARE.encode() not in content for content in files_in(tmp_path / "d").values())
