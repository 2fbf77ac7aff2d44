"""Recordings for encoders within models, and the features that `awtpn extract` makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoders_support import AUDIO, VIDEO

from awtpn.model.encoders.base import Encoder
from awtpn.model.encoders.opening import open_encoder
from awtpn.model.encoders.settings import EncoderSettings
from shards import Ragged
from shards.extraction.encoders import open_audio_encoder, open_video_encoder
from shards.format.recording import FRAMES, FULL_SCALE, WAVEFORM, Recording, in_steps

RATE = 16000
SOUND = Recording(WAVEFORM, float(RATE), [1600])
PICTURES = Recording(FRAMES, 10.0, [32, 32, 3])
MODELS = [("audio", name) for name in AUDIO] + [("video", name) for name in VIDEO]
# Samples or pictures of some short utterances; one is missing.
SHORT = {"audio": (4800, 0, 3360), "video": (3, 0, 2)}


def sounds(*samples: int, seed: int = 0) -> list[np.ndarray]:
    """int16 [samples] each."""
    draws = np.random.default_rng(seed)
    return [(draws.normal(0, 3000, n) + 500).clip(-32768, 32767).astype(np.int16) for n in samples]


def clips(*pictures: int, seed: int = 0, side: int = 32) -> list[np.ndarray]:
    """uint8 [pictures, side, side, 3] each."""
    draws = np.random.default_rng(seed)
    return [draws.integers(0, 256, (n, side, side, 3), np.uint8) for n in pictures]


def recordings_of(modality: str, *lengths: int) -> list[np.ndarray]:
    """Recordings of so many samples or pictures."""
    return (sounds if modality == "audio" else clips)(*lengths)


def ragged(recordings: Sequence[np.ndarray], per_step: int = 1600) -> Ragged:
    """Recordings as a dataset holds them."""
    sound = recordings[0].dtype == np.int16
    steps = [in_steps(x, per_step) if sound else x for x in recordings]
    host_offsets = torch.tensor([0, *np.cumsum([len(x) for x in steps])], dtype=torch.int32)
    samples = torch.tensor([len(x) for x in recordings]) if sound else None
    return Ragged(torch.from_numpy(np.concatenate(steps)), host_offsets, host_offsets, samples)


def opened(modality: str, folder: Path, tune: str = "frozen", **settings: Any) -> Encoder:
    """An encoder of the model in `folder`."""
    recording = SOUND if modality == "audio" else PICTURES
    return open_encoder(modality, EncoderSettings(str(folder), tune=tune, **settings), recording, "cpu")


def features(encoder: Encoder, recordings: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What the encoder makes of recordings."""
    with torch.no_grad():
        out = encoder(ragged(recordings))
    assert out.offsets.tolist() == out.host_offsets.tolist()
    return [x.numpy() for x in out.values.split(out.host_lengths)]


def extracted(
    modality: str, folder: Path, recordings: Sequence[np.ndarray], **options: Any
) -> list[np.ndarray]:
    """What `awtpn extract` makes of recordings."""
    if modality == "audio":
        sound = open_audio_encoder(str(folder), **options)
        assert sound is not None
        return sound.encode([x.astype(np.float32) / FULL_SCALE for x in recordings])
    pictures = open_video_encoder(str(folder), **options)
    assert pictures is not None
    return pictures.encode(list(recordings))
