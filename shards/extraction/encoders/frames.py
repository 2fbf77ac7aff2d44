"""Pictures as recorded, in place of features: square crops of 8 bits, which models are fine-tuned on.

A crop is the largest square in the middle of the picture, or the face in it (`faces`). It is scaled to `side`
pixels by Pillow's bicubic filter as vision models' own processors do, or, as a face, as `faces` says.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from shards.extraction.encoders.faces import LARGEST_SIDE, crop_faces, face_settings
from shards.extraction.media.video import LARGEST_CLIP
from shards.format.jpeg import pillow
from shards.format.recording import FRAMES, Recording, check_recording

SIDE = 224
LARGEST_CROP = 4096  # pixels of a side


class Frames:
    """Video "encoder" of recordings, see the module; attributes as `shards.extraction.encoders` says.

    Args:
        fps: pictures per second.
        side: pixels of a crop's side.
        faces: "opencv": only the face in each picture is stored, as OpenCV's detector finds it; a picture
            without one is black, and a clip without any has no pictures. "none": the middle of the picture.
        jpeg: store each picture as a JPEG of this quality, 1 to 95; default uncompressed arrays.

    Raises:
        ValueError: an option is out of its range.
    """

    modality = "video"
    name = "frames"

    def __init__(
        self,
        *,
        fps: float = 10.0,
        side: int = SIDE,
        faces: Literal["none", "opencv"] = "none",
        jpeg: int | None = None,
    ) -> None:
        if not 1 <= side <= LARGEST_CROP:
            raise ValueError(f"frames: side={side}: must be from 1 to {LARGEST_CROP}")
        pillow()  # before the first clip is decoded
        self.recording = Recording(FRAMES, float(fps), [side, side, 3], jpeg)
        check_recording(self.recording)
        # The crop is scaled down from at least its own size; never up, for recorded pictures of up to 2 : 1.
        self.largest_side = 2 * side if faces == "none" else LARGEST_SIDE
        self.fps, self.side, self.dim = fps, side, self.recording.dim
        self.step_seconds = 1 / fps
        self._faces = faces
        self.settings: dict[str, Any] = {
            "id": self.name,
            "version": 1,
            "fps": fps,
            "side": side,
            "largest_side": self.largest_side,
            "faces": "none" if faces == "none" else face_settings(),
            **({} if jpeg is None else {"jpeg": jpeg}),
        }

    def encode(self, clips: list[np.ndarray]) -> list[np.ndarray]:
        """uint8 RGB [N, side, side, 3] for each clip uint8 [N, H, W, 3] sampled at `fps`.

        Raises:
            ValueError: the crops of a clip would take more than `LARGEST_CLIP` bytes.
        """
        if (longest := max(map(len, clips), default=0)) * self.dim > LARGEST_CLIP:
            raise ValueError(
                f"{longest} pictures of {self.side} x {self.side} take more than {LARGEST_CLIP >> 30} GiB of "
                "memory; cut the clip, or take fewer (fps) or smaller ones (side)"
            )
        if self._faces != "none":
            return [crop_faces(clip, self.side, self.fps)[0] for clip in clips]
        return [crop_middle(clip, self.side) for clip in clips]


def crop_middle(pictures: np.ndarray, side: int) -> np.ndarray:
    """uint8 [N, H, W, 3] -> uint8 [N, side, side, 3]: the shorter side scaled to `side`, then the middle."""
    image_module = pillow()
    crops = np.empty((len(pictures), side, side, 3), np.uint8)
    height, width = pictures.shape[1:3]
    scale = side / min(height, width)
    size = max(side, round(width * scale)), max(side, round(height * scale))
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    for picture, crop in zip(pictures, crops, strict=True):
        scaled = np.asarray(image_module.fromarray(picture).resize(size, image_module.Resampling.BICUBIC))
        crop[:] = scaled[top : top + side, left : left + side]
    return crops
