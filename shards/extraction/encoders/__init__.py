"""Encoders: sound to audio features, pictures to video features, words to text features, opened by name.

- built in, without weights: `logmel` (audio), `descriptor` (video), `chargrams` (text)
- recordings themselves, in place of features, which a model with encoders of its own is fine-tuned on:
  `waveform` (audio), `frames` (video)
- Hugging Face models, found by their model type: `hf_audio`, `hf_video`, `hf_text`; `hf`: models located and
  loaded
- used by them: `faces`: the face in each picture; `windows`: how long clips are cut; `pooling`: means over
  steps

An encoder is a class, found by its attribute `modality`, "audio", "video" or "text". A built-in encoder has a
`name`. A class for Hugging Face models has `architectures` instead, {model type: class of transformers}, and
takes an `hf.LocatedModel` first. The keyword arguments of `__init__` are its options, also on the command
line. What its objects offer:

- audio: `name`, `rate` (samples per second that it takes), `dim`, `step_seconds`, `settings` (JSON: all that
  decides the features), `encode(waves: list of float32 [samples]) -> list of float32 [T, dim]`;
- video: the same with `fps` (pictures per second that it takes) in place of `rate`, `largest_side` (pixels;
  decoding scales larger pictures down to it, to save memory), and
  `encode(clips: list of uint8 RGB [N, H, W, 3]) -> list of float32 [T, dim]`;
- text: `name`, `dim`, `settings` with "step": "word", and
  `encode(texts: list of tuples of words) -> list of float32 [T, dim]`, where T is the number of words.

An encoder of recordings has the attribute `recording` (`shards.format.recording`), too, and its `encode`
returns all of the clip: int16 [samples], or uint8 RGB [N, H, W, 3].

Of sound and pictures as features, T is the number of whole steps in the clip, floor(duration / step_seconds),
but at least 1 unless the clip is empty. An empty clip gives [0, dim]. The features of a clip do not depend on
the other clips of the list, except for rounding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from shards.format.precision_names import long_name
from shards.registry import Entry, Parameter, find_classes

if TYPE_CHECKING:
    import numpy as np

# Arguments that say how an encoder computes, not what. An encoder without such an argument ignores it.
COMPUTING = ("device", "dtype", "batch_seconds", "batch_frames", "batch_tokens")
REVISION = Parameter("str", (), None, "branch, tag or commit on the Hugging Face hub")


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


class TextEncoder(Protocol):
    """What `open_text_encoder` returns; attributes as the module says."""

    name: str
    dim: int
    settings: dict[str, Any]

    def encode(self, texts: list[tuple[str, ...]]) -> list[np.ndarray]: ...


def find_encoders(modality: str) -> dict[str, Entry]:
    """The encoder classes of a modality. None is imported.

    Returns:
        Built-in encoders by their name, classes for Hugging Face models by the name of their module.
    """
    found = {}
    for entry in find_classes(__name__, tuple(__path__), "modality"):
        if entry.attributes["modality"] == modality:
            if "architectures" in entry.attributes:
                entry = replace(entry, parameters={**entry.parameters, "revision": REVISION})
            found[entry.attributes.get("name", entry.module.rpartition(".")[2])] = entry
    return found


def open_encoder(
    modality: str, spec: str, *, device: str = "cpu", dtype: str = "float32", **options: Any
) -> Any:
    """The encoder of a modality by name.

    Args:
        modality: "audio", "video" or "text".
        spec: "none", the name of a built-in encoder, or a Hugging Face model, by hub id or local folder.
        device: where a model runs.
        dtype: what a model computes in: "float32", "bfloat16" or "float16"; or "fp32", "bf16", "fp16".
        options: of the encoder's `__init__`, and `revision` of a Hugging Face model; None is the default.

    Returns:
        The encoder; None for "none".

    Raises:
        ValueError: unknown name or model type, an option that the encoder does not have, files missing.
        ImportError: an optional package is missing; says how to install it.
    """
    if spec == "none":
        return None
    given = {name: value for name, value in options.items() if value is not None}
    if "fps" in given:
        if given["fps"] <= 0:
            raise ValueError(f"fps is {given['fps']:g}; it must be above 0")
        given["fps"] = float(given["fps"])
    given |= {"device": device, "dtype": long_name(dtype)}
    encoders = find_encoders(modality)
    entry, models = encoders.get(spec), []
    if entry is None or "name" not in entry.attributes:
        from shards.extraction.encoders.hf import locate

        model = locate(spec, given.pop("revision", None), modality)
        entry, models = _family_of(model.model_type, spec, encoders), [model]
    for name in sorted(given.keys() - entry.options.keys()):
        if name not in COMPUTING:
            raise ValueError(f"{name}={given[name]!r}: the encoder {spec!r} has no such option; leave it out")
        del given[name]
    for name, value in given.items():
        if (choices := entry.options[name].choices) and value not in choices:
            raise ValueError(f"{name} {value!r} is not known; use {' or '.join(map(repr, choices))}")
    return entry.load()(*models, **given)


def open_audio_encoder(spec: str, **options: Any) -> AudioEncoder | None:
    """`open_encoder` of audio."""
    encoder: AudioEncoder | None = open_encoder("audio", spec, **options)
    return encoder


def open_video_encoder(spec: str, **options: Any) -> VideoEncoder | None:
    """`open_encoder` of video."""
    encoder: VideoEncoder | None = open_encoder("video", spec, **options)
    return encoder


def open_text_encoder(spec: str, **options: Any) -> TextEncoder | None:
    """`open_encoder` of text."""
    encoder: TextEncoder | None = open_encoder("text", spec, **options)
    return encoder


def _family_of(model_type: str, spec: str, encoders: dict[str, Entry]) -> Entry:
    """The class for Hugging Face models of this type."""
    classes = {
        known: entry for entry in encoders.values() for known in entry.attributes.get("architectures", ())
    }
    if model_type not in classes:
        raise ValueError(
            f"{spec}: model type {model_type!r} is not one that can encode this: "
            f"use {', '.join(sorted(classes))}"
        )
    return classes[model_type]
