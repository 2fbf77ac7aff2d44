"""Text of each corpus, as a user types it: alone without any recording, or beside features that exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora_support import mmsa_splits, write_iemocap, write_meld, write_mmsa, write_mosei

from awtpn.cli import main
from shards import FeatureStream

NO_MEDIA = ("--audio", "none", "--video", "none")
WORDS = "CMU_MOSEI_TimestampedWords.csd"
MOSEI = ("--format", "mosei", "--folds", "folds.json")
CHARGRAMS = ("--text_encoder", "chargrams", "--text_width", 64)


def awtpn(*words: object) -> None:
    main([str(word) for word in words])


def provenance(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "manifest.json").read_text())["provenance"]
    return found


def metadata(out: Path) -> dict[str, dict[str, Any]]:
    manifest = json.loads((out / "manifest.json").read_text())
    streams = [FeatureStream(str(out), split=split, shuffle=False) for split in manifest["splits"]]
    return {key: dict(meta) for stream in streams for key, meta in stream.metadata()}


def steps(out: Path, split: str, modalities: list[str]) -> dict[str, list[int]]:
    """Steps of each utterance by modality."""
    stream = FeatureStream(str(out), split=split, global_batch_size=100, shuffle=False, modalities=modalities)
    batch = next(stream.epoch(0))
    lengths = {name: np.diff(batch.features[name].host_offsets) for name in modalities}
    return {key: [int(lengths[name][i]) for name in modalities] for i, key in enumerate(batch.key)}


def holds(out: Path, text: str) -> bool:
    return any(text.encode() in path.read_bytes() for path in out.iterdir())


def test_meld_of_three_tables_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = write_meld(tmp_path / "MELD.Raw", media=False), tmp_path / "out"
    awtpn("extract", root, out, "--format", "meld", *NO_MEDIA, "--text", "chargrams")
    assert "train: 3 utterances in 1 shard\n" in capsys.readouterr().out
    assert steps(out, "test", ["text"]) == {"test_dia0_utt0": [6], "test_dia1_utt0": [6]}
    assert not holds(out, "lost")
    assert provenance(out)["transcripts"] == "column Utterance"
    assert provenance(out)["features"]["text"]["settings"]["id"] == "chargrams"
    awtpn("shards", "info", out)
    assert "transcripts: column Utterance" in capsys.readouterr().out
    awtpn("extract", root, tmp_path / "stored", *NO_MEDIA, "--text", "chargrams", "--store_text")
    assert holds(tmp_path / "stored", "lost")
    with pytest.raises(SystemExit, match=r"train_sent_emo\.csv: its counterpart train_splits is neither in"):
        awtpn("extract", root, tmp_path / "no", "--format", "meld", "--video", "none", "--text", "chargrams")


def test_where_transcripts_are_is_recorded_with_features_of_them_only(tmp_path: Path) -> None:
    root = write_meld(tmp_path / "MELD.Raw")
    awtpn("extract", root, tmp_path / "sound", "--video", "none")
    assert "transcripts" not in provenance(tmp_path / "sound")
    for table in root.rglob("*.csv"):
        table.write_bytes(table.read_bytes().replace(b"Utterance,", b"Other,", 1))
    awtpn("extract", root, tmp_path / "none", "--video", "none", "--text", "chargrams")
    assert "transcripts" not in provenance(tmp_path / "none")


def test_a_limit_is_of_clips_that_exist(tmp_path: Path) -> None:
    root, out = write_meld(tmp_path / "MELD.Raw"), tmp_path / "out"
    (root / "test" / "output_repeated_splits_test" / "dia0_utt0.mp4").unlink()
    awtpn("extract", root, out, "--video", "none", "--limit", 1)
    assert metadata(out).keys() == {"train_dia0_utt0", "val_dia0_utt0", "test_dia1_utt0"}
    listed = [json.loads(line)["key"] for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert sorted(listed) == ["test_dia0_utt0", "val_dia110_utt7"]
    # Text needs no clip.
    awtpn("extract", root, tmp_path / "text", *NO_MEDIA, "--text", "chargrams", "--limit", 1)
    assert "test_dia0_utt0" in metadata(tmp_path / "text")


def test_meld_with_sound_and_text(tmp_path: Path) -> None:
    root, out = write_meld(tmp_path / "MELD.Raw"), tmp_path / "out"
    awtpn("extract", root, out, "--video", "none", "--text", "chargrams")
    found = metadata(out)
    # A clip that is missing and one that cannot be decoded keep their text.
    assert found["val_dia110_utt7"]["lacking"]["audio"].startswith("no such file /")
    assert found["train_dia125_utt3"]["lacking"].keys() == {"audio"}
    assert steps(out, "val", ["audio", "text"])["val_dia110_utt7"] == [0, 6]


def test_iemocap_without_its_sound(tmp_path: Path) -> None:
    root, out = write_iemocap(tmp_path / "i", media=False), tmp_path / "out"
    awtpn("extract", root, out, "--format", "iemocap", *NO_MEDIA, "--text", "chargrams")
    words = steps(out, "all", ["text"])
    assert words["Ses01F_impro01_F000"] == [2]
    found = metadata(out)
    assert found["Ses01F_impro01_F000"]["text_spans"] == [[0.1, 0.2], [0.2, 0.3]]
    assert "text_spans" not in found["Ses01F_impro01_F002"]
    listed = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert {entry["key"].rpartition("_")[2] for entry in listed} == {"M002", "M003"}
    assert "no text to make features of" in listed[0]["cause"]


def test_mosei_with_its_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = write_mosei(tmp_path / "m"), tmp_path / "out"
    features = ("--audio", "CMU_MOSEI_COVAREP.csd", "--video", "CMU_MOSEI_VisualOpenFace2.csd")
    awtpn("pack", root, out, *MOSEI, *features, "--text", WORDS, "--text_width", 64)
    of_train = steps(out, "train", ["audio", "text", "video"])
    assert of_train == {"-3g5yACwYnA_0": [20, 4, 10], "-3g5yACwYnA_1": [20, 3, 10]}
    assert steps(out, "test", ["audio", "text"])["GdFP_p4eQX0_1"] == [1, 0]
    made = provenance(out)
    assert made["files"]["text"] == made["transcripts"] == WORDS
    assert {name: of["settings"]["id"] for name, of in made["features"].items()} == {
        "audio": "COVAREP",
        "video": "OpenFace_2",
        "text": "chargrams",
    }
    assert made["features"]["text"]["settings"]["width"] == 64
    assert made["repaired_steps"] == {"audio": 2}
    assert not holds(out, "half")
    assert metadata(out)["-3g5yACwYnA_1"]["text_spans"][0] == [0.4, 0.8]
    # The same text alone; its features are of the same space.
    alone = tmp_path / "alone"
    awtpn("extract", root, alone, *MOSEI, *NO_MEDIA, "--text", "chargrams", "--text_width", 64)
    assert steps(alone, "train", ["text"]) == {key: [text] for key, (_, text, _) in of_train.items()}
    assert provenance(alone)["features"]["text"]["space"] == made["features"]["text"]["space"]
    assert provenance(alone)["transcripts"] == WORDS
    assert [json.loads(line)["key"] for line in (alone / "skipped.jsonl").read_text().splitlines()] == [
        "GdFP_p4eQX0_1"
    ]
    awtpn("extract", root, tmp_path / "few", *MOSEI, *NO_MEDIA, "--text", "chargrams", "--limit", 1)
    assert len(metadata(tmp_path / "few")) == 3


def test_mosei_with_vectors_of_its_words(tmp_path: Path) -> None:
    root, out = write_mosei(tmp_path / "m"), tmp_path / "out"
    vectors = ("--audio", "CMU_MOSEI_COVAREP.csd", "--text", "CMU_MOSEI_TimestampedWordVectors.csd")
    awtpn("pack", root, out, *MOSEI, *vectors)
    assert steps(out, "train", ["audio", "text"]) == {"-3g5yACwYnA_0": [20, 5], "-3g5yACwYnA_1": [20, 5]}
    assert provenance(out)["features"]["text"]["settings"] == {"id": "glove_vectors", "corpus": "CMU-MOSEI"}
    assert "transcripts" not in provenance(out)


@pytest.mark.parametrize(
    "words",
    [
        "SOURCE OUT --format mmsa --text",
        "--text SOURCE OUT --format mmsa",
        "SOURCE --text OUT --format mmsa",
        "--format mmsa --text SOURCE OUT",
        "--format=mmsa --text SOURCE OUT",
        "SOURCE --format mmsa --text OUT",
    ],
)
def test_mmsa_with_the_text_that_it_has(tmp_path: Path, words: str) -> None:
    path, out = write_mmsa(tmp_path / "x.pkl"), tmp_path / "out"
    awtpn("pack", *({"SOURCE": path, "OUT": out}.get(word, word) for word in words.split()))
    assert steps(out, "test", ["audio", "text", "video"]) == {
        "videotest_0": [5, 6, 4],
        "videotest_1": [2, 6, 3],
    }
    assert steps(out, "test", ["text"])["videotest_0"] == [6]
    assert not holds(out, "utterance 1")


def test_mmsa_with_text_of_an_encoder(tmp_path: Path) -> None:
    splits = mmsa_splits()
    splits["train"]["raw_text"] = ["我不想嫁给李茶", "", "مرحبا 👍"]
    path, out = write_mmsa(tmp_path / "x.pkl", splits), tmp_path / "out"
    awtpn("pack", path, out, "--format", "mmsa", *CHARGRAMS, "--store_text")
    assert steps(out, "train", ["audio", "text", "video"]) == {
        "videotrain_0": [3, 7, 2],
        "videotrain_1": [5, 0, 4],
        "videotrain_2": [1, 2, 3],
    }
    assert metadata(out)["videotrain_0"]["text_words"] == list("我不想嫁给李茶")
    alone = tmp_path / "alone"
    awtpn("extract", path, alone, "--format", "mmsa", *NO_MEDIA, "--text", "chargrams")
    assert steps(alone, "train", ["text"]) == {"videotrain_0": [7], "videotrain_2": [2]}
    assert not holds(alone, "utterance 1")


def test_a_hostile_text_is_a_bad_utterance(tmp_path: Path) -> None:
    splits = mmsa_splits()
    splits["train"]["raw_text"][1] = "a\0b"
    path = write_mmsa(tmp_path / "x.pkl", splits)
    cause = "its text has characters that no text has"
    with pytest.raises(SystemExit, match=rf"train\[1\]: utterance 'videotrain_1': {cause}"):
        awtpn("pack", path, tmp_path / "out", "--format", "mmsa", *CHARGRAMS)
    awtpn("pack", path, tmp_path / "out", "--format", "mmsa", *CHARGRAMS, "--on_bad", "skip")
    assert cause in (tmp_path / "out" / "skipped.jsonl").read_text()
    assert len(metadata(tmp_path / "out")) == 6


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            ["extract", "--format", "mmsa", "--video", "none", "--text", "chargrams"],
            "--format mmsa has features and transcripts, but no recordings: for its text alone give --audio "
            "none .* awtpn pack SOURCE OUT --format mmsa --text_encoder ENCODER",
        ),
        (["extract", "--format", "mmsa", *NO_MEDIA], "but no recordings: for its text alone give"),
        (
            ["extract", "--format", "mmsa", *NO_MEDIA, "--text", "chargrams", "--folds", "x"],
            "--folds is an option of --format mosei",
        ),
        (
            ["pack", "--format", "mmsa", "--text_width", "8"],
            "--text_width: no features of text are made here",
        ),
        (
            ["pack", "--format", "mmsa", "--text_layer", "0"],
            "--text_layer: no features of text are made here",
        ),
        (["pack", "--format", "mmsa", "--store_text"], "--store_text: no features of text are made here"),
        (["pack", "--format", "mmsa", "--text_encoder", "none"], "--text_encoder none encodes nothing"),
        (
            ["pack", "--format", "npz", "--text_encoder", "chargrams"],
            "--text_encoder is an option of --format",
        ),
        (["pack", "--format", "mmsa", "--text", "--text_encoder", "chargrams"], "give one of the two"),
    ],
)
def test_what_makes_no_text_is_refused(tmp_path: Path, words: list[str], complaint: str) -> None:
    path = write_mmsa(tmp_path / "x.pkl")
    command, *options = words
    with pytest.raises(SystemExit, match=complaint):
        awtpn(command, path, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()
