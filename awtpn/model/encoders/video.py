"""Pictures as recorded -> features of CLIP, SigLIP, ViT, DINOv2 or VideoMAE, as `awtpn extract` makes them.

The recorded crops have the size that the model's own image processor scales to, so that its scaling changes
nothing; cropping the middle, rescaling and normalizing are done on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from awtpn.model.device import to_device_async
from awtpn.model.encoders.base import Encoder
from awtpn.model.encoders.settings import EncoderSettings
from shards import Ragged
from shards.extraction.encoders.hf_video import summarize
from shards.extraction.encoders.windows import PictureWindows

TOLERANCE = 1e-4  # of normalized pixels, which differ by some 0.01 from one level to the next


@dataclass(frozen=True)
class Preparation:
    """What an image processor does to a picture of `side` x `side` pixels.

    Attributes:
        side: pixels that it scales to.
        crop: pixels of the middle that it cuts out.
        scale: factor of the 8-bit values.
        mean, std: of each color.
    """

    side: int
    crop: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pictures: Tensor) -> Tensor:
        """uint8 [N, side, side, 3] -> float32 [N, 3, crop, crop]."""
        first = (self.side - self.crop) // 2
        middle = pictures[:, first : first + self.crop, first : first + self.crop]
        mean, std = (to_device_async(x, pictures.device, torch.float32) for x in (self.mean, self.std))
        return ((middle.float() * self.scale - mean) / std).permute(0, 3, 1, 2)


class VideoEncoder(Encoder):
    """An encoder of pictures; see `Encoder`."""

    modality = "video"

    def __init__(
        self,
        network: Any,
        config: EncoderSettings,
        settings: dict[str, Any],
        processor: Any,
        pictures: PictureWindows,
        preparation: Preparation,
    ) -> None:
        """Take a network over; `processor` is its image processor, the other arguments are of `Encoder`."""
        super().__init__(network, config, settings, processor)
        self.pictures = pictures
        self.preparation = preparation
        self.summary = str(settings["summary"])

    def lengths(self, recordings: Ragged) -> list[int]:
        """Pictures of each utterance."""
        return recordings.host_lengths

    def seconds(self, length: int) -> float:
        """Duration of so many pictures."""
        return length / self.pictures.fps

    def centers(self, length: int) -> np.ndarray:
        """Seconds at which the model's own steps of so many pictures are."""
        return self.pictures.centers(length)

    def windows(self, length: int) -> list[int]:
        """Pictures that the model is given, by window, of so many."""
        return [self.pictures.frames] * self.pictures.count(length)

    @property
    def per_pass(self) -> int:
        """Pictures of a pass."""
        return int(self.config.pass_pictures)

    def encode(self, recordings: Ragged, lengths: Sequence[int]) -> tuple[Tensor, list[np.ndarray]]:
        """The model's own steps [windows * steps, dim], and the rows of each utterance's."""
        of = self.pictures
        rows, places, window = [], [], 0
        for first, length in zip(recordings.host_offsets.tolist(), lengths, strict=False):
            count = of.count(length)
            # The last window is filled up with the last picture.
            rows.append(first + np.arange(count * of.frames).clip(max=max(0, length - 1)))
            places.append(window * of.steps_per_window + np.arange(of.steps_of(length)))
            window += count
        with torch.no_grad(), torch.autocast(recordings.values.device.type, enabled=False):
            if window:
                chosen = to_device_async(np.concatenate(rows), recordings.values.device)
                pictures = recordings.values[chosen]
            else:
                pictures = recordings.values.new_zeros((of.frames, *recordings.values.shape[1:]))
            values = self.preparation(pictures).to(self.dtype)
        if self.network.config.model_type == "videomae":
            values = values.unflatten(0, (-1, of.frames))
        tokens, output = self.run({"pixel_values": values})
        return summarize(tokens, output, self.summary, of.steps_per_window), places


def preparation_of(processor: Any, spec: str, video: bool) -> Preparation:
    """What an image processor does to pictures of the size that it scales to.

    Args:
        processor: Hugging Face's.
        spec: the model, for messages.
        video: whether the processor takes lists of pictures.

    Raises:
        ValueError: it does something else to pictures than this module knows.
    """
    size, crop = processor.size, getattr(processor, "crop_size", None)
    side = size.get("shortest_edge") or size.get("height")
    cut = crop.get("height") if crop and getattr(processor, "do_center_crop", False) else side
    found = None
    if side and cut and cut <= side:
        found = Preparation(
            int(side),
            int(cut),
            float(processor.rescale_factor) if processor.do_rescale else 1.0,
            tuple(map(float, processor.image_mean)) if processor.do_normalize else (0.0,) * 3,
            tuple(map(float, processor.image_std)) if processor.do_normalize else (1.0,) * 3,
        )
        picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
        expected = processor([[picture]] if video else [picture], return_tensors="pt")["pixel_values"]
        ours = found(torch.from_numpy(picture)[None])
        expected = expected.reshape(-1, *expected.shape[-3:])
        if expected.shape == ours.shape and (expected - ours).abs().max() <= TOLERANCE:
            return found
    raise ValueError(
        f"{spec}: its {type(processor).__name__} does more than to scale, crop, and normalize pictures; "
        "a model with it cannot be trained here: extract its features in place of frames"
    )
