"""Encoders: waves to audio steps, pictures to video steps, by name.

An encoder is an object of a few attributes and one method; what each of them is made of, its `settings` tell.

- audio: `name`, `rate` (samples per second it wants), `dim`, `step_seconds`, `settings` (JSON-able), and
  `encode(waves: list of float32 [samples]) -> list of float32 [T, dim]`;
- video: the same with `fps` (pictures per second it wants) and `largest_side` (pixels; larger pictures are
  scaled down to it on decoding, since minutes of them would fill a machine's memory) for `rate`, and
  `encode(clips: list of uint8 RGB [N, H, W, 3]) -> list of float32 [T, dim]`.

T is the number of whole steps in the clip, floor(duration / step_seconds), but at least 1 where there is
anything. A clip of nothing gives [0, dim]. A clip's features do not depend on the clips beside it, but for
rounding.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np


class AudioEncoder(Protocol):
    """What `open_audio_encoder` returns; attributes as the module says."""

    name: str
    rate: int
    dim: int
    step_seconds: float
    settings: dict[str, Any]

    def encode(self, waves: list[np.ndarray]) -> list[np.ndarray]: ...


class VideoEncoder(Protocol):
    """What `open_video_encoder` returns; attributes as the module says."""

    name: str
    fps: float
    largest_side: int
    dim: int
    step_seconds: float
    settings: dict[str, Any]

    def encode(self, clips: list[np.ndarray]) -> list[np.ndarray]: ...


def open_audio_encoder(
    spec: str,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    layer: int | None = None,
    step_seconds: float | None = None,
    revision: str | None = None,
    batch_seconds: float = 120.0,
) -> AudioEncoder | None:
    """The audio encoder of a name.

    Args:
        spec: "none"; "logmel" (built in, needs no weights); or a Hugging Face model, by hub id or local
            folder: wav2vec 2.0, HuBERT, WavLM or Whisper (of which the encoder is used).
        device: where a model runs.
        dtype: what a model computes in: "float32", "bfloat16" or "float16".
        layer: hidden layer whose output is used: 0 is the first layer's input, -1 (default) the last.
        step_seconds: length of a step; default 0.1 s. Hidden steps are averaged over it.
        revision: branch, tag or commit of the hub.
        batch_seconds: seconds of sound, padding included, that a model is given at once.

    Raises:
        ValueError: unknown name or model type, an option that the encoder does not have, files missing.
        ImportError: an optional package is missing; tells how to install it.
    """
    if spec == "none":
        return None
    if spec == "logmel":
        from shards.extraction.encoders.logmel import LogMel

        _refuse_options(spec, layer=layer, step_seconds=step_seconds, revision=revision)
        return LogMel()
    from shards.extraction.encoders.hf_audio import HFAudio

    return HFAudio(
        spec,
        device=device,
        dtype=dtype,
        layer=-1 if layer is None else layer,
        step_seconds=0.1 if step_seconds is None else step_seconds,
        revision=revision,
        batch_seconds=batch_seconds,
    )


def open_video_encoder(
    spec: str,
    *,
    fps: float | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    layer: int | None = None,
    step_seconds: float | None = None,
    revision: str | None = None,
    faces: str = "none",
    batch_frames: int = 256,
) -> VideoEncoder | None:
    """The video encoder of a name.

    Args:
        spec: "none"; "descriptor" (built in, needs no weights); or a Hugging Face model, by hub id or local
            folder: CLIP, SigLIP, ViT or DINOv2 (picture by picture) or VideoMAE (tubes of pictures).
        fps: pictures per second; default 10.
        device: where a model runs.
        dtype: what a model computes in: "float32", "bfloat16" or "float16".
        layer: hidden layer whose output is used: 0 is the first layer's input; default the model's own pooled
            output, where it has one, else the last layer.
        step_seconds: length of a step, over which pictures are averaged; default one picture (VideoMAE: one
            tube).
        revision: branch, tag or commit of the hub.
        faces: "opencv" gives the encoder the face of each picture (`encoders.faces`), and nothing for a clip
            without one; "none" the whole picture.
        batch_frames: pictures that a model is given at once.

    Raises:
        ValueError: unknown name or model type, an option that the encoder does not have, files missing.
        ImportError: an optional package is missing; tells how to install it.
    """
    if spec == "none":
        return None
    if faces not in ("none", "opencv"):
        raise ValueError(f"faces {faces!r} is not known; use 'none' or 'opencv'")
    fps = 10.0 if fps is None else float(fps)
    if fps <= 0:
        raise ValueError(f"fps is {fps:g}; it must be above 0")
    if spec == "descriptor":
        from shards.extraction.encoders.descriptor import Descriptor

        _refuse_options(spec, layer=layer, revision=revision)
        return Descriptor(
            fps=fps, step_seconds=1.0 / fps if step_seconds is None else step_seconds, faces=faces
        )
    from shards.extraction.encoders.hf_video import HFVideo

    return HFVideo(
        spec,
        fps=fps,
        device=device,
        dtype=dtype,
        layer=layer,
        step_seconds=step_seconds,
        revision=revision,
        faces=faces,
        batch_frames=batch_frames,
    )


def _refuse_options(spec: str, **options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(
                f"{name}={value!r}: the built-in encoder {spec!r} has no such option; leave it out"
            )
