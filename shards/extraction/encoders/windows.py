"""The windows that Hugging Face models take long clips in, and when their hidden steps are. No torch.

Sound is cut into consecutive windows of equal length, at most as long as the model takes (Whisper: its 30 s;
others `LONGEST_WINDOW_S`, since the cost of attention grows with the square). Pictures are cut into windows
of as many as the model takes at once: 1, or those of VideoMAE.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

LONGEST_WINDOW_S = 60.0


@dataclass(frozen=True)
class SoundWindows:
    """Windows of sound.

    Attributes:
        rate: samples per second.
        longest: samples of the longest window.
        stride: samples from one hidden step to the next.
        field: samples that a hidden step sees; 0 where steps are centered on their first sample (Whisper).
        fixed: whether the model is always given `longest` samples, filled up with silence (Whisper).
    """

    rate: int
    longest: int
    stride: int
    field: int
    fixed: bool

    def check_step(self, spec: str, step_seconds: float) -> None:
        """Raise ValueError if a step is shorter than those of the model `spec`."""
        if step_seconds * self.rate < self.stride:
            raise ValueError(
                f"{spec}: step_seconds={step_seconds:g}; the model's own steps are "
                f"{self.stride / self.rate:g} s long, and steps cannot be shorter"
            )

    def cut(self, samples: int) -> list[tuple[int, int]]:
        """Consecutive windows (start, end), each but the last a whole number of hidden steps."""
        if not samples:
            return []
        count = ceil(samples / self.longest)
        length = min(self.longest, ceil(samples / count / self.stride) * self.stride)
        return [(start, min(samples, start + length)) for start in range(0, samples, length)]

    def given(self, samples: int) -> int:
        """Samples that the model is given of a window: one shorter than a hidden step is filled up."""
        return self.longest if self.fixed else max(samples, self.field)

    def steps_of(self, samples: int) -> int:
        """Hidden steps of a window, without those of padding."""
        if self.fixed:
            return ceil(samples / self.stride)
        return (max(samples, self.field) - self.field) // self.stride + 1

    def centers(self, samples: int) -> np.ndarray:
        """Seconds at which the hidden steps of a clip are, of all its windows in order."""
        found = [
            start + self.field / 2 + self.stride * np.arange(self.steps_of(end - start))
            for start, end in self.cut(samples)
        ]
        return np.concatenate([np.zeros(0), *found]) / self.rate


def sound_windows(config: Any, extractor: Any) -> SoundWindows:
    """The windows of a model of sound.

    Args:
        config: of the network.
        extractor: its feature extractor.
    """
    rate = int(extractor.sampling_rate)
    if config.model_type == "whisper":
        # Mel frames are centered on their sample, and the second convolution takes every other one.
        return SoundWindows(rate, int(extractor.n_samples), 2 * extractor.hop_length, 0, True)
    stride, field = convolutions(config.conv_kernel, config.conv_stride)
    return SoundWindows(rate, round(LONGEST_WINDOW_S * rate), stride, field, False)


def convolutions(kernels: list[int], strides: list[int]) -> tuple[int, int]:
    """(stride, receptive field) in samples of a stack of convolutions without padding."""
    stride, field = 1, 1
    for kernel, by in zip(kernels, strides, strict=True):
        field += (kernel - 1) * stride
        stride *= by
    return stride, field


@dataclass(frozen=True)
class PictureWindows:
    """Windows of pictures.

    Attributes:
        fps: pictures per second.
        frames: pictures that the model takes at once; the last window of a clip is filled up with its last
            picture.
        tube: consecutive pictures that the model makes one step of.
    """

    fps: float
    frames: int
    tube: int

    @property
    def step_seconds(self) -> float:
        """Length of the model's own steps."""
        return self.tube / self.fps

    def check_step(self, spec: str, step_seconds: float) -> None:
        """Raise ValueError if a step is shorter than those of the model `spec`."""
        if step_seconds < self.step_seconds * (1 - 1e-6):
            raise ValueError(
                f"{spec}: step_seconds={step_seconds:g}; at fps={self.fps:g} the model's own steps are "
                f"{self.step_seconds:g} s long, and steps cannot be shorter; raise fps"
            )

    def count(self, pictures: int) -> int:
        """Windows of a clip."""
        return -(-pictures // self.frames)

    @property
    def steps_per_window(self) -> int:
        """Steps that the model makes of a window."""
        return self.frames // self.tube

    def steps_of(self, pictures: int) -> int:
        """Steps of a clip, without those of padding: its whole ones, but at least 1 unless it is empty."""
        return max(1, pictures // self.tube) if pictures else 0

    def centers(self, pictures: int) -> np.ndarray:
        """Seconds at which the steps of a clip are."""
        return (np.arange(self.steps_of(pictures)) + 0.5) * self.tube / self.fps


def picture_windows(config: Any, fps: float) -> PictureWindows:
    """The windows of a model of pictures by its network's configuration."""
    video = config.model_type == "videomae"
    return PictureWindows(fps, config.num_frames if video else 1, config.tubelet_size if video else 1)
