"""Hugging Face audio models: wav2vec 2.0, HuBERT, WavLM, and the encoder of Whisper.

A wave is cut into consecutive windows of equal length, at most as long as the model takes (Whisper: its 30 s;
others 60 s, since the cost of attention grows with the square). Windows of similar length are run together,
and the hidden steps of a layer (20 ms apart in most models) are averaged over steps of `step_seconds`.
"""

from __future__ import annotations

from math import ceil
from typing import Any, ClassVar

import numpy as np

from shards.extraction.encoders.hf import (
    LocatedModel,
    layer_number,
    load_model,
    load_processor,
    versions,
)
from shards.extraction.encoders.pooling import pool

LONGEST_WINDOW_S = 60.0


class HFAudio:
    """Audio encoder, see the module; attributes as `shards.extraction.encoders` says.

    Args:
        model: the model.
        device: where it runs.
        dtype: what it computes in.
        layer: hidden layer whose output is used: 0 is the first layer's input, -1 the last layer's output.
        step_seconds: seconds of a step, over which hidden steps are averaged.
        batch_seconds: seconds of sound, padding included, that the model is given at once.

    Raises:
        ValueError: what cannot be loaded or done, by name.
    """

    modality = "audio"
    architectures: ClassVar = {
        "hubert": "HubertModel",
        "wav2vec2": "Wav2Vec2Model",
        "wavlm": "WavLMModel",
        "whisper": "WhisperModel",
    }

    def __init__(
        self,
        model: LocatedModel,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        layer: int = -1,
        step_seconds: float = 0.1,
        batch_seconds: float = 120.0,
    ) -> None:
        spec, kind = model.spec, model.model_type
        self._extractor = load_processor(model, "AutoFeatureExtractor")
        # An adapter would change the rate of the last layer.
        changes = {"add_adapter": False} if kind == "wav2vec2" else {}
        network = load_model(model, self.architectures[kind], device, dtype, **changes)
        self._whisper = kind == "whisper"
        self._separately: Any = None
        self._layers = network.config.num_hidden_layers
        self._layer = layer_number(layer, self._layers, spec)
        self.rate = int(self._extractor.sampling_rate)
        if self._whisper:
            network = network.get_encoder()
            # Mel frames are centered on their sample, and the second convolution takes every other one.
            self._stride, self._field = 2 * self._extractor.hop_length, 0
            self._window = int(self._extractor.n_samples)
        else:
            self._stride, self._field = _convolutions(network.config.conv_kernel, network.config.conv_stride)
            self._window = round(LONGEST_WINDOW_S * self.rate)
            if network.config.feat_extract_norm == "group":
                self._separately = network.feature_extractor = _run_separately(network.feature_extractor)
        if step_seconds * self.rate < self._stride:
            raise ValueError(
                f"{spec}: step_seconds={step_seconds:g}; the model's own steps are "
                f"{self._stride / self.rate:g} s long, and steps cannot be shorter"
            )
        self._model, self._device, self._batch = network, device, round(batch_seconds * self.rate)
        self.name = spec
        self.dim = int(network.config.hidden_size)
        self.step_seconds = step_seconds
        self.settings: dict[str, Any] = {
            **model.origin,
            "model_type": kind,
            "layer": self._layer,
            "rate": self.rate,
            "step_seconds": step_seconds,
            "window_seconds": self._window / self.rate,
            "dtype": dtype,
            "versions": versions(self._extractor),
        }

    def encode(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        """[T, dim] for each wave float32 [samples] at `rate`."""
        windows = [(i, start, end) for i, wave in enumerate(waves) for start, end in self._windows(len(wave))]
        # Longest first: a batch that does not fit into memory fails at once.
        windows.sort(key=lambda window: window[1] - window[2])
        hidden: dict[tuple[int, int], np.ndarray] = {}
        at = 0
        while at < len(windows):
            longest = windows[at][2] - windows[at][1]
            batch = windows[at : at + max(1, self._batch // (self._window if self._whisper else longest))]
            encoded = self._hidden([waves[i][start:end] for i, start, end in batch])
            hidden.update({(i, start): steps for (i, start, _), steps in zip(batch, encoded, strict=True)})
            at += len(batch)
        return [self._pooled(i, len(wave), hidden) for i, wave in enumerate(waves)]

    def _windows(self, samples: int) -> list[tuple[int, int]]:
        """Consecutive windows of about equal length, each but the last a whole number of hidden steps."""
        if not samples:
            return []
        count = ceil(samples / self._window)
        length = min(self._window, ceil(samples / count / self._stride) * self._stride)
        return [(start, min(samples, start + length)) for start in range(0, samples, length)]

    def _pooled(self, i: int, samples: int, hidden: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
        starts = [start for start, _ in self._windows(samples)]
        if not starts:
            return np.zeros((0, self.dim), np.float32)
        centers = [
            start + self._field / 2 + self._stride * np.arange(len(hidden[i, start])) for start in starts
        ]
        steps = np.concatenate([hidden[i, start] for start in starts])
        return pool(steps, np.concatenate(centers) / self.rate, samples / self.rate, self.step_seconds)

    def _hidden(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        """Hidden steps [H, dim] of each window, without those of padding."""
        import torch

        # A window shorter than one hidden step is padded with silence.
        waves = [np.pad(wave, (0, max(0, self._field - len(wave)))) for wave in waves]
        inputs = self._extractor(
            waves,
            sampling_rate=self.rate,
            return_tensors="pt",
            **({} if self._whisper else {"padding": True, "return_attention_mask": True}),
        )
        values = inputs["input_features" if self._whisper else "input_values"]
        values = values.to(self._device, self._model.dtype)
        more = {}
        if not self._whisper:
            more["attention_mask"] = inputs["attention_mask"].to(self._device)
            if self._separately is not None:
                self._separately.lengths = [len(wave) for wave in waves]
        with torch.inference_mode():
            output = self._model(values, output_hidden_states=self._layer < self._layers, **more)
        # The last layer's output is taken after the norm that closes some models.
        last = self._layer == self._layers
        steps = output.last_hidden_state if last else output.hidden_states[self._layer]
        steps = steps.float().cpu().numpy()
        return [own[: self._steps_of(len(wave))] for own, wave in zip(steps, waves, strict=True)]

    def _steps_of(self, samples: int) -> int:
        if self._whisper:
            return ceil(samples / self._stride)
        return (samples - self._field) // self._stride + 1


def _convolutions(kernels: list[int], strides: list[int]) -> tuple[int, int]:
    """(stride, receptive field) in samples of a stack of convolutions without padding."""
    stride, field = 1, 1
    for kernel, by in zip(kernels, strides, strict=True):
        field += (kernel - 1) * stride
        stride *= by
    return stride, field


def _run_separately(convolutions: Any) -> Any:
    """Convolutions with a group norm, run on one unpadded wave at a time; the rest of the model is batched.

    The norm averages over time: with padding, a wave's features would depend on the batch's longest wave.
    """
    import torch

    class RunSeparately(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = convolutions
            self.lengths: list[int] = []

        def forward(self, waves: Any) -> Any:
            alone = [self.inner(wave[None, :n])[0].T for wave, n in zip(waves, self.lengths, strict=True)]
            return torch.nn.utils.rnn.pad_sequence(alone, batch_first=True).transpose(1, 2)

    return RunSeparately()
