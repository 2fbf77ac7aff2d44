"""Opens the encoder that the settings name, for the recordings of a dataset."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from awtpn.model.encoders.audio import AudioEncoder
from awtpn.model.encoders.base import Encoder
from awtpn.model.encoders.readme import read_licence
from awtpn.model.encoders.settings import EncoderSettings
from awtpn.model.encoders.size_check import check_size
from awtpn.model.encoders.tuning import training_changes, tune
from awtpn.model.encoders.video import VideoEncoder, preparation_of
from shards.extraction.encoders import hf_audio, hf_video
from shards.extraction.encoders.hf import LocatedModel, layer_number, load_processor, locate
from shards.extraction.encoders.windows import picture_windows, sound_windows
from shards.format.recording import KIND_OF, Recording

CLASSES: dict[str, Any] = {"audio": hf_audio.HFAudio, "video": hf_video.HFVideo}
STEP_SECONDS = 0.1  # of sound, as of `awtpn extract`


def open_encoder(
    modality: str,
    settings: EncoderSettings,
    recording: Recording,
    device: torch.device | str = "cpu",
    sha256: str | None = None,
) -> Encoder:
    """Load an encoder with its pretrained weights, ready to be trained as the settings say.

    Args:
        modality: "audio" or "video".
        settings: the model, and how it is trained.
        recording: what the dataset holds of this modality.
        device: where it is to run.
        sha256: of a model that a card names: that of its files, which are checked before they are loaded.

    Returns:
        The encoder in eval mode; the weights that are trained require a gradient.

    Raises:
        ValueError: the model cannot be loaded or trained, does not take such recordings, or has another
            sha256.
        ImportError: an optional package is missing; says how to install it.
    """
    if modality not in CLASSES:
        raise ValueError(
            f"encoder.{modality}: there are encoders of {' and '.join(CLASSES)} only; leave it out"
        )
    settings.validate(modality)
    if recording.kind != KIND_OF[modality]:
        raise ValueError(
            f"encoder.{modality} takes recordings of {KIND_OF[modality]}, but the dataset has {recording}"
        )
    with quiet_transformers(), whole_weights():
        model = locate(settings.model, settings.revision, modality)
        architectures: dict[str, str] = CLASSES[modality].architectures
        if model.model_type not in architectures:
            raise ValueError(
                f"encoder.{modality}.model is {settings.model}, of type {model.model_type!r}, which cannot "
                f"be trained here: use {', '.join(sorted(architectures))}"
            )
        if sha256 not in (None, model.origin["sha256"]):
            raise ValueError(
                f"{modality}: {settings.model} is not the model that this one was trained from: its files "
                "have another sha256; get the files of that model"
            )
        original = own_config(model, architectures[model.model_type])
        if sha256 is not None:
            check_size(model, original, architectures[model.model_type])
        changes = training_changes(original, settings.dropout)
        encoder = (_audio if modality == "audio" else _video)(model, settings, recording, changes)
    encoder.original, encoder.recording = original, recording
    encoder.licence = read_licence(model.folder)
    leave_file(encoder.network)
    tune(encoder)
    return encoder.eval().to(device)


def leave_file(network: torch.nn.Module) -> None:
    """Copy the weights, which lie in a memory map of their file.

    A single weight that stays there, such as a frozen one, would keep the whole file in memory, after
    DeepSpeed has copied the others.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()


def _audio(
    model: LocatedModel, settings: EncoderSettings, recording: Recording, changes: dict[str, Any]
) -> Encoder:
    extractor = load_processor(model, "AutoFeatureExtractor")
    network = hf_audio.load_network(model, "cpu", "float32", **changes)
    sound = sound_windows(network.config, extractor)
    if recording.rate != sound.rate:
        raise ValueError(
            f"{model.spec} takes sound at {sound.rate} Hz, but the dataset has {recording.rate:g} Hz; "
            f"extract it again: awtpn extract ... --audio waveform --audio_rate {sound.rate}"
        )
    step_seconds = STEP_SECONDS if settings.step_seconds is None else settings.step_seconds
    sound.check_step(model.spec, step_seconds)
    layer = -1 if settings.layer is None else settings.layer
    recorded = {
        **model.origin,
        "model_type": model.model_type,
        "layer": layer_number(layer, network.config.num_hidden_layers, model.spec),
        "rate": sound.rate,
        "step_seconds": step_seconds,
        "window_seconds": sound.longest / sound.rate,
    }
    return AudioEncoder(network, settings, recorded, extractor, sound)


def _video(
    model: LocatedModel, settings: EncoderSettings, recording: Recording, changes: dict[str, Any]
) -> Encoder:
    processor = load_processor(model, "AutoImageProcessor")
    preparation = preparation_of(processor, model.spec, model.model_type == "videomae")
    height, width, _ = recording.shape
    if (height, width) != (preparation.side, preparation.side):
        raise ValueError(
            f"{model.spec} takes pictures of {preparation.side} x {preparation.side}, but the dataset has "
            f"{width} x {height}; extract it again: awtpn extract ... --video frames "
            f"--video_side {preparation.side}"
        )
    network = hf_video.load_network(model, "cpu", "float32", **changes)
    pictures = picture_windows(network.config, recording.rate)
    step_seconds = pictures.step_seconds if settings.step_seconds is None else settings.step_seconds
    pictures.check_step(model.spec, step_seconds)
    layers = network.config.num_hidden_layers
    layer = layer_number(-1 if settings.layer is None else settings.layer, layers, model.spec)
    recorded = {
        **model.origin,
        "model_type": model.model_type,
        "layer": layer,
        "summary": hf_video.summary_of(model.model_type, layer == layers),
        "fps": recording.rate,
        "step_seconds": step_seconds,
        "side": preparation.side,
    }
    return VideoEncoder(network, settings, recorded, processor, pictures, preparation)


def own_config(model: LocatedModel, architecture: str) -> Any:
    """The configuration of a model as saved, of the part that is used.

    Raises:
        ValueError: it has settings that cannot be.
    """
    import transformers

    try:
        return getattr(transformers, architecture).config_class.from_pretrained(model.folder)
    except Exception as error:  # those of the library have no other common base
        first = " ".join(str(error).split())[:200]
        raise ValueError(f"{model.spec}: {model.folder / 'config.json'} is not read ({first})") from None


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' notes on weights that are not used, and without its progress bars."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def whole_weights() -> Iterator[None]:
    """Load weights whole, where a DeepSpeed configuration with ZeRO-3 would split them while they load.

    The engine splits all weights of the model later, those of encoders among them.
    """
    from transformers.integrations import deepspeed

    config = getattr(deepspeed, "_hf_deepspeed_config_weak_ref", None)
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config
