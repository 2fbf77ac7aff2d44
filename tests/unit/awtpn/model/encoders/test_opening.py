"""Encoders within the model: what they take, and what is refused."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders_in_models_support import (
    MODELS,
    PICTURES,
    SHORT,
    SOUND,
    extracted,
    features,
    opened,
    ragged,
    recordings_of,
)
from encoders_support import VIDEO, vision

from awtpn.model.encoders.opening import open_encoder
from awtpn.model.encoders.settings import EncoderSettings
from shards.extraction.encoders import windows
from shards.format.recording import FRAMES, Recording


def test_recordings_of_another_rate_or_size_are_refused(folder_of: Callable[[str, str], Path]) -> None:
    sound, pictures = (
        EncoderSettings(str(folder_of("audio", "hubert"))),
        EncoderSettings(str(folder_of("video", "clip"))),
    )
    with pytest.raises(ValueError, match=r"takes sound at 16000 Hz, .* has 8000 Hz; .* --audio_rate 16000$"):
        open_encoder("audio", sound, replace(SOUND, rate=8000.0), "cpu")
    with pytest.raises(ValueError, match=r"takes pictures of 32 x 32, .* has 64 x 48; .* --video_side 32$"):
        open_encoder("video", pictures, replace(PICTURES, shape=[48, 64, 3]), "cpu")
    with pytest.raises(ValueError, match=r"encoder.audio takes recordings of waveform, but the dataset has"):
        open_encoder("audio", sound, PICTURES, "cpu")
    with pytest.raises(ValueError, match=r"encoder.text: there are encoders of audio and video only"):
        open_encoder("text", sound, SOUND, "cpu")
    with pytest.raises(ValueError, match=r"encoder.audio.model is .*, of type 'clip', .* hubert, wav2vec2"):
        open_encoder("audio", pictures, SOUND, "cpu")
    with pytest.raises(ValueError, match=r"encoder.audio.tune is 'all'"):
        open_encoder("audio", replace(sound, tune="all"), SOUND, "cpu")
    with pytest.raises(ValueError, match=r"layer=4; the model has layers 0 .* to 3"):
        open_encoder("audio", replace(sound, layer=4), SOUND, "cpu")
    with pytest.raises(ValueError, match=r"step_seconds=0.01; the model's own steps are 0.02 s"):
        open_encoder("audio", replace(sound, step_seconds=0.01), SOUND, "cpu")


def test_lora_without_peft_says_what_to_install(
    folder_of: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"needs the package peft .* install 'awtpn-at-scale\[finetune\]'"):
        opened("audio", folder_of("audio", "hubert"), "lora")
    opened("audio", folder_of("audio", "hubert"), "full")


def test_settings_are_those_of_extraction(folder_of: Callable[[str, str], Path]) -> None:
    from shards.extraction.encoders import open_audio_encoder, open_video_encoder

    for modality, name in MODELS:
        folder = folder_of(modality, name)
        made: Any = (open_audio_encoder if modality == "audio" else open_video_encoder)(str(folder))
        ours = opened(modality, folder).settings
        for key in ours.keys() - {"side"}:
            assert ours[key] == made.settings[key]
        missing = made.settings.keys() - ours.keys()
        assert missing <= {"dtype", "versions", "largest_side", "faces"}


def test_pictures_are_cropped_as_the_processor_does(tmp_path: Path) -> None:
    """Of some models it scales to more pixels than the model takes."""
    make = vision(
        "CLIPVisionModel",
        "CLIPVisionConfig",
        "CLIPImageProcessor",
        **{
            **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
            **{"image_size": 32, "patch_size": 8},
        },
    )
    folder = make(tmp_path / "model")
    path = folder / "preprocessor_config.json"
    text = path.read_text()
    assert '"shortest_edge": 32' in text
    path.write_text(text.replace('"shortest_edge": 32', '"shortest_edge": 40'))
    recording = Recording(FRAMES, 10.0, [40, 40, 3])
    encoder = open_encoder("video", EncoderSettings(str(folder), tune="frozen"), recording, "cpu")
    clips = [np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8)]
    found = features(encoder, clips)
    np.testing.assert_allclose(found[0], extracted("video", folder, clips)[0], atol=1e-5)
    path.write_text(text.replace('"do_normalize": true', '"do_normalize": false'))
    plain = open_encoder("video", EncoderSettings(str(folder), tune="frozen"), PICTURES, "cpu")
    clips = recordings_of("video", 2)
    np.testing.assert_allclose(features(plain, clips)[0], extracted("video", folder, clips)[0], atol=1e-5)


def test_windows_are_what_the_model_is_given(
    folder_of: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "LONGEST_WINDOW_S", 1.0)
    hubert = opened("audio", folder_of("audio", "hubert"), pass_seconds=2.5)
    assert hubert.per_pass == 40000
    assert [hubert.windows(n) for n in (0, 64, 16000, 41120)] == [[], [400], [16000], [13760, 13760, 13600]]
    whisper = opened("audio", folder_of("audio", "whisper"))
    assert [whisper.windows(n) for n in (0, 64, 16001)] == [[], [16000], [16000, 16000]]
    clip = opened("video", folder_of("video", "clip"), pass_pictures=9)
    assert (clip.per_pass, clip.windows(3)) == (9, [1, 1, 1])
    videomae = opened("video", folder_of("video", "videomae"))
    assert [videomae.windows(n) for n in (0, 1, 4, 5)] == [[], [4], [4], [4, 4]]


@pytest.mark.parametrize(("modality", "name"), MODELS)
def test_one_call_of_the_network_whatever_the_recordings(
    modality: str, name: str, folder_of: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under ZeRO-3 ranks with other numbers of calls of a module would wait for each other for ever."""
    monkeypatch.setattr(windows, "LONGEST_WINDOW_S", 0.2)
    encoder = opened(modality, folder_of(modality, name), "lora").train()
    calls: list[str] = []
    for part, module in encoder.network.named_modules():
        module.register_forward_pre_hook(lambda _, given, part=part: calls.append(part))
    found = []
    for lengths in (SHORT[modality], (0,), (9000,) if modality == "audio" else (9,)):
        calls.clear()
        values = encoder(ragged(recordings_of(modality, *lengths))).values
        assert (len(values) == 0) == (lengths == (0,))
        values.sum().backward()
        found.append(list(calls))
    assert found[0] == found[1] == found[2]
    assert "" in found[0]
    assert found[0].count("") == 1


