"""Hugging Face audio models: wav2vec 2.0, HuBERT, WavLM, and the encoder of Whisper.

A wave is cut into consecutive windows of equal length, at most as long as the model takes (`windows`). Those
of similar length are run together, and the hidden steps of a layer (20 ms apart in most models) are averaged
over steps of `step_seconds`.
"""

from __future__ import annotations

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
from shards.extraction.encoders.windows import sound_windows


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
        network = load_network(model, device, dtype)
        self._separately: Any = None
        self._layers = network.config.num_hidden_layers
        self._layer = layer_number(layer, self._layers, spec)
        self._windows = sound_windows(network.config, self._extractor)
        self._whisper = self._windows.fixed
        self.rate = self._windows.rate
        if not self._whisper and network.config.feat_extract_norm == "group":
            self._separately = network.feature_extractor = _run_separately(network.feature_extractor)
        self._windows.check_step(spec, step_seconds)
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
            "window_seconds": self._windows.longest / self.rate,
            "dtype": dtype,
            "versions": versions(self._extractor),
        }

    def encode(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        """[T, dim] for each wave float32 [samples] at `rate`."""
        windows = [(i, start, end) for i, wave in enumerate(waves) for start, end in self._cut(wave)]
        # Longest first: a batch that does not fit into memory fails at once.
        windows.sort(key=lambda window: window[1] - window[2])
        hidden: dict[tuple[int, int], np.ndarray] = {}
        at = 0
        while at < len(windows):
            longest = windows[at][2] - windows[at][1]
            window = self._windows.longest if self._whisper else longest
            batch = windows[at : at + max(1, self._batch // window)]
            encoded = self._hidden([waves[i][start:end] for i, start, end in batch])
            hidden.update({(i, start): steps for (i, start, _), steps in zip(batch, encoded, strict=True)})
            at += len(batch)
        return [self._pooled(i, wave, hidden) for i, wave in enumerate(waves)]

    def _cut(self, wave: np.ndarray) -> list[tuple[int, int]]:
        return self._windows.cut(len(wave))

    def _pooled(self, i: int, wave: np.ndarray, hidden: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
        steps = [np.zeros((0, self.dim), np.float32), *(hidden[i, start] for start, _ in self._cut(wave))]
        centers, seconds = self._windows.centers(len(wave)), len(wave) / self.rate
        return pool(np.concatenate(steps), centers, seconds, self.step_seconds)

    def _hidden(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        """Hidden steps [H, dim] of each window, without those of padding."""
        import torch

        # A window shorter than one hidden step is padded with silence.
        field = self._windows.field
        waves = [np.pad(wave, (0, max(0, field - len(wave)))) for wave in waves]
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
        return [own[: self._windows.steps_of(len(wave))] for own, wave in zip(steps, waves, strict=True)]


def load_network(model: LocatedModel, device: str, dtype: str, **changes: Any) -> Any:
    """The network that encodes sound; of Whisper its encoder.

    Args:
        model: what to load.
        device: where it is to run.
        dtype: what it computes in.
        changes: of its configuration.

    Raises:
        ValueError: weights missing or unfit for the configuration.
    """
    architecture = HFAudio.architectures[model.model_type]
    if model.model_type == "whisper":
        return load_model(model, architecture, device, dtype, ("decoder.",), **changes).get_encoder()
    if model.model_type == "wav2vec2":
        changes["add_adapter"] = False  # an adapter would change the rate of the last layer
    return load_model(model, architecture, device, dtype, **changes)


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
