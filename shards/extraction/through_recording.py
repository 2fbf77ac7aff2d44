"""An encoder that is given media as if they had been stored in a dataset of recordings before.

A model that was trained on features of stored recordings predicts for media with it: sound is rounded to 16
bits, pictures are cropped, scaled and compressed in the same way, and the encoder gets what a dataset of
recordings would hold.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shards.extraction.media import resample
from shards.extraction.stored_media import as_float, every, thinned
from shards.format.feature_space import RECORDED
from shards.format.jpeg import decode_jpeg_into, encode_jpeg
from shards.format.recording import WAVEFORM, as_int16


class SoundThroughRecording:
    """Audio encoder, see the module; attributes as `shards.extraction.encoders` says.

    Args:
        encoder: that makes the features.
        rate: of the stored sound.
    """

    def __init__(self, encoder: Any, rate: int) -> None:
        self._encoder = encoder
        self.rate = rate
        self.name, self.dim, self.step_seconds = encoder.name, encoder.dim, encoder.step_seconds
        self.settings: dict[str, Any] = {
            **encoder.settings,
            RECORDED: {"id": WAVEFORM, "version": 1, "rate": rate},
        }

    def encode(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        """[T, dim] for each wave float32 [samples] at `rate`."""
        to = self._encoder.rate
        stored = [resample(as_float(as_int16(wave)), self.rate, to) for wave in waves]
        encoded: list[np.ndarray] = self._encoder.encode(stored)
        return encoded


class PicturesThroughRecording:
    """Video encoder, see the module; attributes as `shards.extraction.encoders` says.

    Args:
        encoder: that makes the features.
        recorder: the encoder `frames` that stores the pictures.

    Raises:
        ValueError: the rates do not fit each other.
    """

    def __init__(self, encoder: Any, recorder: Any) -> None:
        self._encoder, self._recorder = encoder, recorder
        self._every = every(recorder.fps, encoder.fps, "video: the recorded dataset")
        self.fps, self.largest_side = recorder.fps, recorder.largest_side
        self.name, self.dim, self.step_seconds = encoder.name, encoder.dim, encoder.step_seconds
        self.settings: dict[str, Any] = {**encoder.settings, RECORDED: recorder.settings}

    def encode(self, clips: list[np.ndarray]) -> list[np.ndarray]:
        """[T, dim] for each clip uint8 [N, H, W, 3] sampled at `fps`."""
        stored = self._recorder.encode(clips)
        quality = self._recorder.recording.jpeg_quality
        if quality is not None:
            stored = [as_stored_jpeg(clip, quality) for clip in stored]
        encoded: list[np.ndarray] = self._encoder.encode([thinned(clip, self._every) for clip in stored])
        return encoded


def as_stored_jpeg(pictures: np.ndarray, quality: int) -> np.ndarray:
    """Pictures uint8 [N, H, W, 3] as they are after they were stored as JPEG."""
    stored = np.empty(pictures.shape, np.uint8)
    for before, after in zip(pictures, stored, strict=True):
        decode_jpeg_into(encode_jpeg(before, quality), after)
    return stored
