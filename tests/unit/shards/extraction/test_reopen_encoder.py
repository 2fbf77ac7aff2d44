"""The encoder of recorded features is opened again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from encoders_support import TEXTS
from extraction_support import (
    extracted,
)
from support import same_bits_or_close

from shards.extraction.encoders import open_audio_encoder, open_text_encoder, open_video_encoder
from shards.extraction.reopen_encoder import reopen_encoder
from shards.format.feature_space import describe
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
