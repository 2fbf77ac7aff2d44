"""Encoders: the built-in ones on real recordings, and real transformers classes with small random weights."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import tracemalloc
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders_support import AUDIO, VIDEO
from support import REPO, same_bits_or_close

from shards.extraction.encoders import open_audio_encoder, open_video_encoder
from shards.extraction.encoders.descriptor import _downscale, describe
from shards.extraction.encoders.logmel import LogMel
from shards.extraction.encoders.pooling import pool, steps_in
from shards.extraction.reopen_encoder import reopen_encoder
from shards.format.feature_space import space_of

RAVDESS = REPO.parent / "shared" / "data" / "ravdess"
RATE = 16000


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


def pictures(count: int, seed: int = 0, height: int = 40, width: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


# --- Steps ---------------------------------------------------------------------------------------


def test_steps_are_the_whole_ones_in_a_duration() -> None:
    assert [steps_in(seconds, 0.1) for seconds in (0.0, 0.01, 0.1, 0.19, 2.3, 69 / 30)] == [
        0,
        1,
        1,
        1,
        23,
        23,
    ]


def test_pooling_averages_the_hidden_steps_centered_in_each_step() -> None:
    hidden = np.arange(10, dtype=np.float32)[:, None]
    centers = 0.0125 + 0.02 * np.arange(10)  # 5 in each 100 ms; the model stops at 0.2 s
    pooled = pool(hidden, centers, 0.35, 0.1)
    assert pooled[:, 0].tolist() == [2.0, 7.0, 9.0]  # the third step has none: the nearest
    assert pool(hidden, centers, 0.05, 0.1)[:, 0].tolist() == [4.5]  # shorter than a step: all there is


# --- logmel --------------------------------------------------------------------------------------


@pytest.mark.skipif(not RAVDESS.is_dir(), reason=f"{RAVDESS} is not there")
def test_logmel_gives_the_published_features_of_ravdess() -> None:
    from shards.extraction.media import read_audio

    with np.load(RAVDESS / "ravdess_features.npz", allow_pickle=False) as file:
        ids, offsets, published = [str(key) for key in file["ids"]], file["audio_offsets"], file["audio"]
    encoder = open_audio_encoder("logmel")
    assert encoder is not None
    ours, theirs = [], []
    flacs = sorted((RAVDESS / "flac").glob("*.flac"))[::6]
    for path in flacs:
        place = ids.index(path.stem[3:])
        theirs.append(published[offsets[place] : offsets[place + 1]])
        ours += encoder.encode([read_audio(path, encoder.rate)])
    assert len(flacs) == 40
    assert [len(x) for x in ours] == [len(x) for x in theirs]
    x, y = np.concatenate(ours), np.concatenate(theirs)
    assert x.dtype == np.float32
    assert x.shape[1] == encoder.dim == 80
    # Over all 240: 0.99998 in all, and 0.993 in the worst dimension (deviation of the lowest band, which the
    # rounding of FLAC to 16 bits moves in silence).
    assert np.corrcoef(x.ravel(), y.ravel())[0, 1] > 0.9999
    assert min(np.corrcoef(x[:, d], y[:, d])[0, 1] for d in range(80)) > 0.98
    assert np.abs(x - y).mean() < 0.03


def test_logmel_of_silence_of_scraps_and_of_a_tone() -> None:
    encoder = open_audio_encoder("logmel")
    assert encoder is not None
    silence, nothing, scrap = encoder.encode([np.zeros(3200, np.float32), noise(0), noise(0.003)])
    assert silence.shape == (2, 80)
    assert np.allclose(silence[:, :40], np.log(1e-8))
    assert np.allclose(silence[:, 40:], 0)
    assert nothing.shape == (0, 80)
    assert scrap.shape == (1, 80)
    assert np.isfinite(scrap).all()
    tone = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE).astype(np.float32)
    assert (encoder.encode([tone])[0][1:-1, :40].argmax(axis=1) == 12).all()  # of the 13th band


# --- descriptor ----------------------------------------------------------------------------------


def test_descriptor_sees_edges_tones_and_motion() -> None:
    stripes = np.zeros((3, 64, 64, 3), np.uint8)
    stripes[:, :, 8::16] = stripes[:, :, 9::16] = 255
    stripes[2] = np.roll(stripes[2], 4, axis=1)
    features = describe(stripes)
    histogram = features[:, :128].reshape(3, 16, 8)
    assert np.allclose(np.linalg.norm(features[:, :128], axis=1), 1, atol=1e-5)
    assert histogram[0, :, 0].sum() > 0.99 * histogram[0].sum()  # gradients of vertical stripes lie along x
    lying = describe(stripes.transpose(0, 2, 1, 3))[0, :128].reshape(16, 8)
    assert lying[:, 4].sum() > 0.99 * lying.sum()
    assert np.allclose(features[0, 128], 1 / 8 - 1 / 2)
    assert np.allclose(features[:2, 132:], 0)  # nothing moved
    assert (features[2, 132:] > 0.1).all()
    red = np.zeros((1, 10, 20, 3), np.uint8)
    red[..., 0] = 255
    assert np.allclose(describe(red)[0, 128:132], [0.299 - 0.5, 0, 1, 0.5], atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 64), (70, 33)])
def test_descriptor_scales_by_exact_area_means(height: int, width: int) -> None:
    """As a picture 64 times as large both ways, of which each share is a block of whole pixels."""
    one = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    large = one.repeat(64, axis=1).repeat(64, axis=2).reshape(1, 64, height, 64, width, 3) / 255.0
    np.testing.assert_allclose(_downscale(one), large.mean(axis=(2, 4)), atol=1e-9)


@pytest.mark.parametrize("block", [1, 3, 16, 99])
def test_blocks_change_no_bit(block: int) -> None:
    """A long clip is encoded in blocks: motion needs the picture before, windows of sound cross blocks."""
    clip, encoder = pictures(40), LogMel()
    np.testing.assert_array_equal(describe(clip, block), describe(clip, 40))
    for seconds in (0.01, 0.2, 4.01):
        whole = encoder._encode(noise(seconds), 40)
        np.testing.assert_array_equal(encoder._encode(noise(seconds), block), whole)


def test_long_recordings_are_encoded_in_little_memory() -> None:
    """Minutes of spectra, or of pictures in floating point, would take gigabytes."""
    wave, clip = np.zeros(100 * RATE, np.float32), np.zeros((200, 64, 64, 3), np.uint8)
    for call in (lambda: LogMel().encode([wave]), lambda: describe(clip)):
        tracemalloc.start()
        call()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 48 << 20


def test_descriptor_averages_pictures_over_steps() -> None:
    clip = pictures(10)
    each, pairs = open_video_encoder("descriptor"), open_video_encoder("descriptor", step_seconds=0.2)
    assert each is not None
    assert pairs is not None
    one, two = each.encode([clip])[0], pairs.encode([clip])[0]
    assert one.shape == (10, each.dim) == (10, 148)
    assert np.allclose(two, one.reshape(5, 2, -1).mean(axis=1), atol=1e-6)
    assert each.encode([clip[:0]])[0].shape == (0, 148)
    assert each.encode([clip, clip[:3]])[1].tolist() == one[:3].tolist()
    with pytest.raises(ValueError, match="shorter than a picture at fps=10"):
        open_video_encoder("descriptor", step_seconds=0.05)


# --- Hugging Face models -------------------------------------------------------------------------


@pytest.mark.parametrize("name", AUDIO)
def test_audio_models(name: str, tmp_path: Path) -> None:
    folder = AUDIO[name](tmp_path / "model")
    encoder = open_audio_encoder(str(folder))
    assert encoder is not None
    assert (encoder.rate, encoder.dim, encoder.step_seconds) == (RATE, 32, 0.1)
    lengths = [1.3, 0.62, 2.57, 0.004, 0.0, 0.1]
    waves = [noise(length, i) for i, length in enumerate(lengths)]
    batched = encoder.encode(waves)
    assert [x.shape for x in batched] == [(t, 32) for t in (13, 6, 25, 1, 0, 1)]
    assert all(x.dtype == np.float32 and np.isfinite(x).all() for x in batched)
    for wave, together in zip(waves, batched, strict=True):
        assert np.allclose(encoder.encode([wave])[0], together, atol=1e-4), len(wave)
    # Not all the same: that would pass the comparison above, too.
    assert np.abs(batched[2] - batched[2].mean(axis=0)).max() > 1e-2

    finest = open_audio_encoder(str(folder), step_seconds=0.02)
    assert finest is not None
    assert finest.encode(waves[:1])[0].shape == (65, 32)
    with pytest.raises(ValueError, match=r"step_seconds=0.01; the model's own steps are 0.02 s long"):
        open_audio_encoder(str(folder), step_seconds=0.01)

    layers = [open_audio_encoder(str(folder), layer=layer) for layer in (0, 1, -1, 3)]
    outputs = [layer.encode(waves[:1])[0] for layer in layers if layer is not None]
    assert np.allclose(outputs[2], batched[0], atol=1e-4)
    assert same_bits_or_close(outputs[2], outputs[3])
    assert all(np.abs(outputs[i] - outputs[j]).max() > 1e-3 for i, j in ((0, 1), (1, 2), (0, 2)))
    with pytest.raises(ValueError, match=r"layer=4; the model has layers 0 .* to 3"):
        open_audio_encoder(str(folder), layer=4)

    half = open_audio_encoder(str(folder), dtype="bfloat16")
    assert half is not None
    coarse = half.encode(waves[:1])[0]
    assert coarse.dtype == np.float32
    assert 0 < np.abs(coarse - batched[0]).max() < 0.2

    assert json.loads(json.dumps(encoder.settings)) == encoder.settings
    assert encoder.settings["layer"] == 3
    assert encoder.settings["id"] == "model"
    assert len(encoder.settings["sha256"]) == 64


def test_hidden_steps_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import Wav2Vec2Model

    folder = AUDIO["wav2vec2"](tmp_path / "model")
    encoder = open_audio_encoder(str(folder), layer=2)
    assert encoder is not None
    wave = noise(0.5)
    normed = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
    with torch.no_grad():
        model = Wav2Vec2Model.from_pretrained(folder).eval()
        hidden = model(torch.from_numpy(normed)[None], output_hidden_states=True).hidden_states[2][0].numpy()
    # Centers at 12.5 ms + 20 ms j: the first 100 ms hold j = 0 to 4.
    expected = [hidden[5 * t : 5 * t + 5].mean(axis=0) for t in range(5)]
    assert len(hidden) == 24
    assert np.allclose(encoder.encode([wave])[0], expected, atol=1e-5)


def test_long_waves_go_in_windows_of_equal_length(tmp_path: Path) -> None:
    encoder = open_audio_encoder(str(AUDIO["whisper"](tmp_path / "model")))
    assert encoder is not None
    wave = noise(2.0)
    alone = [encoder.encode([half])[0] for half in (wave[:RATE], wave[RATE:])]
    assert np.allclose(encoder.encode([wave])[0], np.concatenate(alone), atol=1e-4)


@pytest.mark.parametrize("name", VIDEO)
def test_vision_models(name: str, tmp_path: Path) -> None:
    folder = VIDEO[name](tmp_path / "model")
    encoder = open_video_encoder(str(folder))
    assert encoder is not None
    tube = 2 if name == "videomae" else 1
    assert (encoder.fps, encoder.dim, encoder.step_seconds) == (10, 32, tube / 10)
    clips = [pictures(9), pictures(0), pictures(1, 1), pictures(4, 2, 30, 36)]
    batched = encoder.encode(clips)
    assert [x.shape for x in batched] == [(t, 32) for t in ((4, 0, 1, 2) if tube == 2 else (9, 0, 1, 4))]
    assert all(x.dtype == np.float32 and np.isfinite(x).all() for x in batched)
    for clip, together in zip(clips, batched, strict=True):
        assert np.allclose(encoder.encode([clip])[0], together, atol=1e-4)
    assert np.abs(batched[0] - batched[0].mean(axis=0)).max() > 1e-3

    coarse = open_video_encoder(str(folder), step_seconds=0.4)
    assert coarse is not None
    pooled = coarse.encode([clips[3]])[0]
    assert np.allclose(pooled, batched[3].mean(axis=0, keepdims=True), atol=1e-5)
    with pytest.raises(ValueError, match=r"step_seconds=0.05; at fps=10 the model's own steps are 0\.[12] s"):
        open_video_encoder(str(folder), step_seconds=0.05)

    first, last = (open_video_encoder(str(folder), layer=layer) for layer in (1, 3))
    assert first is not None
    assert last is not None
    assert np.abs(first.encode(clips[:1])[0] - batched[0]).max() > 1e-3
    assert np.allclose(last.encode(clips[:1])[0], batched[0], atol=1e-4)
    assert json.loads(json.dumps(encoder.settings)) == encoder.settings
    assert encoder.settings["summary"] == {"vit": "class token", "videomae": "patches"}.get(name, "pooled")


def test_clip_gives_what_transformers_gives(tmp_path: Path) -> None:
    from PIL import Image
    from transformers import AutoImageProcessor, CLIPVisionModel

    folder = VIDEO["clip"](tmp_path / "model")
    encoder = open_video_encoder(str(folder))
    assert encoder is not None
    clip = pictures(2)
    values = AutoImageProcessor.from_pretrained(folder)(
        [Image.fromarray(picture) for picture in clip], return_tensors="pt"
    )
    with torch.no_grad():
        expected = CLIPVisionModel.from_pretrained(folder).eval()(**values).pooler_output.numpy()
    assert np.allclose(encoder.encode([clip])[0], expected, atol=1e-5)


# --- Refusals ------------------------------------------------------------------------------------


def test_what_cannot_be_opened_is_refused_by_name(tmp_path: Path) -> None:
    assert open_audio_encoder("none") is None
    assert open_video_encoder("none") is None
    with pytest.raises(ValueError, match=r"layer=3: the encoder 'logmel' has no such option"):
        open_audio_encoder("logmel", layer=3)
    with pytest.raises(ValueError, match=r"faces 'yes' is not known"):
        open_video_encoder("descriptor", faces="yes")
    with pytest.raises(ValueError, match=r"fps is 0; it must be above 0"):
        open_video_encoder("descriptor", fps=0)
    with pytest.raises(ValueError, match=r"\./nowhere: no such folder"):
        open_audio_encoder("./nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"empty/config.json is missing"):
        open_audio_encoder(str(empty))
    with pytest.raises(ValueError, match=r"is a local folder, so revision='main' means nothing"):
        open_audio_encoder(str(empty), revision="main")


def test_unfit_folders_are_refused_by_name(tmp_path: Path) -> None:
    folder = AUDIO["hubert"](tmp_path / "model")
    with pytest.raises(ValueError, match=r"model type 'hubert' is not one .* siglip_vision_model"):
        open_video_encoder(str(folder))
    with pytest.raises(ValueError, match=r"dtype 'int8' is not known; use one of float32, bfloat16"):
        open_audio_encoder(str(folder), dtype="int8")
    (folder / "preprocessor_config.json").rename(folder / "kept")
    with pytest.raises(ValueError, match=r"preprocessor_config.json is missing; .* save_pretrained"):
        open_audio_encoder(str(folder))
    (folder / "kept").rename(folder / "preprocessor_config.json")
    (folder / "model.safetensors").rename(folder / "kept")
    with pytest.raises(ValueError, match=r"model.safetensors is missing, and so is pytorch_model.bin"):
        open_audio_encoder(str(folder))
    from safetensors.torch import load_file, save_file

    weights = {name: w for name, w in load_file(folder / "kept").items() if "layers.1." not in name}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks \d+ weights of HubertModel \(first: encoder.layers.1."):
        open_audio_encoder(str(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(ValueError, match=r"model type 'bert' is not one .* hubert, wav2vec2, wavlm, whisper"):
        open_audio_encoder(str(folder))


def unimportable(name: str) -> Any:
    """A class of transformers, asked for where torchvision does not import."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        raise ModuleNotFoundError(f"Could not import module {name!r}. Are this ... correctly?") from error
    raise ModuleNotFoundError(f"Could not import module {name!r}") from KeyError("flash_attn\nand more")