@pytest.mark.parametrize(("modality", "name"), MODELS)
def test_weights_in_bfloat16(modality: str, name: str, folder_of: Callable[[str, str], Path]) -> None:
    """As an engine casts them, with their buffers; or autocast over weights in float32."""
    folder, recordings = folder_of(modality, name), recordings_of(modality, *SHORT[modality])
    encoder = opened(modality, folder, "lora").train()
    exact = np.concatenate(features(encoder.eval(), recordings))
    for cast in (False, True):
        encoder = encoder.bfloat16() if cast else encoder
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=not cast):
            found = encoder(ragged(recordings)).values
        assert found.dtype == torch.float32
        found.sum().backward()
        difference = found.detach().numpy() - exact
        assert 0 < np.abs(difference).mean() < 0.05 * np.abs(exact).mean() + 0.01
        assert all(w.grad is not None for w in encoder.parameters() if w.requires_grad)


def test_weights_load_whole_under_a_configuration_of_zero_3(folder_of: Callable[[str, str], Path]) -> None:
    pytest.importorskip("deepspeed")
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    try:
        assert is_deepspeed_zero3_enabled()
        encoder = opened("audio", folder_of("audio", "wav2vec2"), "lora")
        assert is_deepspeed_zero3_enabled()
    finally:
        del config
        gc.collect()
    assert all(weight.numel() for weight in encoder.parameters())
    assert not any(hasattr(weight, "ds_id") for weight in encoder.parameters())


def test_opening_says_nothing(
    folder_of: Callable[[str, str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folders = [folder_of("video", name) for name in VIDEO]
    capfd.readouterr()
    for folder in folders:
        opened("video", folder, "lora")
    assert capfd.readouterr() == ("", "")
