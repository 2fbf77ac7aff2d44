"""A small description of each picture (edges, color, motion) in 148 numbers, without weights.

Each picture is scaled to 64 x 64 by exact area means, in color and in gray (Rec. 601 luma, in [0, 1]). Its
numbers are

- 128: histograms of oriented gradients (Dalal and Triggs, 2005): in each cell of a 4 x 4 grid the gradients'
  lengths are summed over 8 unsigned orientations; all 128 together are scaled to unit length;
- 4: mean of gray - 1/2 (around 0, where float16 is precise), standard deviation of gray, and the means of
  red - green and of (red + green) / 2 - blue;
- 16: motion: per cell the mean absolute change of gray since the picture before (0 for the first).

A step of several pictures is the mean of their numbers.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from shards.extraction.encoders.faces import LARGEST_SIDE, crop_faces, face_settings
from shards.extraction.encoders.pooling import pool

SIDE, CELLS, ORIENTATIONS = 64, 4, 8
# Least length that is scaled to unit length: that of a uniform picture is noise.
SMALLEST_GRADIENT = 0.1
# Pictures computed at a time: a whole long clip would fill the memory.
BLOCK = 16


class Descriptor:
    """Video encoder, see the module; attributes as `shards.extraction.encoders` says.

    Args:
        fps: pictures per second.
        step_seconds: seconds of a step, over which pictures are averaged; default one picture.
        faces: "opencv": the encoder gets only the face in each picture, as OpenCV's detector finds it; a clip
            without any face has no features. "none": it gets whole pictures.
    """

    modality = "video"
    name = "descriptor"
    dim = CELLS * CELLS * (ORIENTATIONS + 1) + 4

    def __init__(
        self,
        *,
        fps: float = 10.0,
        step_seconds: float | None = None,
        faces: Literal["none", "opencv"] = "none",
    ) -> None:
        step_seconds = 1.0 / fps if step_seconds is None else step_seconds
        if step_seconds * fps < 1 - 1e-6:
            raise ValueError(
                f"step_seconds={step_seconds:g} is shorter than a picture at fps={fps:g}; raise fps"
            )
        self.fps = fps
        self.step_seconds = step_seconds
        self._faces = faces
        self.largest_side = 4 * SIDE if faces == "none" else LARGEST_SIDE
        self.settings: dict[str, Any] = {
            "id": "descriptor",
            "version": 2,
            "fps": fps,
            "step_seconds": step_seconds,
            "largest_side": self.largest_side,
            "side": SIDE,
            "cells": CELLS,
            "orientations": ORIENTATIONS,
            "faces": "none" if faces == "none" else face_settings(),
        }

    def encode(self, clips: list[np.ndarray]) -> list[np.ndarray]:
        """[T, 148] for each clip uint8 [N, H, W, 3] sampled at `fps`."""
        return [self._encode(clip) for clip in clips]

    def _encode(self, clip: np.ndarray) -> np.ndarray:
        if self._faces != "none":
            clip = crop_faces(clip, SIDE, self.fps)[0]
        if not len(clip):
            return np.zeros((0, self.dim), np.float32)
        centers = (np.arange(len(clip)) + 0.5) / self.fps
        return pool(describe(clip), centers, len(clip) / self.fps, self.step_seconds)


def describe(pictures: np.ndarray, block: int = BLOCK) -> np.ndarray:
    """float32 [N, 148] of pictures uint8 [N, H, W, 3], in the order of the module's docstring.

    Args:
        block: pictures computed at a time; it changes no bit of the result.
    """
    described = np.empty((len(pictures), Descriptor.dim), np.float32)
    before: np.ndarray | None = None
    for i in range(0, len(pictures), block):
        small = _downscale(pictures[i : i + block])
        red, green, blue = small[..., 0], small[..., 1], small[..., 2]
        gray = 0.299 * red + 0.587 * green + 0.114 * blue
        tones = [gray.mean((1, 2)) - 0.5, gray.std((1, 2)), (red - green).mean((1, 2))]
        tones.append(((red + green) / 2 - blue).mean((1, 2)))
        motion = np.abs(np.diff(gray, axis=0, prepend=gray[:1] if before is None else before))
        parts = [_gradients(gray), np.stack(tones, axis=1), _cells(motion).reshape(len(gray), -1)]
        described[i : i + block] = np.concatenate(parts, axis=1)
        before = gray[-1:]
    return described


def _gradients(gray: np.ndarray) -> np.ndarray:
    """Histograms of oriented gradients [N, CELLS * CELLS * ORIENTATIONS] of pictures [N, SIDE, SIDE]."""
    dy, dx = np.gradient(gray, axis=(1, 2))
    length = np.hypot(dx, dy)
    orientation = (np.arctan2(dy, dx) % np.pi * (ORIENTATIONS / np.pi)).astype(np.int64) % ORIENTATIONS
    histogram = np.stack(
        [_cells(np.where(orientation == o, length, 0.0)) for o in range(ORIENTATIONS)], axis=-1
    ).reshape(len(gray), -1)
    return histogram / np.maximum(np.linalg.norm(histogram, axis=1, keepdims=True), SMALLEST_GRADIENT / SIDE)


def _downscale(pictures: np.ndarray) -> np.ndarray:
    """float64 [N, SIDE, SIDE, 3] in [0, 1]: pictures scaled by area means."""
    return _area_means(_area_means(pictures, 1), 2) / 255.0


def _area_means(values: np.ndarray, axis: int) -> np.ndarray:
    """Means over SIDE equal parts of an axis. A pixel on a border counts to both parts, by its share in each.

    Exact for every size, so that pictures which decoding has scaled down give about the same numbers.
    """
    length = values.shape[axis]
    borders = np.arange(SIDE + 1) * (length / SIDE)
    pixel = np.minimum(borders.astype(int), length - 1)
    part = np.expand_dims(borders - pixel, tuple(i for i in range(values.ndim) if i != axis))
    # Sum before each border: that of the whole pixels, plus the part of the pixel which the border cuts.
    before = np.cumsum(values, axis, dtype=np.float64).take(pixel, axis)
    return np.diff(before - (1 - part) * values.take(pixel, axis), axis=axis) * (SIDE / length)


def _cells(values: np.ndarray) -> np.ndarray:
    """Mean over each cell: [N, SIDE, SIDE] -> [N, CELLS, CELLS]."""
    size = SIDE // CELLS
    return values.reshape(len(values), CELLS, size, CELLS, size).mean(axis=(2, 4))
