"""`awtpn extract` and `awtpn predict` as typed: corpora as they unpack, what a model may be asked about."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from corpora_support import (
    GARBAGE,
    put,
    put_bytes,
    write_empty_track,
    write_iemocap,
    write_meld,
    write_mosei,
    write_sound,
    write_tree,
)

from awtpn import Predictor
from awtpn.cli import main
from awtpn.cli.extract import limited
from awtpn.training.evaluate import evaluate_command
from awtpn.training.trainer import main as train
from shards import FeatureStream
from shards.sources import mosei, recordings
from shards.storage.store import open_dataset

SHORT = ["--model.shared_dim", "8", "--train.global_batch_size", "8", "--train.epochs", "2"]
RED_OVER_GREEN = 130  # of the descriptor


def awtpn(*words: object) -> None:
    main([str(word) for word in words])


def skipped(folder: Path) -> dict[str, str]:
    lines = (folder / "skipped.jsonl").read_text().splitlines()
    return {entry["key"]: entry["cause"] for entry in map(json.loads, lines)}


def features(url: Path, split: str) -> dict[str, dict[str, np.ndarray]]:
    """Per utterance its arrays [T, D]."""
    stream = FeatureStream(str(url), split=split, shuffle=False, global_batch_size=64)
    found = {}
    for batch in stream.epoch(0):
        for i, key in enumerate(batch.key):
            found[key] = {
                m: r.values[r.offsets[i] : r.offsets[i + 1]].float().numpy()
                for m, r in batch.features.items()
            }
    return found


# --- Corpora -------------------------------------------------------------------------------------


def test_iemocap_from_its_archive_to_a_trained_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_iemocap(tmp_path / "IEMOCAP_full_release")
    awtpn("extract", corpus, tmp_path / "d", "--test_session", 2, "--fps", 5)
    assert "test: " in capsys.readouterr().out
    assert not (tmp_path / "d" / "skipped.jsonl").exists(), "each turn has its sound or its picture"
    found = features(tmp_path / "d", "train")
    assert (len(found["Ses01F_impro01_M002"]["audio"]), len(found["Ses01F_impro01_M002"]["video"])) == (0, 2)
    # 0.4 s of the dialog's picture, cut to the half of its speaker; the sound is a file of its own.
    actress, actor = found["Ses01F_impro01_F000"], found["Ses01F_impro01_M003"]
    assert (len(actress["audio"]), len(actress["video"])) == (10, 2)
    assert actress["video"][:, RED_OVER_GREEN].min() > 0.4, "red is the left half"
    assert actor["video"][:, RED_OVER_GREEN].max() < 0.1, "blue is the right"
    train(["--data.train", str(tmp_path / "d"), "--run.dir", str(tmp_path / "run"), *SHORT])
    tested = json.loads((tmp_path / "run" / "results.json").read_text())["test"]
    assert tested["labels"] == ["angry", "happy", "neutral", "sad"]
    assert tested["utterances"] == len(features(tmp_path / "d", "test")) > 0

    awtpn("pack", corpus, tmp_path / "packed", "--format", "iemocap")
    packed = features(tmp_path / "packed", "all")
    assert packed.keys() == found.keys() | features(tmp_path / "d", "test").keys()
    np.testing.assert_array_equal(packed["Ses01F_impro01_F000"]["audio"], actress["audio"])


def test_meld_from_its_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    awtpn(
        "extract", write_meld(tmp_path / "MELD.Raw"), tmp_path / "d", "--format", "meld", "--dtype", "float32"
    )
    assert "2 clips left out; skipped.jsonl in" in capsys.readouterr().out
    causes = skipped(tmp_path / "d")
    assert sorted(causes) == ["train_dia125_utt3", "val_dia110_utt7"]
    assert "dia125_utt3.mp4" in causes["train_dia125_utt3"]
    _, manifest, _ = open_dataset(str(tmp_path / "d"))
    assert {name: split.utterances for name, split in manifest.splits.items()} == {
        "train": 2,
        "val": 1,
        "test": 2,
    }
    assert manifest.modalities["audio"].dtype == "float32"
    assert manifest.skipped == 2


def test_the_format_is_guessed_and_its_options_checked(tmp_path: Path) -> None:
    meld, tree = write_meld(tmp_path / "meld", nested=False), write_tree(tmp_path / "tree")
    with pytest.raises(SystemExit, match=r"--label_set is an option of --format iemocap and .* read as meld"):
        awtpn("extract", meld, tmp_path / "d", "--label_set", 4)
    with pytest.raises(SystemExit, match=r"--test_session is an option .* read as recordings"):
        awtpn("extract", tree, tmp_path / "d", "--test_session", 1)
    with pytest.raises(SystemExit, match=r"nowhere: no such file or folder"):
        awtpn("extract", tmp_path / "nowhere", tmp_path / "d")
    with pytest.raises(SystemExit, match=r"there is nothing to extract"):
        awtpn("extract", tree, tmp_path / "d", "--audio", "none", "--video", "none")
    assert not (tmp_path / "d").exists()


def test_the_same_command_again_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = write_tree(tmp_path / "t")
    for _ in range(2):
        capsys.readouterr()
        awtpn("extract", tree, tmp_path / "d", "--video", "none", "--patience", 1, "--retry_failed")
        assert "extracted; train with" in capsys.readouterr().out
    assert "already complete" in caplog.text
    with pytest.raises(SystemExit, match="finished dataset"):
        awtpn("extract", tree, tmp_path / "d", "--video", "none", "--dtype", "float32")


def test_options_reach_source_and_encoders(tmp_path: Path) -> None:
    options = ["--label_map", "calm=neutral,happy=", "--audio", "none", "--fps", 8, "--video_step", 0.5]
    secret = json.dumps({"auto_mkdir": True})
    awtpn("extract", write_tree(tmp_path / "t"), tmp_path / "d", *options, "--storage_options", secret)
    _, manifest, _ = open_dataset(str(tmp_path / "d"))
    assert manifest.classes == ["neutral"]
    assert list(manifest.modalities) == ["video"]
    settings = manifest.provenance["features"]["video"]["settings"]
    assert (settings["fps"], settings["step_seconds"]) == (8, 0.5)
    assert len(features(tmp_path / "d", "train")["train_calm_a"]["video"]) == 2


def test_text_is_extracted_beside_the_others(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t")
    for split, label in (("train", "calm"), ("train", "happy"), ("test", "calm")):
        (tree / split / label / "a.txt").write_text("what a day")
    options = ["--video", "none", "--text", "chargrams", "--text_width", 16, "--store_text"]
    awtpn("extract", tree, tmp_path / "d", *options)
    _, manifest, _ = open_dataset(str(tmp_path / "d"))
    assert {name: modality.dim for name, modality in manifest.modalities.items()} == {"audio": 80, "text": 16}
    found = features(tmp_path / "d", "train")
    assert {key: len(of["text"]) for key, of in found.items() if len(of["text"])} == {
        "train_calm_a": 3,
        "train_happy_a": 3,
    }
    with pytest.raises(SystemExit, match=r"chargrams: width=0; it must be from 1"):
        awtpn("extract", tree, tmp_path / "x", "--text", "chargrams", "--text_width", 0)
    with pytest.raises(SystemExit, match=r"--text_layer: no features of text are made; name an encoder"):
        awtpn("extract", tree, tmp_path / "x", "--text_layer", 0)
    with pytest.raises(SystemExit, match=r"store_text .* give an encoder of text"):
        awtpn("extract", tree, tmp_path / "x", "--store_text")


def test_a_limit_draws_evenly(tmp_path: Path) -> None:
    source = limited(recordings.read(write_tree(tmp_path)), 2, ["audio", "video"])
    assert [(clip.split, clip.label) for clip in source.clips] == [  # type: ignore[union-attr]
        ("test", "calm"),
        ("test", "happy"),
        ("train", "calm"),
        ("train", "happy"),
    ]


@pytest.mark.parametrize("option", ["--storage_options", "--stora"])  # argparse takes it abbreviated, too
def test_credentials_are_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    words = ["extract", str(write_tree(tmp_path / "t")), "memory://user:pass@cli-extract/d"]
    words += ["--video", "none", "--overwrite", option, '{"secret": "hush"}']
    monkeypatch.setattr("sys.argv", ["awtpn", *words])
    awtpn(*words)
    _, manifest, _ = open_dataset("memory://user:pass@cli-extract/d")
    assert "memory://cli-extract/d" in manifest.provenance["command"]
    assert not {"pass", "hush"} & set(manifest.provenance["command"].replace('"', " ").split())


# --- Predicting from recordings ------------------------------------------------------------------


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extracted")
    awtpn("extract", write_tree(folder / "tree"), folder / "d", "--fps", 5, "--dtype", "float32")
    return folder / "d"


@pytest.fixture(scope="module")
def run(extracted: Path) -> Path:
    folder = extracted.with_name("run")
    train(["--data.train", str(extracted), "--run.dir", str(folder), *SHORT])
    return folder


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_recording_is_answered_as_its_features_are(
    run: Path, extracted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = {"test_calm_a": "test/calm/a.mp4", "test_happy_c": "test/happy/c.WAV"}
    paths = [extracted.with_name("tree") / name for name in clips.values()]
    answers = dict(zip(clips, Predictor.from_pretrained(run).predict_recordings(paths), strict=True))
    capsys.readouterr()
    awtpn("predict", run, extracted, "--split", "test")
    by_key = {line["key"]: line for line in lines(capsys.readouterr().out)}
    for key, answer in answers.items():
        assert answer.label == by_key[key]["label"]
        assert answer.probabilities == pytest.approx(by_key[key]["probabilities"], abs=1e-5)
        for modality, weights in by_key[key]["weights"].items():
            assert answer.weights[modality] == pytest.approx(weights, abs=1e-5)
    assert len(answers["test_happy_c"].weights["video"]) == 0


def test_predict_answers_in_json_in_words_and_in_a_picture(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film, sound = put("both.mp4", tmp_path / "film.mp4"), write_sound(tmp_path / "sound.wav", 2.0)
    broken = put_bytes(tmp_path / "broken.mkv", GARBAGE)
    with pytest.raises(SystemExit) as stopped:
        awtpn("predict", run, film, broken, sound, "--png", tmp_path / "png")
    assert stopped.value.code == 1, "one of three cannot be used; the others are answered"
    captured = capsys.readouterr()
    one, two = lines(captured.out)
    assert (one["key"], two["key"]) == (str(film), str(sound))
    assert one["step_seconds"] == {"audio": 0.1, "video": 0.2}
    assert len(one["weights"]["video"]) == 5
    assert len(two["weights"]["audio"]) == 20
    assert "film.mp4: calm " in captured.err or "film.mp4: happy " in captured.err
    assert "heaviest: audio " in captured.err
    assert f"{broken}: not predicted: {broken}: not a recording" in captured.err
    assert sorted(path.name for path in (tmp_path / "png").iterdir()) == ["film.mp4.png", "sound.wav.png"]
    drawn = matplotlib.image.imread(tmp_path / "png" / "film.mp4.png")[..., :3]
    # The frames' red is in the strip's place at the top, and nowhere in the picture of a sound.
    red = (drawn[..., 0] > 0.6) & (drawn[..., 1] < 0.5) & (drawn[..., 2] < 0.5)
    assert red[: len(red) // 3].mean() > 0.02
    heard = matplotlib.image.imread(tmp_path / "png" / "sound.wav.png")[..., :3]
    assert heard.shape[0] < drawn.shape[0]
    assert not ((heard[..., 0] > 0.6) & (heard[..., 1] < 0.4) & (heard[..., 2] < 0.4)).any()


def test_a_recording_is_answered_by_the_stream_that_can_be_decoded(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    film = write_empty_track(tmp_path / "a.mkv")
    awtpn("predict", run, film)
    [line] = lines(capsys.readouterr().out)
    assert not line["weights"]["audio"]
    assert line["weights"]["video"]
    assert f"{film}: predicted without its audio: {film}: no sound can be decoded" in caplog.text


def test_what_cannot_be_predicted_from_says_why(
    run: Path, extracted: Path, corpus: str, tmp_path: Path
) -> None:
    film = put("both.mp4", tmp_path / "film.mp4")
    with pytest.raises(SystemExit, match=r"d is not a file: give only recordings, or a single dataset"):
        awtpn("predict", run, film, extracted)
    with pytest.raises(ValueError, match=r"gone.mp4: no such file"):
        Predictor.from_pretrained(run).predict_recordings([film, tmp_path / "gone.mp4"])
    unknown = tmp_path / "unknown"
    train(["--data.train", corpus, "--run.dir", str(unknown), *SHORT])
    with pytest.raises(SystemExit, match=r"features of audio and video were made is not recorded"):
        awtpn("predict", unknown, film)


def test_a_file_is_a_recording_whatever_its_suffix(
    run: Path, extracted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = put("both.mp4", tmp_path / "film")
    awtpn("predict", run, film)
    assert lines(capsys.readouterr().out)[0]["key"] == str(film)
    folder = tmp_path / "d.mp4"
    folder.symlink_to(extracted)
    for dataset in (folder, folder / "manifest.json"):
        awtpn("predict", run, dataset, "--split", "test")
        assert len(lines(capsys.readouterr().out)) == 6


def test_a_corpus_own_features_cannot_be_made_of_a_recording(run: Path, tmp_path: Path) -> None:
    named = {"audio": "CMU_MOSEI_COVAREP.csd", "video": "CMU_MOSEI_VisualOpenFace2.csd"}
    source = mosei.read(write_mosei(tmp_path), folds="folds.json", **named)
    predictor = Predictor.from_pretrained(run)
    predictor.model.provenance = source.provenance
    with pytest.raises(
        ValueError, match=r"features of audio and video were made is not recorded, so they can"
    ):
        predictor.encoders()


# --- A model knows one feature space -------------------------------------------------------------


def test_a_model_takes_no_other_features_of_the_same_width(
    run: Path, extracted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "d"
    awtpn("extract", extracted.with_name("tree"), other, "--fps", 10, "--dtype", "float32")
    told = r"video: descriptor \(fps 5, step_seconds 0.2\) against descriptor \(fps 10, step_seconds 0.1\)"
    with pytest.raises(SystemExit, match=told):
        awtpn("predict", run, other)
    options: dict[str, Any] = {"checkpoint": str(run), "data": str(other), "split": "test"}
    options |= dict.fromkeys(("select", "out", "cache_dir", "storage_options", "predictions", "target"))
    with pytest.raises(ValueError, match=told):
        evaluate_command(argparse.Namespace(**options))
    with pytest.raises(ValueError, match=f"run.init_from: .* other features than this run: {told}"):
        train(
            [
                "--data.train",
                str(other),
                "--run.dir",
                str(tmp_path / "a"),
                "--run.init_from",
                str(run),
                *SHORT,
            ]
        )
    words = ["--data.train", str(extracted), "--data.test", str(other), "--run.dir", str(tmp_path / "b")]
    with pytest.raises(ValueError, match=told):
        train([*words, *SHORT])
    # What is the same in the modality that is used may go on.
    sound = ["--model.modalities", '["audio"]']
    train(["--data.train", str(extracted), "--run.dir", str(tmp_path / "c"), *sound, *SHORT])
    capsys.readouterr()
    awtpn("predict", tmp_path / "c", other)
    assert len(lines(capsys.readouterr().out)) == 6


def test_a_model_tells_its_feature_space_after_export(run: Path, extracted: Path, tmp_path: Path) -> None:
    awtpn("export", run, tmp_path / "model")
    shutil.copytree(tmp_path / "model", tmp_path / "elsewhere")
    _, manifest, _ = open_dataset(str(extracted))
    predictor = Predictor.from_pretrained(tmp_path / "elsewhere")
    assert predictor.model.provenance["features"] == manifest.provenance["features"]
    assert predictor.encoders().keys() == {"audio", "video"}
