"""A modality that holds recordings, sound or pictures, in place of features.

    waveform: int16 [steps, samples], sound at `rate` samples per second, cut into steps. An utterance's last
        step is filled up with zeros; its true number of samples is in its metadata and in the index.
    frames: uint8 [steps, height, width, 3], RGB pictures at `rate` per second; a step is one picture.

In a shard they are plain `.npy` members, or one JPEG per picture: `<key>.video.0000.jpg`. (webdataset takes
what is before the first dot as the key.) All numbers of an utterance have the same length, at least 4 digits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

WAVEFORM, FRAMES = "waveform", "frames"
DTYPE_OF = {WAVEFORM: "int16", FRAMES: "uint8"}
# What extraction stores of a modality.
KIND_OF = {"audio": WAVEFORM, "video": FRAMES}
# In an utterance's JSON member: the true number of samples, by modality.
NUM_SAMPLES = "num_samples"
# Full scale of int16. FFmpeg divides by it, so 16-bit sound that is neither mixed nor resampled is kept
# exactly.
FULL_SCALE = 32768
LARGEST_STEP = 1 << 28  # numbers of a step
LARGEST_RATE = 1_000_000.0  # of samples or pictures per second


@dataclass(frozen=True)
class Recording:
    """What the steps of a recording are.

    Attributes:
        kind: "waveform" or "frames".
        rate: samples or pictures per second.
        shape: of one step: [samples], or [height, width, 3].
        jpeg_quality: of pictures that are stored as JPEG, 1 to 95; None of arrays.
    """

    kind: str
    rate: float
    shape: list[int]
    jpeg_quality: int | None = None

    @property
    def dim(self) -> int:
        """Numbers of a step."""
        return math.prod(self.shape)

    @property
    def is_sound(self) -> bool:
        """Whether it is sound, not pictures."""
        return self.kind == WAVEFORM

    @property
    def step_seconds(self) -> float:
        """Length of a step in seconds."""
        return self.shape[0] / self.rate if self.is_sound else 1 / self.rate

    def __str__(self) -> str:
        if self.is_sound:
            return f"sound at {self.rate:g} Hz in steps of {self.step_seconds:g} s"
        form = f"JPEG of quality {self.jpeg_quality}" if self.jpeg_quality else "arrays"
        height, width, _ = self.shape
        return f"pictures of {width} x {height} at {self.rate:g} per second, as {form}"


def check_recording(found: Recording) -> None:
    """Refuse what cannot be.

    Raises:
        ValueError: names the attribute.
    """
    if found.kind not in DTYPE_OF:
        raise ValueError(f"kind {found.kind!r:.40} is not one of {', '.join(DTYPE_OF)}")
    if not 0 < found.rate <= LARGEST_RATE:  # written so that NaN is refused, too
        raise ValueError(f"rate is {found.rate:g}; it must be above 0, and at most {LARGEST_RATE:g}")
    fits = len(found.shape) == 1 if found.is_sound else len(found.shape) == 3 and found.shape[2] == 3
    # Each before their product: it could be a number of any length.
    if not fits or not all(0 < size <= LARGEST_STEP for size in found.shape) or found.dim > LARGEST_STEP:
        form = "[samples]" if found.is_sound else "[height, width, 3]"
        raise ValueError(f"shape is {found.shape!s:.60}; of {found.kind} it is {form}")
    quality = found.jpeg_quality
    if quality is not None and (found.is_sound or not 1 <= quality <= 95):
        raise ValueError(f"jpeg_quality is {quality}; it is 1 to 95, of pictures only")


def steps_of_samples(samples: int, per_step: int) -> int:
    """The steps that hold so many samples; the last may be filled up."""
    return -(-samples // per_step)


def in_steps(sound: np.ndarray, per_step: int) -> np.ndarray:
    """int16 [samples] -> int16 [steps, per_step], the last step filled up with zeros."""
    steps = np.zeros((steps_of_samples(len(sound), per_step), per_step), np.int16)
    steps.reshape(-1)[: len(sound)] = sound
    return steps


def as_int16(sound: np.ndarray) -> np.ndarray:
    """float32 [samples] in -1 to 1 -> int16, rounded; what is louder is clipped."""
    scaled = np.rint(np.asarray(sound, np.float32) * FULL_SCALE)
    return np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def num_samples_of(meta: Mapping[str, Any], name: str) -> int | None:
    """The true number of samples of a modality by an utterance's metadata; None if they do not say."""
    found = meta.get(NUM_SAMPLES)
    value = found.get(name) if isinstance(found, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
