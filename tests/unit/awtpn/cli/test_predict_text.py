"""Audio, video and text from recordings to predictions: text on the command line, in files, and alone."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from cli_support import awtpn, lines, refusal
from corpora_support import GARBAGE, put, put_bytes, write_sound, write_tree
from support import small_model

from awtpn import Predictor
from awtpn.metrics.regression import summarize_values
from awtpn.model.modality_colors import modality_colors
from awtpn.model.task import Task
from awtpn.training.evaluate import evaluate_command
from awtpn.training.trainer import main as train
from shards.sources.reading.transcripts import Transcript
from shards.storage.store import open_dataset

SHORT = ["--model.shared_dim", "8", "--train.global_batch_size", "8", "--train.epochs", "2"]
SAID = {"calm": "What a quiet afternoon by the lake", "happy": "Hurray we won the cup"}
CLIPS = {"a": "a.mp4", "b_take_2": "b.take 2.avi", "c": "c.WAV"}


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of recordings, with a transcript beside each."""
    folder = tmp_path_factory.mktemp("texts")
    tree = write_tree(folder / "tree")
    for label, said in SAID.items():
        for split in ("train", "test"):
            for clip in CLIPS.values():
                path = (tree / split / label / clip).with_suffix(".txt")
                put_bytes(path, f"{said} {split} {len(clip)}\n".encode())
    options = ("--fps", 5, "--text", "chargrams", "--text_width", 32, "--dtype", "float32")
    awtpn("extract", tree, folder / "d", *options)
    return folder / "d"


def trained(extracted: Path, name: str, modalities: str) -> Path:
    folder = extracted.with_name(name)
    train(
        [
            "--data.train",
            str(extracted),
            "--run.dir",
            str(folder),
            "--model.modalities",
            modalities,
            *SHORT,
        ]
    )
    return folder


@pytest.fixture(scope="module")
def run(extracted: Path) -> Path:
    return trained(extracted, "run", "audio,video,text")


@pytest.fixture(scope="module")
def of_text(extracted: Path) -> Path:
    return trained(extracted, "of_text", "text")


@pytest.fixture(scope="module")
def of_sound(extracted: Path) -> Path:
    return trained(extracted, "of_sound", "audio")


@pytest.fixture
def film(tmp_path: Path) -> Path:
    put_bytes(tmp_path / "film.txt", b"\xef\xbb\xbfa zebra, Marmalade!")
    return put("both.mp4", tmp_path / "film.mp4")


# --- All of it -----------------------------------------------------------------------------------


