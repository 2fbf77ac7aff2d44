"""Predictions of models with encoders: of arrays and media, in passes of bounded work, with their times."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import awtpn, lines, refusal
from encoders_in_models_support import PICTURES, SOUND
from finetuned_support import base_models, finetuned, saved, utterances
from media_support import chirp, numbered, record

import shards
from awtpn.inference.page.answers import answer_clip, facts_of, timeline
from awtpn.inference.predictor import Predictor
from awtpn.inference.recording import clip_of
from awtpn.model.base import EmotionModel
from shards.extraction.encoders import open_video_encoder
from shards.extraction.media import read_frames
from shards.extraction.through_recording import as_stored_jpeg
from shards.format.feature_space import extraction_provenance


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return base_models(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def model(bases: dict[str, Path]) -> EmotionModel:
    return finetuned(bases)


@pytest.fixture(scope="module")
def coarse(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of sound alone with time steps of 0.25 s; its recordings have steps of 0.1 s."""
    run = tmp_path_factory.mktemp("coarse") / "run"
    saved(finetuned({"audio": bases["audio"]}, step_seconds=0.25), run)
    return run


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.3 s of sound and pictures."""
    path = tmp_path_factory.mktemp("clips") / "clip.mkv"
    return record(path, [numbered(i) for i in range(13)], sound=chirp(1.3))


def probabilities(found: Any) -> np.ndarray:
    return np.array([list(each.probabilities.values()) for each in found])


def test_arrays_are_predicted_alone_as_together(model: EmotionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, given = Predictor(model), utterances(5)
    together = predictor.predict(given)
    alone = [predictor.predict([each])[0] for each in given]
    np.testing.assert_allclose(probabilities(together), probabilities(alone), atol=1e-5)
    for one, other, each in zip(together, alone, given, strict=True):
        assert one.weights["audio"].shape == other.weights["audio"].shape
        assert len(one.weights["video"]) == (0 if each["video"] is None else len(each["video"]))
    # Passes hold at most 0.6 s of sound.
    sizes: list[int] = []
    encoder: Any = model.encoders["audio"]
    monkeypatch.setattr(encoder, "config", replace(encoder.config, pass_seconds=0.6))
    monkeypatch.setattr(predictor, "_predict_at_once", counted(predictor._predict_at_once, sizes))
    np.testing.assert_allclose(probabilities(predictor.predict(given)), probabilities(together), atol=1e-5)
    assert len(sizes) > 1
    assert sum(sizes) == 5
    assert predictor.predict([]) == []


def counted(function: Any, sizes: list[int]) -> Any:
    def call(features: Any) -> Any:
        sizes.append(len(features["audio"]))
        return function(features)

    return call


SOUNDS = "the model takes int16 [samples] at 16000 Hz, full scale 32768"
CLIPS = "the model takes uint8 [pictures, 32, 32, 3], 10 pictures per second"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"audio": np.zeros(10, np.float32)}, f"utterance 0: audio is float32 [10], but {SOUNDS}"),
        ({"audio": np.zeros((4, 32), np.float32)}, f"audio is float32 [4, 32], but {SOUNDS}"),
        ({"audio": [1, 2, 3]}, f"audio is int64 [3], but {SOUNDS}"),
        ({"audio": "sound"}, f"but {SOUNDS}"),
        ({"audio": [[1], [2, 3]]}, f"audio is not an array of numbers, but {SOUNDS}"),
        ({"audio": np.zeros((2, 5), np.int16)}, f"audio is int16 [2, 5], but {SOUNDS}"),
        ({"video": np.zeros((3, 32, 32, 3), np.int16)}, f"video is int16 [3, 32, 32, 3], but {CLIPS}"),
        ({"video": np.zeros((3, 64, 64, 3), np.uint8)}, f"video is uint8 [3, 64, 64, 3], but {CLIPS}"),
        ({"video": np.zeros((32, 32, 3), np.uint8)}, f"video is uint8 [32, 32, 3], but {CLIPS}"),
        ({"audio": np.zeros(0, np.int16)}, "utterance 0 has no steps in any of audio and video"),
        ({"audio": None, "video": None}, "utterance 0 has no steps in any of audio and video"),
        (3, f"such as {{'audio': {SOUNDS.removeprefix('the model takes ')}"),
    ],
)
def test_other_arrays_are_refused(model: EmotionModel, given: Any, told: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared)
        Predictor(model).predict([given])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_clip_is_recorded_as_the_training_data_was(model: EmotionModel, clip: Path) -> None:
    predictor = Predictor(model)
    [found] = predictor.predict_recordings([clip])
    recorded = predictor.encoders()
    assert {m: encoder.name for m, encoder in recorded.items()} == {"audio": "waveform", "video": "frames"}
    sound = np.rint(chirp(1.3) * 32768).astype(np.int16)
    frames = read_frames(clip, 10.0, None, None, largest_side=64)
    assert frames is not None
    [expected] = predictor.predict([{"audio": sound, "video": recorded["video"].encode([frames[0]])[0]}])
    np.testing.assert_allclose(probabilities([found]), probabilities([expected]), atol=1e-5)
    assert {m: len(weights) for m, weights in found.weights.items()} == {"audio": 13, "video": 13}


def test_pictures_are_compressed_as_the_training_data_was(bases: dict[str, Path], clip: Path) -> None:
    model = finetuned({"video": bases["video"]}, recordings={"video": replace(PICTURES, jpeg_quality=10)})
    model.provenance = extraction_provenance({"video": open_video_encoder("frames", side=32, jpeg=10)})
    predictor = Predictor(model)
    [found] = predictor.predict_recordings([clip])
    frames = read_frames(clip, 10.0, None, None, largest_side=64)
    assert frames is not None
    pictures = predictor.encoders()["video"].encode([frames[0]])[0]
    sharp, compressed = predictor.predict([{"video": pictures}, {"video": as_stored_jpeg(pictures, 10)}])
    np.testing.assert_allclose(probabilities([found]), probabilities([compressed]), atol=1e-6)
    assert np.abs(probabilities([found]) - probabilities([sharp])).max() > 1e-5


def test_weights_have_the_times_of_the_encoders(
    coarse: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    awtpn("predict", coarse, clip, "--png", tmp_path)
    printed = capsys.readouterr()
    [line] = lines(printed.out)
    assert line["step_seconds"] == {"audio": 0.25}
    assert len(line["weights"]["audio"]) == 5
    heaviest = int(np.argmax(line["weights"]["audio"]))
    assert f"heaviest: audio {0.25 * heaviest:.1f}-{0.25 * (heaviest + 1):.1f} s" in printed.err
    assert (tmp_path / "clip.mkv.png").stat().st_size > 10_000

    predictor = Predictor.from_pretrained(coarse)
    [answer] = predictor.predict_recordings([clip])
    shown = timeline(clip_of(clip), answer, predictor)
    assert shown["step_seconds"] == {"audio": 0.25}
    assert len(shown["weights"]["audio"]) == 5
    stages: list[str] = []
    told = answer_clip(predictor, clip_of(clip), stages.append)
    assert told["weights"] == shown["weights"]
    assert told["missing"] == {}
    assert stages == ["encoding", "predicting", "drawing"]
    facts = facts_of(predictor, str(coarse), 1, 1.0)
    assert facts["encoders"] == {"audio": "base-audio"}


def test_a_dataset_of_recordings_is_predicted(
    model: EmotionModel, bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = utterances(4)
    samples = [shards.Sample(f"u{i}", "test", "calm", each, {}) for i, each in enumerate(given)]
    shards.pack(
        samples,
        str(tmp_path / "data"),
        classes=model.classes,
        recordings={"audio": SOUND, "video": PICTURES},
        progress=False,
    )
    saved(model, tmp_path / "run")
    awtpn("predict", tmp_path / "run", tmp_path / "data")
    printed = capsys.readouterr().out
    found = {line["key"]: list(line["probabilities"].values()) for line in lines(printed)}
    expected = Predictor(model).predict(given)
    np.testing.assert_allclose(
        np.array([found[f"u{i}"] for i in range(4)]), probabilities(expected), atol=1e-5
    )
    awtpn("evaluate", tmp_path / "run", "--data", tmp_path / "data", "--predictions", tmp_path / "p.jsonl")
    evaluated = {line["key"]: line["probabilities"] for line in lines((tmp_path / "p.jsonl").read_text())}
    for key, of_classes in found.items():
        np.testing.assert_allclose(list(evaluated[key].values()), of_classes, atol=1e-5)
    # Where the base models are elsewhere, their folders are named.
    awtpn("export", tmp_path / "run", tmp_path / "parts")
    told = refusal("evaluate", tmp_path / "parts", "--data", tmp_path / "data")
    assert (
        "a folder of another machine: get that model's files, and name their folder (--audio FOLDER)" in told
    )
    words = [word for m, base in bases.items() for word in (f"--{m}", base)]
    capsys.readouterr()
    awtpn("predict", tmp_path / "parts", tmp_path / "data", *words)
    assert capsys.readouterr().out == printed
    awtpn("evaluate", tmp_path / "parts", "--data", tmp_path / "data", *words, "--out", tmp_path / "m.json")
    assert json.loads((tmp_path / "m.json").read_text())["utterances"] == 4


def test_a_card_that_contradicts_itself_is_refused(bases: dict[str, Path]) -> None:
    model = finetuned({"video": bases["video"]})
    model.provenance = extraction_provenance({"video": open_video_encoder("descriptor")})
    with pytest.raises(ValueError, match="takes recordings of video, but by its card its training data had"):
        Predictor(model).predict_recordings(["clip.mp4"])
    model.provenance = extraction_provenance({"video": open_video_encoder("frames", side=64)})
    with pytest.raises(ValueError, match="video: the model takes pictures of 32 x 32 at 10 per second"):
        Predictor(model).predict_recordings(["clip.mp4"])
    model.provenance = {}
    with pytest.raises(ValueError, match="how the model's features of video were made is not recorded"):
        Predictor(model).predict_recordings(["clip.mp4"])
