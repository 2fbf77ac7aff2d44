"""Sound as recorded -> features of wav2vec 2.0, HuBERT, WavLM or Whisper, as `awtpn extract` makes them.

The int16 samples of all windows are gathered into one padded batch on the device and prepared there as the
model's own feature extractor does: zero mean and unit variance per window, or Whisper's log-mel spectrum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from awtpn.model.device import to_device_async
from awtpn.model.encoders.base import Encoder
from awtpn.model.encoders.group_norm import replace_group_norm
from awtpn.model.encoders.settings import EncoderSettings
from awtpn.model.encoders.wavlm import call_projections
from shards import Ragged
from shards.extraction.encoders.windows import SoundWindows
from shards.format.recording import FULL_SCALE

VARIANCE_FLOOR = 1e-7  # of the feature extractors
MEL_FLOOR = 1e-10
EXTRACTORS = ("Wav2Vec2FeatureExtractor", "WhisperFeatureExtractor")


class AudioEncoder(Encoder):
    """An encoder of sound; see `Encoder`."""

    modality = "audio"

    def __init__(
        self,
        network: Any,
        config: EncoderSettings,
        settings: dict[str, Any],
        extractor: Any,
        sound: SoundWindows,
    ) -> None:
        """Take a network over; `extractor` is its feature extractor, the other arguments are of `Encoder`."""
        if type(extractor).__name__ not in EXTRACTORS:
            raise ValueError(
                f"{config.model}: its {type(extractor).__name__} is not one that a model is trained with; "
                f"use a model with {' or '.join(EXTRACTORS)}"
            )
        super().__init__(network, config, settings, extractor)
        self.sound = sound
        # A tuple, so that it is found once only, as a module of the network.
        self._norms = tuple(filter(None, [replace_group_norm(network)]))
        if network.config.model_type == "wavlm":
            call_projections(network)
        # No buffers, which would be cast to bfloat16 with the weights.
        self._mel = torch.from_numpy(extractor.mel_filters).float().T if sound.fixed else None

    def lengths(self, recordings: Ragged) -> list[int]:
        """Samples of each utterance."""
        if recordings.samples is None:
            return [n * recordings.values.shape[1] for n in recordings.host_lengths]
        found: list[int] = recordings.samples.tolist()
        return found

    def seconds(self, length: int) -> float:
        """Duration of so many samples."""
        return length / self.sound.rate

    def centers(self, length: int) -> np.ndarray:
        """Seconds at which the hidden steps of so many samples are."""
        return self.sound.centers(length)

    def windows(self, length: int) -> list[int]:
        """Samples that the model is given, by window, of so many; of Whisper always all of its 30 s."""
        return [self.sound.given(end - start) for start, end in self.sound.cut(length)]

    @property
    def per_pass(self) -> int:
        """Samples of a pass, padding included."""
        return round(self.config.pass_seconds * self.sound.rate)

    def encode(self, recordings: Ragged, lengths: Sequence[int]) -> tuple[Tensor, list[np.ndarray]]:
        """Hidden steps [windows * steps, dim], and the rows of each utterance's."""
        device, samples = recordings.values.device, recordings.values.reshape(-1)
        per_step = recordings.values.shape[1]
        cuts = [self.sound.cut(length) for length in lengths]
        firsts = [int(first) * per_step for first in recordings.host_offsets[:-1]]
        # First sample, true samples and given samples of each window; a silent one if there is none.
        found = [
            (first + start, end - start, self.sound.given(end - start))
            for first, cut in zip(firsts, cuts, strict=True)
            for start, end in cut
        ] or [(0, 0, self.sound.given(0))]
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            starts, true, given = to_device_async(np.array(found).T, device)
            longest = max(size for _, _, size in found)
            waves = gather_waves(samples, starts, true, longest)
            inputs = self.prepare(waves, given)
        for norm in self._norms:
            conv = self.network.feature_extractor.conv_layers[0].conv
            kernel, stride = conv.kernel_size[0], conv.stride[0]
            norm.frames = tuple((size - kernel) // stride + 1 for _, _, size in found)
        hidden, _ = self.run(inputs)
        steps = hidden.shape[1]
        places, window = [], 0
        for cut in cuts:
            own = [np.zeros(0, np.int64)]
            for start, end in cut:
                own.append(window * steps + np.arange(self.sound.steps_of(end - start)))
                window += 1
            places.append(np.concatenate(own))
        return hidden.flatten(0, 1), places

    def prepare(self, waves: Tensor, given: Tensor) -> dict[str, Tensor]:
        """The network's input, of float32 waves [windows, samples]; the first `given` of each count."""
        if self._mel is not None:
            self._mel = self._mel.to(waves.device)
            features = log_mel(waves, self._mel, self.processor.n_fft, self.processor.hop_length)
            return {"input_features": features.to(self.dtype)}
        valid = torch.arange(waves.shape[1], device=waves.device) < given[:, None]
        if self.processor.do_normalize:
            waves = torch.where(valid, normalized(waves, valid), self.processor.padding_value)
        return {"input_values": waves.to(self.dtype), "attention_mask": valid.to(torch.int32)}


def gather_waves(samples: Tensor, starts: Tensor, true: Tensor, longest: int) -> Tensor:
    """Padded windows float32 [windows, longest] in -1 to 1, of int16 samples one after another.

    Args:
        samples: [S].
        starts: [windows], first sample of each.
        true: [windows], samples of each; the rest is silence.
        longest: samples of the longest, padding included.
    """
    within = torch.arange(longest, device=samples.device)
    valid = within < true[:, None]
    if not len(samples):
        return torch.zeros(valid.shape, device=samples.device)
    places = (starts[:, None] + within).clamp(max=len(samples) - 1)
    return torch.where(valid, samples[places].float() / FULL_SCALE, 0.0)


def normalized(waves: Tensor, valid: Tensor) -> Tensor:
    """Waves [windows, samples] of zero mean and unit variance over their valid samples."""
    count = valid.sum(1, keepdim=True)
    centered = (waves - (waves * valid).sum(1, keepdim=True) / count) * valid
    variance = centered.square().sum(1, keepdim=True) / count
    return centered / (variance + VARIANCE_FLOOR).sqrt()


def log_mel(waves: Tensor, filters: Tensor, fft: int, hop: int) -> Tensor:
    """Whisper's log-mel spectra [windows, bands, samples / hop] of waves [windows, samples].

    Radford et al. (2023): log10 of power in mel bands, at least the window's maximum - 8; (x + 4) / 4.

    Args:
        filters: [bands, fft / 2 + 1].
        fft: samples of a frame.
        hop: samples from one frame to the next.
    """
    hann = torch.hann_window(fft, device=waves.device)
    frames = torch.stft(waves, fft, hop, window=hann, return_complex=True)
    bands = filters @ frames[..., :-1].abs().square()
    logs = bands.clamp(min=MEL_FLOOR).log10()
    return (torch.maximum(logs, logs.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0