def test_recordings_with_text_are_answered_as_their_dataset_is(
    run: Path, extracted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tested = json.loads((run / "results.json").read_text())["test"]
    options: dict[str, Any] = {"checkpoint": str(run), "data": None, "split": "test"}
    options |= dict.fromkeys(("select", "out", "cache_dir", "storage_options", "target"))
    figures = evaluate_command(argparse.Namespace(**options, predictions=tmp_path / "p.jsonl"))
    assert figures["utterances"] == tested["utterances"] == 6
    capsys.readouterr()
    awtpn("predict", run, extracted)
    by_key = {line["key"]: line for line in lines(capsys.readouterr().out)}
    assert {key: len(line["weights"]["text"]) for key, line in by_key.items() if "calm" in key} == {
        "test_calm_a": 9,
        "test_calm_b_take_2": 9,
        "test_calm_c": 9,
    }
    files = {
        f"test_{label}_{key}": extracted.with_name("tree") / "test" / label / clip
        for label in SAID
        for key, clip in CLIPS.items()
    }
    awtpn("predict", run, *files.values())
    for key, line in zip(files, lines(capsys.readouterr().out), strict=True):
        assert line["probabilities"] == pytest.approx(by_key[key]["probabilities"], abs=1e-5)
        assert list(line["weights"]) == ["audio", "video", "text"]
        for modality, weights in by_key[key]["weights"].items():
            assert line["weights"][modality] == pytest.approx(weights, abs=1e-5)
        assert line["step_seconds"] == {"audio": 0.1, "video": 0.2}


def test_text_is_given_or_in_a_file_beside(
    run: Path, film: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    awtpn("predict", run, film, "--png", film.parent)
    from_file = capsys.readouterr()
    assert "text word " in from_file.err
    assert " of 3\n" in from_file.err
    # Nobody typed the words of a file: only the picture shows them.
    for word in ("zebra", "Marmalade"):
        assert word not in from_file.out + from_file.err + caplog.text
    awtpn("predict", run, film, "--text", "a zebra, Marmalade!")
    typed = capsys.readouterr()
    [one], [two] = lines(from_file.out), lines(typed.out)
    assert two.pop("words") == ["a", "zebra,", "Marmalade!"]
    assert one == two
    heaviest = int(np.argmax(one["weights"]["text"]))
    assert f"text word {heaviest + 1} of 3 ({['a', 'zebra,', 'Marmalade!'][heaviest]})\n" in typed.err
    awtpn("predict", run, "--text", "something else", film)
    [other] = lines(capsys.readouterr().out)
    assert other["probabilities"] != one["probabilities"], "what is given rules over the file"
    assert "predicted without" not in caplog.text


def test_a_recording_is_answered_without_what_it_lacks(
    run: Path, film: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    bare = put("both.mp4", film.with_name("bare.mp4"))
    sound = write_sound(film.with_name("sound.wav"), 1.0)
    sound.with_suffix(".txt").write_bytes("caf\xe9".encode("latin-1"))
    empty = put("both.mp4", film.with_name("empty.mp4"))
    empty.with_suffix(".txt").write_text(" \n")
    awtpn("predict", run, bare, sound, empty)
    for line in lines(capsys.readouterr().out):
        assert line["weights"]["text"] == []
        assert len(line["weights"]["audio"]) == 10
    told = [record.getMessage() for record in caplog.records]
    assert f"{bare}: predicted without its text: there is no bare.txt beside it" in told
    assert f"{empty}: predicted without its text: {empty.with_suffix('.txt')}: it has no words" in told
    [of_sound] = [line for line in told if f"{sound}: predicted without its text: " in line]
    assert "sound.txt: not in UTF-8 (byte 3)" in of_sound
    assert "caf" not in of_sound
    assert f"{sound}: predicted without its video: no features can be made of it" in told


def test_values_of_a_recording(
    extracted: Path, film: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """By a model that knows how its features were made: lines for people and for programs, and a picture."""
    _, manifest, _ = open_dataset(str(extracted))
    task = Task("regression", ["valence", "activation"], [[-3, 3], [1, 5]], levels=5)
    dims = {name: of.dim for name, of in manifest.modalities.items()}
    model = small_model(dtype=torch.float32, dims=dims, task=task)
    model.provenance = manifest.provenance
    truth = np.stack([np.arange(10) / 5, np.full(10, np.nan)], 1)  # too few values of the second
    model.record = {"results": {"val": summarize_values(truth, truth + 0.5, task.names, task.ranges)}}
    folder = film.with_name("model")
    model.save_pretrained(folder)
    awtpn("predict", folder, film, "--png", film.parent)
    captured = capsys.readouterr()
    [line] = lines(captured.out)
    value = line["values"]["valence"]
    assert line["intervals"]["valence"] == pytest.approx(
        [max(value - 0.5, -3), min(value + 0.5, 3)], abs=2e-6
    )
    assert line["intervals"]["activation"] is None
    assert f"film.mp4: valence {value:.4g} (90 % interval " in captured.err
    assert f"), activation {line['values']['activation']:.4g}; heaviest: " in captured.err
    assert "no intervals of activation" in caplog.text
    assert matplotlib.image.imread(film.with_name("film.mp4.png")).shape[1] == 1820


# --- Text alone ----------------------------------------------------------------------------------


def test_text_alone_needs_no_recording(
    of_text: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = tmp_path / "note.txt"
    note.write_text("I am so happy")
    awtpn("predict", of_text, "--text", "I am so happy", "--png", tmp_path)
    awtpn("predict", of_text, note, "--png", tmp_path / "more", "--text_encoder", "chargrams")
    one, two = lines(capsys.readouterr().out)
    assert (one["key"], two["key"]) == ("text", str(note))
    assert one["words"] == ["I", "am", "so", "happy"]
    assert "words" not in two
    assert one["probabilities"] == two["probabilities"]
    assert one["weights"]["text"] == two["weights"]["text"]
    drawn = matplotlib.image.imread(tmp_path / "text.png")[..., :3]
    assert (tmp_path / "more" / "note.txt.png").is_file()
    green = np.array([int(modality_colors(["text"])["text"][i : i + 2], 16) for i in (1, 3, 5)]) / 255
    assert (np.abs(drawn - green).max(-1) < 0.02).any()
    # Nor does a model of three modalities, nor is a broken recording read that the model does not need.
    awtpn("predict", run, "--text", "I am so happy")
    [line] = lines(capsys.readouterr().out)
    assert {modality: len(weights) for modality, weights in line["weights"].items()} == {
        "audio": 0,
        "video": 0,
        "text": 4,
    }
    broken = put_bytes(tmp_path / "broken.mkv", GARBAGE)
    awtpn("predict", of_text, broken, "--text", "I am so happy", "--png", tmp_path)
    [line] = lines(capsys.readouterr().out)
    assert line["probabilities"] == one["probabilities"]
    assert (tmp_path / "broken.mkv.png").is_file()


def test_a_dataset_of_text_alone(of_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        for label, said in SAID.items():
            put_bytes(tmp_path / "notes" / split / label / "x.txt", f"{split} {said}".encode())
    none = ("--audio", "none", "--video", "none")
    awtpn("extract", tmp_path / "notes", tmp_path / "d", *none, "--text", "chargrams", "--text_width", 32)
    capsys.readouterr()
    awtpn("predict", of_text, tmp_path / "d")
    assert [len(line["weights"]["text"]) for line in lines(capsys.readouterr().out)] == [8, 6]
    _, manifest, _ = open_dataset(str(tmp_path / "d"))
    assert list(manifest.modalities) == ["text"]


# --- Refused -------------------------------------------------------------------------------------


def test_what_cannot_be_answered_with_text(
    run: Path, of_text: Path, of_sound: Path, extracted: Path, film: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal("predict", run) == (
        "error: there is nothing to predict: give INPUT, or what is said with --text"
    )
    other = put("both.mp4", film.with_name("other.mp4"))
    assert "one recording, and here are 2: write the text" in refusal(
        "predict", run, film, other, "--text", "x"
    )
    assert "--text is for recordings, and " in refusal("predict", run, extracted, "--text", "secret")
    assert refusal("predict", of_sound, film, "--text", "secret") == (
        "error: the model takes audio, and no text: leave it out"
    )
    assert "the text that is given has no words" in refusal("predict", run, film, "--text", " ")
    told = refusal("predict", run, film, "--text", "secret " * 100_000)
    assert "film.mp4: its text has 700000 characters; at most 200000 are read" in told
    assert "secret" not in told
    note = film.with_suffix(".txt")
    assert "film.txt is what is said, and another text is given" in refusal(
        "predict", run, note, "--text", "x"
    )
    capsys.readouterr()
    assert refusal("predict", of_text, other, note.with_name("gone.txt"), note.with_name("gone.mp4")) == "1"
    captured = capsys.readouterr()
    assert not captured.out
    assert f"{other}: not predicted: there is no other.txt beside it\n" in captured.err
    assert f"{note.with_name('gone.txt')}: not predicted: {note.with_name('gone.txt')}: no such file\n" in (
        captured.err
    )
    assert "gone.mp4: no such file\n" in captured.err
    assert refusal("predict", of_sound, note) == "1"
    assert "film.txt: not predicted: no audio to make features of" in capsys.readouterr().err


# --- From Python ---------------------------------------------------------------------------------


def test_texts_from_python(run: Path, of_text: Path, of_sound: Path, film: Path) -> None:
    predictor = Predictor.from_pretrained(run)
    timed = Transcript(("a", "zebra,", "Marmalade!"), ((0.0, 0.1), (0.2, 0.3), (0.5, 0.9)))
    read, given, with_times = (
        predictor.predict_recordings([film], texts=texts)[0]
        for texts in (None, ["a zebra, Marmalade!"], [timed])
    )
    assert read.probabilities == given.probabilities == with_times.probabilities
    one, two = predictor.predict_texts(["I am so happy", timed])
    assert [len(one.weights[name]) for name in ("audio", "video", "text")] == [0, 0, 4]
    assert len(two.weights["text"]) == 3
    [alone] = Predictor.from_pretrained(of_text).predict_texts(["我不想嫁 مرحبا 👍"])
    assert len(alone.weights["text"]) == 6
    with pytest.raises(ValueError, match=r"text 1: the text that is given has no words"):
        predictor.predict_texts(["one", ""])
    with pytest.raises(ValueError, match=r"for a single one write predict_texts\(\[text\]\)"):
        predictor.predict_texts("one")
    with pytest.raises(ValueError, match=r"texts must be a list with an entry for each of the 1 recordings"):
        predictor.predict_recordings([film], texts=["one", "two"])
    with pytest.raises(ValueError, match="the model takes audio, and no text"):
        Predictor.from_pretrained(of_sound).predict_texts(["one"])


def test_features_of_three_modalities_from_python(run: Path) -> None:
    predictor = Predictor.from_pretrained(run)
    dims = predictor.model.feature_dims
    arrays = {name: np.ones((2, dim)) for name, dim in dims.items()}
    whole, partial = predictor.predict([arrays, {"audio": None, "video": None, "text": arrays["text"]}])
    assert {name: len(weights) for name, weights in whole.weights.items()} == dict.fromkeys(dims, 2)
    assert {name: len(weights) for name, weights in partial.weights.items()} == {
        "audio": 0,
        "video": 0,
        "text": 2,
    }
    told = (
        "utterance 0 has texts and pose, but the model takes audio, video and text; it has no video and text$"
    )
    with pytest.raises(ValueError, match=told):
        predictor.predict([{"audio": arrays["audio"], "texts": arrays["text"], "pose": [[0.0]]}])
    with pytest.raises(ValueError, match=r"utterance 0 has no steps in any of audio, video and text$"):
        predictor.predict([{"audio": None}])
