"""The encoder of recorded features is opened again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders_support import TEXTS
from extraction_support import (
    extracted,
)
from recordings_support import recorded
from support import same_bits_or_close

from shards.extraction.encoders import open_audio_encoder, open_text_encoder, open_video_encoder
from shards.extraction.reopen_encoder import reopen_encoder
from shards.format.feature_space import describe, space_of
from shards.sources.base import ClipSource
from shards.tools.info import format_info, info


def wav2vec2(folder: Path, seed: int) -> Path:
    """A small wav2vec 2.0 of random weights."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    torch.manual_seed(seed)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    Wav2Vec2Model(Wav2Vec2Config(**size, conv_dim=[16] * 7)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def test_an_encoder_is_opened_again_as_it_was_recorded(tmp_path: Path, tones: ClipSource) -> None:
    """A Hugging Face model that was moved: its files' digest identifies it; another model is refused."""
    encoder = open_audio_encoder(str(wav2vec2(tmp_path / "a", 0)), layer=1, step_seconds=0.2)
    manifest = extracted(tones, tmp_path / "d", audio=encoder)
    settings = manifest.provenance["features"]["audio"]["settings"]
    assert (settings["layer"], settings["step_seconds"]) == (1, 0.2)
    computed = f"computed in float32, transformers {settings['versions']['transformers']}, torch "
    assert computed in format_info(info(str(tmp_path / "d")))
    (tmp_path / "a").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"which is not there: .*predict --audio FOLDER"):
        reopen_encoder("audio", settings)
    again = reopen_encoder("audio", settings, spec=str(tmp_path / "moved"))
    wave = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    assert encoder is not None
    assert same_bits_or_close(again.encode([wave])[0], encoder.encode([wave])[0])
    with pytest.raises(
        ValueError, match=r"is not the one that was recorded: .*sha256.* then, .*sha256.* now"
    ):
        reopen_encoder("audio", settings, spec=str(wav2vec2(tmp_path / "b", 1)))

    for faces in ("none", "opencv"):
        video = open_video_encoder("descriptor", fps=4, step_seconds=0.5, faces=faces)
        settings = video.settings
        assert reopen_encoder("video", settings).settings == settings
        assert "step_seconds 0.5" in describe(settings)


def test_an_encoder_of_text_is_opened_again(tmp_path: Path) -> None:
    words = [("I", "am", "happy")]
    built_in = open_text_encoder("chargrams", width=64)
    assert built_in is not None
    again = reopen_encoder("text", built_in.settings)
    assert (again.encode(words)[0] == built_in.encode(words)[0]).all()
    bert = open_text_encoder(str(TEXTS["bert"](tmp_path / "bert")), layer=1)
    assert bert is not None
    (tmp_path / "bert").rename(tmp_path / "moved")
    moved = reopen_encoder("text", bert.settings, spec=str(tmp_path / "moved"))
    assert same_bits_or_close(moved.encode(words)[0], bert.encode(words)[0])
    exported = {name: value for name, value in bert.settings.items() if name != "path"}
    with pytest.raises(ValueError, match=r"name their folder \(awtpn predict --text_encoder FOLDER\)"):
        reopen_encoder("text", exported)


def test_an_encoder_of_recordings_is_opened_again() -> None:
    sound = open_audio_encoder("waveform", rate=8000, step_seconds=0.05)
    assert sound is not None
    again = reopen_encoder("audio", sound.settings)
    assert again.settings == sound.settings
    assert str(again.recording) == "sound at 8000 Hz in steps of 0.05 s"
    for options in ({}, {"faces": "opencv"}, {"jpeg": 80, "side": 48}, {"faces": "opencv", "jpeg": 95}):
        pictures = recorded(**options)["video"]
        again = reopen_encoder("video", pictures.settings)
        assert (again.settings, again.recording) == (pictures.settings, pictures.recording)


def test_recordings_made_otherwise_are_of_another_space() -> None:
    sound = [
        open_audio_encoder("waveform", **options)
        for options in ({}, {"rate": 8000}, {"step_seconds": 0.2}, {"rate": 8000, "step_seconds": 0.2})
    ]
    video = [{}, {"side": 33}, {"fps": 5.0}, {"jpeg": 90}, {"jpeg": 91}, {"faces": "opencv"}]
    pictures = [recorded(**options)["video"] for options in video]
    for encoders in (sound, pictures):
        assert len({space_of(encoder.settings) for encoder in encoders}) == len(encoders)
    assert describe(pictures[3].settings) == "frames (fps 10, side 32, largest_side 64, faces none, jpeg 90)"
    assert describe(pictures[0].settings, beside=pictures[1].settings) == "frames (side 32, largest_side 64)"
    assert describe(sound[0].settings, beside=sound[1].settings) == "waveform (rate 16000)"


@pytest.mark.parametrize("value", [0, -1, 5000, 10**12, True, 3.5, "64", None, [64]])
@pytest.mark.parametrize("name", ["side", "jpeg"])
def test_forged_settings_of_pictures_are_refused(name: str, value: Any) -> None:
    settings = recorded(jpeg=90)["video"].settings | {name: value}
    with pytest.raises(
        ValueError, match=rf"^video: {name} cannot be .*: it must be a whole number from 1 to"
    ):
        reopen_encoder("video", settings)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"rate": 10**9}, "audio: rate cannot be 1000000000"),
        ({"rate": "16000"}, "audio: rate cannot be '16000'"),
        ({"step_seconds": 0.0001}, "step_seconds=0.0001 at rate=16000 is 1.6 samples"),
        ({"step_seconds": 10**6}, r"shape is \[16000000000\]; of waveform it is \[samples\]"),
        ({"step_seconds": None}, "is not the one that was recorded: .*step_seconds None.* then"),
        ({"version": 2}, "is not the one that was recorded"),
    ],
)
def test_forged_settings_of_sound_are_refused(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        reopen_encoder("audio", recorded()["audio"].settings | changed)
