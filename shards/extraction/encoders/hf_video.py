"""Hugging Face vision models: CLIP, SigLIP, ViT and DINOv2 picture by picture, VideoMAE by tubes of pictures.

Features of a picture: of the last layer the pooled output (CLIP, SigLIP, DINOv2) or the class token (ViT); of
an earlier layer the class token, or the mean over patches where there is none (SigLIP).

VideoMAE takes windows of consecutive pictures (16 in most models); the last window is padded with the clip's
last picture. Each tube (2 pictures) is the mean over its patches; tubes of padding are dropped.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from shards.extraction.encoders.faces import LARGEST_SIDE, crop_faces, face_settings
from shards.extraction.encoders.hf import (
    LocatedModel,
    layer_number,
    load_model,
    load_processor,
    versions,
)
from shards.extraction.encoders.pooling import pool

POOLED = ("clip", "clip_vision_model", "dinov2", "siglip", "siglip_vision_model")
WITHOUT_CLASS_TOKEN = ("siglip", "siglip_vision_model", "videomae")


class HFVideo:
    """Video encoder, see the module; attributes as `shards.extraction.encoders` says.

    Args:
        model: the model.
        fps: pictures per second.
        device: where it runs.
        dtype: what it computes in.
        layer: hidden layer whose output is used: 0 is the first layer's input, -1 the last layer's output;
            default the model's own pooled output where it has one, else the last layer.
        step_seconds: seconds of a step, over which pictures are averaged; default one picture (VideoMAE: one
            tube of pictures).
        faces: "opencv": the encoder gets only the face in each picture, as OpenCV's detector finds it; a clip
            without any face has no features. "none": it gets whole pictures.
        batch_frames: pictures that the model is given at once.

    Raises:
        ValueError: what cannot be loaded or done, by name.
    """

    modality = "video"
    architectures: ClassVar = {
        "clip": "CLIPVisionModel",
        "clip_vision_model": "CLIPVisionModel",
        "dinov2": "Dinov2Model",
        "siglip": "SiglipVisionModel",
        "siglip_vision_model": "SiglipVisionModel",
        "videomae": "VideoMAEModel",
        "vit": "ViTModel",
    }

    def __init__(
        self,
        model: LocatedModel,
        *,
        fps: float = 10.0,
        device: str = "cpu",
        dtype: str = "float32",
        layer: int | None = None,
        step_seconds: float | None = None,
        faces: Literal["none", "opencv"] = "none",
        batch_frames: int = 256,
    ) -> None:
        spec, kind = model.spec, model.model_type
        self._processor = load_processor(model, "AutoImageProcessor")
        # ViT's pooling layer is specific to its training task, and most checkpoints lack it.
        changes = {"add_pooling_layer": False} if kind == "vit" else {}
        self._model = load_model(model, self.architectures[kind], device, dtype, **changes)
        config = self._model.config
        self._layers = config.num_hidden_layers
        self._layer = layer_number(-1 if layer is None else layer, self._layers, spec)
        last = self._layer == self._layers
        self._summary = "patches" if kind in WITHOUT_CLASS_TOKEN else "class token"
        if last and kind in POOLED:
            self._summary = "pooled"
        self._frames: int = config.num_frames if kind == "videomae" else 1
        self._tube: int = config.tubelet_size if kind == "videomae" else 1
        own = self._tube / fps
        if step_seconds is not None and step_seconds < own * (1 - 1e-6):
            raise ValueError(
                f"{spec}: step_seconds={step_seconds:g}; at fps={fps:g} the model's own steps are {own:g} s "
                "long, and steps cannot be shorter; raise fps"
            )
        self._side = config.image_size if isinstance(config.image_size, int) else max(config.image_size)
        # The processor scales further down; it never has to scale up pictures of up to 2 : 1.
        self.largest_side = min(2 * self._side, LARGEST_SIDE) if faces == "none" else LARGEST_SIDE
        self._faces, self._device = faces, device
        self._batch = max(1, batch_frames // self._frames)
        self.name = spec
        self.fps = fps
        self.dim = int(config.hidden_size)
        self.step_seconds = own if step_seconds is None else step_seconds
        self.settings: dict[str, Any] = {
            **model.origin,
            "model_type": kind,
            "layer": self._layer,
            "summary": self._summary,
            "fps": fps,
            "step_seconds": self.step_seconds,
            "largest_side": self.largest_side,
            "faces": "none" if faces == "none" else face_settings(),
            "dtype": dtype,
            "versions": versions(self._processor),
        }

    def encode(self, clips: list[np.ndarray]) -> list[np.ndarray]:
        """[T, dim] for each clip uint8 [N, H, W, 3] sampled at `fps`."""
        if self._faces != "none":
            clips = [crop_faces(clip, self._side, self.fps)[0] for clip in clips]
        # Windows [frames, H, W, 3] of all clips in order; of other models than VideoMAE, single pictures.
        windows = [window for clip in clips for window in _windows(clip, self._frames)]
        encoded = [self._encode(windows[i : i + self._batch]) for i in range(0, len(windows), self._batch)]
        own_steps = np.concatenate([*encoded, np.zeros((0, self.dim), np.float32)])
        features, at = [], 0
        for clip in clips:
            count = -(-len(clip) // self._frames) * (self._frames // self._tube)
            features.append(self._pooled(own_steps[at : at + count], len(clip)))
            at += count
        return features

    def _pooled(self, own_steps: np.ndarray, pictures: int) -> np.ndarray:
        if not pictures:
            return np.zeros((0, self.dim), np.float32)
        own_steps = own_steps[: max(1, pictures // self._tube)]
        centers = (np.arange(len(own_steps)) + 0.5) * self._tube / self.fps
        return pool(own_steps, centers, pictures / self.fps, self.step_seconds)

    def _encode(self, windows: list[np.ndarray]) -> np.ndarray:
        """Own steps [windows * tubes, dim]."""
        import torch

        pictures = [picture for window in windows for picture in window]
        if self._frames > 1:
            # The processor gets all windows as one video; a window's pictures stay consecutive.
            values = self._processor([pictures], return_tensors="pt")["pixel_values"][0]
            values = values.unflatten(0, (len(windows), self._frames))
        else:
            values = self._processor(pictures, return_tensors="pt")["pixel_values"]
        values = values.to(self._device, self._model.dtype)
        with torch.inference_mode():
            output = self._model(values, output_hidden_states=self._layer < self._layers)
        if self._summary == "pooled":
            steps = output.pooler_output
        else:
            last = self._layer == self._layers
            tokens = output.last_hidden_state if last else output.hidden_states[self._layer]
            if self._summary == "class token":
                steps = tokens[:, 0]
            else:
                # Patches of a tube are adjacent; a picture is one tube.
                steps = tokens.unflatten(1, (self._frames // self._tube, -1)).mean(dim=2).flatten(0, 1)
        return steps.float().cpu().numpy()


def _windows(clip: np.ndarray, length: int) -> list[np.ndarray]:
    """Consecutive windows [length, H, W, 3]; the last is padded with the last picture."""
    windows = [clip[i : i + length] for i in range(0, len(clip), length)]
    if windows and len(windows[-1]) < length:
        missing = length - len(windows[-1])
        windows[-1] = np.concatenate([windows[-1], np.repeat(windows[-1][-1:], missing, axis=0)])
    return windows