def test_a_torchvision_that_does_not_fit_torch_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers calls the model missing."""
    models = {
        open_audio_encoder: AUDIO["hubert"](tmp_path / "a"),
        open_video_encoder: VIDEO["clip"](tmp_path / "v"),
    }
    transformers = types.ModuleType("transformers")
    transformers.__getattr__ = unimportable  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "torchvision-0.99.0.dist-info").mkdir()
    (tmp_path / "torchvision-0.99.0.dist-info" / "METADATA").write_text(
        "Name: torchvision\nVersion: 0.99.0\n"
    )
    module = tmp_path / "torchvision.py"
    module.write_text("raise RuntimeError('operator torchvision::nms does not exist\\nmore')")
    for opened, folder in models.items():
        with pytest.raises(ImportError) as told:
            opened(str(folder))
        assert str(told.value) == (
            f"torchvision 0.99.0 does not fit torch {torch.__version__} (RuntimeError: operator "
            "torchvision::nms does not exist); nothing here needs it: pip uninstall torchvision, or install "
            "both together from one index: pip install --force-reinstall torch torchvision"
        )
    # Where that is not the cause, the cause is told.
    module.write_text("")
    importlib.invalidate_caches()
    with pytest.raises(
        ImportError, match=r"AutoFeatureExtractor of transformers does not import \(KeyError: 'f"
    ):
        open_audio_encoder(str(models[open_audio_encoder]))
    sys.modules.pop("torchvision")


def test_pickled_weights_are_read_but_not_run(tmp_path: Path) -> None:
    folder = AUDIO["wav2vec2"](tmp_path / "model")
    whole = open_audio_encoder(str(folder))
    assert whole is not None
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    pickled = open_audio_encoder(str(folder))
    assert pickled is not None
    wave = noise(0.5)
    assert same_bits_or_close(pickled.encode([wave])[0], whole.encode([wave])[0])
    assert pickled.settings["sha256"] != whole.settings["sha256"]

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"weight": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"was not read|cannot be loaded"):
        open_audio_encoder(str(folder))
    assert not (tmp_path / "sprung").exists()


def test_a_hub_model_is_named_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--tiny"
    AUDIO["wav2vec2"](repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    encoder = open_audio_encoder("owner/tiny")
    assert encoder is not None
    assert (encoder.settings["id"], encoder.settings["revision"]) == ("owner/tiny", commit)
    # A copy in a folder, where the hub is out of reach, makes the same features and is known for it.
    shutil.copytree(repository / "snapshots" / commit, tmp_path / "copy")
    assert space_of(
        reopen_encoder("audio", encoder.settings, spec=str(tmp_path / "copy")).settings
    ) == space_of(encoder.settings)
    with pytest.raises(ValueError, match=r"owner/other: neither a folder here nor a built-in encoder"):
        open_audio_encoder("owner/other")
