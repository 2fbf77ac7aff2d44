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
from shards.extraction.encoders.windows import picture_windows

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
        self._model = load_network(model, device, dtype)
        config = self._model.config
        self._layers = config.num_hidden_layers
        self._layer = layer_number(-1 if layer is None else layer, self._layers, spec)
        self._summary = summary_of(kind, self._layer == self._layers)
        self._windows = picture_windows(config, fps)
        self.step_seconds = self._windows.step_seconds if step_seconds is None else step_seconds
        self._windows.check_step(spec, self.step_seconds)
        self._side = config.image_size if isinstance(config.image_size, int) else max(config.image_size)
        # The processor scales further down; it never has to scale up pictures of up to 2 : 1.
        self.largest_side = min(2 * self._side, LARGEST_SIDE) if faces == "none" else LARGEST_SIDE
        self._faces, self._device = faces, device
        self._batch = max(1, batch_frames // self._windows.frames)
        self.name = spec
        self.fps = fps
        self.dim = int(config.hidden_size)
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
        windows = [window for clip in clips for window in _cut(clip, self._windows.frames)]
        encoded = [self._encode(windows[i : i + self._batch]) for i in range(0, len(windows), self._batch)]
        own_steps = np.concatenate([*encoded, np.zeros((0, self.dim), np.float32)])
        features, at = [], 0
        for clip in clips:
            count = self._windows.count(len(clip)) * self._windows.steps_per_window
            features.append(self._pooled(own_steps[at : at + count], len(clip)))
            at += count
        return features

    def _pooled(self, own_steps: np.ndarray, pictures: int) -> np.ndarray:
        own_steps, centers = own_steps[: self._windows.steps_of(pictures)], self._windows.centers(pictures)
        return pool(own_steps, centers, pictures / self.fps, self.step_seconds)

    def _encode(self, windows: list[np.ndarray]) -> np.ndarray:
        """Own steps [windows * tubes, dim]."""
        import torch

        pictures = [picture for window in windows for picture in window]
        frames = self._windows.frames
        if frames > 1:
            # The processor gets all windows as one video; a window's pictures stay consecutive.
            values = self._processor([pictures], return_tensors="pt")["pixel_values"][0]
            values = values.unflatten(0, (len(windows), frames))
        else:
            values = self._processor(pictures, return_tensors="pt")["pixel_values"]
        values = values.to(self._device, self._model.dtype)
        with torch.inference_mode():
            output = self._model(values, output_hidden_states=self._layer < self._layers)
        tokens = None
        if self._summary != "pooled":
            last = self._layer == self._layers
            tokens = output.last_hidden_state if last else output.hidden_states[self._layer]
        steps = summarize(tokens, output, self._summary, self._windows.steps_per_window)
        return steps.float().cpu().numpy()


def load_network(model: LocatedModel, device: str, dtype: str, **changes: Any) -> Any:
    """The network that encodes pictures.

    Args:
        model: what to load.
        device: where it is to run.
        dtype: what it computes in.
        changes: of its configuration.

    Raises:
        ValueError: weights missing or unfit for the configuration.
    """
    if model.model_type == "vit":
        # ViT's pooling layer is specific to its training task, and most checkpoints lack it.
        changes["add_pooling_layer"] = False
    return load_model(model, HFVideo.architectures[model.model_type], device, dtype, **changes)


def summary_of(kind: str, last: bool) -> str:
    """What of a picture's tokens are its features: "pooled", "class token" or "patches".

    Args:
        kind: type of the model.
        last: whether they are those of its last layer.
    """
    if last and kind in POOLED:
        return "pooled"
    return "patches" if kind in WITHOUT_CLASS_TOKEN else "class token"


def summarize(tokens: Any, output: Any, summary: str, steps_per_window: int) -> Any:
    """The features [windows * steps_per_window, dim] of a layer's tokens [windows, tokens, dim].

    Args:
        tokens: of the layer; unused if the summary is "pooled".
        output: of the network.
        summary: of `summary_of`.
        steps_per_window: tubes of a window.
    """
    if summary == "pooled":
        return output.pooler_output
    if summary == "class token":
        return tokens[:, 0]
    # Patches of a tube are adjacent; a picture is one tube.
    return tokens.unflatten(1, (steps_per_window, -1)).mean(dim=2).flatten(0, 1)


def _cut(clip: np.ndarray, length: int) -> list[np.ndarray]:
    """Consecutive windows [length, H, W, 3]; the last is padded with the last picture."""
    windows = [clip[i : i + length] for i in range(0, len(clip), length)]
    if windows and len(windows[-1]) < length:
        missing = length - len(windows[-1])
        windows[-1] = np.concatenate([windows[-1], np.repeat(windows[-1][-1:], missing, axis=0)])
    return windows
