"""Runs that train encoders: a small corpus of recordings, small encoders, and models and runs with them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import shards
from awtpn.model.base import EmotionModel
from awtpn.model.encoders.opening import open_encoder
from awtpn.model.encoders.settings import EncoderSettings
from awtpn.model.models import build_model
from awtpn.model.settings import ModelConfig
from shards import FeatureBatch, FeatureStream, Ragged, Sample
from shards.format.recording import FRAMES, WAVEFORM, Recording, in_steps

CLASSES = ["calm", "loud"]
# A time step of sound has as many bytes as a picture: the order of utterances depends on their bytes.
RATE, FPS, SIDE = 3840, 5.0, 16
RECORDINGS = {
    "audio": Recording(WAVEFORM, float(RATE), [RATE // 10]),
    "video": Recording(FRAMES, FPS, [SIDE, SIDE, 3]),
}
BATCH = 16
TRAIN = 36  # two whole batches, and one of 4 utterances, all of which the first of two ranks has
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def pack_recordings(out: Path, features_of: Collection[str] = (), shard_bytes: int = 1 << 28) -> str:
    """Pack recordings of sound and pictures of 0.2 to 3 s; some utterances lack one.

    In the second batch of the first epoch (`data.streams` 1, `run.seed` 0), the first half has no pictures
    and the second half no sound: each of two ranks lacks one of them.

    Args:
        out: the folder.
        features_of: modalities that are stored as features in place of recordings.
        shard_bytes: of each shard. With several shards, the order is another one.
    """
    recordings = {name: found for name, found in RECORDINGS.items() if name not in features_of}

    def pack(folder: Path, without: dict[str, str]) -> FeatureStream:
        options: dict[str, Any] = {"recordings": recordings, "shard_bytes": shard_bytes, "progress": False}
        shards.pack(_samples(without, features_of), str(folder), classes=CLASSES, **options)
        return FeatureStream(str(folder), global_batch_size=BATCH, streams=1)

    # Utterances have the same sizes in both, so that their order is the same.
    second = list(pack(out.with_name(out.name + "-draft"), {}).epoch(0))[1].key
    half = BATCH // 2
    without = dict.fromkeys(second[:half], "video") | dict.fromkeys(second[half:], "audio")
    pack(out, without)
    return str(out)


def _samples(without: dict[str, str], features_of: Collection[str]) -> Iterator[Sample]:
    for split, size in {"train": TRAIN, "val": 6, "test": 4}.items():
        for i in range(size):
            draws = np.random.default_rng([size, i])
            label, key = i % 2, f"{split}-{i:02d}"
            seconds = draws.uniform(1.5, 3) if i % 6 == 0 else draws.uniform(0.2, 1.2)
            steps = {"audio": -(-int(seconds * RATE) // (RATE // 10)), "video": 1 + int(seconds * FPS)}
            missing = without.get(key, {3: "video", 5: "audio"}.get(i % 8))
            if missing is not None:  # the other one has its size, too
                steps = {name: 0 if name == missing else sum(steps.values()) for name in steps}
            made: dict[str, Any] = {
                "audio": sound(draws, steps["audio"] * RATE // 10 - int(draws.integers(RATE // 10)), label),
                "video": clip(draws, steps["video"], label),
            }
            for name in features_of:
                made[name] = (draws.normal(0, 1, (steps[name], 5)) + label).astype(np.float32)
            yield Sample(
                key, split, CLASSES[label], {n: x if steps[n] else None for n, x in made.items()}, {}
            )


def sound(draws: np.random.Generator, samples: int, label: int) -> np.ndarray:
    """int16 [samples]: a tone in noise, its pitch by the label."""
    time = np.arange(samples) / RATE
    wave = 0.3 * np.sin(2 * np.pi * (300, 600)[label] * time) + 0.1 * draws.normal(size=len(time))
    return np.clip(wave * 32768, -32768, 32767).astype(np.int16)


def clip(draws: np.random.Generator, pictures: int, label: int) -> np.ndarray:
    """uint8 [pictures, side, side, 3]: noise, redder with label 1."""
    made = draws.integers(0, 256, (pictures, SIDE, SIDE, 3), np.uint8)
    made[..., 0] = made[..., 0] // 2 + 100 * label
    return made


def small_encoders(folder: Path, **audio: Any) -> dict[str, str]:
    """Folders of a wav2vec 2.0 and a ViT with random weights, for these recordings.

    Args:
        folder: gets one for each.
        audio: changes of wav2vec 2.0's configuration.
    """
    from transformers import (
        ViTConfig,
        ViTImageProcessor,
        ViTModel,
        Wav2Vec2Config,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2Model,
    )

    torch.manual_seed(0)
    convolutions = {
        "conv_dim": (16, 16, 16),
        "conv_stride": (5, 4, 4),
        "conv_kernel": (10, 8, 4),
        "num_feat_extract_layers": 3,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
    }
    Wav2Vec2Model(Wav2Vec2Config(**SMALL | convolutions | audio)).save_pretrained(folder / "audio")
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True, return_attention_mask=False)
    extractor.save_pretrained(folder / "audio")
    pictures = ViTConfig(**SMALL, image_size=SIDE, patch_size=8)
    ViTModel(pictures, add_pooling_layer=False).save_pretrained(folder / "video")
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder / "video")
    return {name: str(folder / name) for name in ("audio", "video")}


def encoder_words(folders: dict[str, str], **settings: Any) -> dict[str, Any]:
    """Settings of a run with these encoders.

    Args:
        folders: of the encoders, by modality.
        settings: such as `audio_tune="full"`, of one of them, or `dropout=0.0`, of all.
    """
    found: dict[str, Any] = {f"encoder.{name}.model": folder for name, folder in folders.items()}
    for key, value in settings.items():
        name, _, setting = key.partition("_")
        if name in RECORDINGS:
            if name in folders:
                found[f"encoder.{name}.{setting}"] = value
        else:
            found |= {f"encoder.{name}.{key}": value for name in folders}
    return found


# --- In one process ------------------------------------------------------------------------------


def model_of_recordings(
    folders: dict[str, str], settings: dict[str, Any], dtype: torch.dtype = torch.float64, **model: Any
) -> EmotionModel:
    """A model with encoders, of random weights that are the same for the same settings.

    Args:
        folders: of the encoders, by modality.
        settings: of all encoders.
        dtype: of the weights.
        model: settings of the section `model`.
    """
    torch.manual_seed(1)  # of LoRA
    encoders = {
        name: open_encoder(name, EncoderSettings(folder, **settings), RECORDINGS[name])
        for name, folder in folders.items()
    }
    torch.manual_seed(1)
    config = ModelConfig(**{"shared_dim": 8, "dropout": 0.0, "modalities": list(folders)} | model)
    dims = {name: encoder.dim for name, encoder in encoders.items()}
    made = build_model(config, dims, CLASSES, True, None, encoders)
    for name, weight in made.named_parameters():
        if "lora_B" in name:  # zeros, by which the gradients of lora_A are zero
            torch.nn.init.normal_(weight, std=0.1)
    return made.to(dtype)


def batch_of_recordings(seconds: Sequence[tuple[float, float]], num_places: int = 0) -> FeatureBatch:
    """A whole global batch of utterances with so many seconds of (sound, pictures); 0 is missing.

    It has `num_places`, if these are more.
    """
    draws = np.random.default_rng(0)
    labels = torch.arange(len(seconds)) % 2
    waves = [sound(draws, int(of * RATE), int(label)) for (of, _), label in zip(seconds, labels, strict=True)]
    clips = [clip(draws, int(of * FPS), int(label)) for (_, of), label in zip(seconds, labels, strict=True)]
    steps = [in_steps(wave, RATE // 10) for wave in waves]
    audio = replace(_ragged(steps), samples=torch.tensor([len(wave) for wave in waves]))
    return FeatureBatch(
        features={"audio": audio, "video": _ragged(clips)},
        label=labels,
        host_label=labels,
        target=torch.zeros(len(seconds), 0, dtype=torch.float64),
        host_target=torch.zeros(len(seconds), 0, dtype=torch.float64),
        key=[f"u{i}" for i in range(len(seconds))],
        place=torch.arange(len(seconds)),
        first_place=0,
        num_places=max(num_places, len(seconds)),
        epoch=0,
        step=0,
    )


def _ragged(parts: Sequence[np.ndarray]) -> Ragged:
    offsets = torch.tensor([0, *np.cumsum([len(part) for part in parts])], dtype=torch.int32)
    return Ragged(torch.from_numpy(np.concatenate(parts)), offsets, offsets)
