"""What encoders of sound and of pictures share: from the hidden steps of a Hugging Face model to features.

All that depends on the lengths of recordings is computed on the host. A forward is one call of the network,
whatever the recordings are: under ZeRO-3 each call of a module is a collective. Where no utterance has the
modality, the network is given the least that it takes, and its output is cut off, so that its weights get a
gradient of zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from awtpn.model.device import to_device_async
from awtpn.model.encoders.settings import EncoderSettings
from awtpn.model.encoders.structure import cut_above, layers_of
from awtpn.model.segments import segment_mean, utterance_of_step
from shards import Ragged
from shards.extraction.encoders.pooling import spans
from shards.format.recording import Recording


class Encoder(nn.Module):
    """A Hugging Face model that turns the recordings of a modality into features, and is trained.

    Attributes:
        modality: "audio" or "video".
        dim: features of a time step.
        step_seconds: length of a time step.
        settings: what decides the features, as of the encoders of `awtpn extract`, without the numeric type
            and versions of libraries.
        config: how it is trained.
        network: the model, of the layers that are used.
        above: the layers above, which are kept for `merging` only; no part of the module.
        recording: what the dataset holds of the modality.
        original: the model's own configuration, without changes for training.
        layer: the hidden layer whose output is used, of `layers`.
        licence: of the base model, by its README; None if that does not say.
        base: of an encoder that was merged: what it was made from and how, see `card`; else None.
        folder: of an encoder that an export holds: its folder there, such as "encoders/audio"; else None.
    """

    modality = ""
    original: Any = None
    recording: Recording
    licence: str | None = None
    base: dict[str, Any] | None = None
    folder: str | None = None

    def __init__(
        self,
        network: Any,
        config: EncoderSettings,
        settings: dict[str, Any],
        processor: Any,
    ) -> None:
        """Take a network over.

        Args:
            network: with all its layers.
            config: how it is trained.
            settings: see the attributes; "layer" and "step_seconds" are used.
            processor: Hugging Face's own of its input.
        """
        super().__init__()
        self.config = config
        self.settings = settings
        self.processor = processor
        self.dim = int(network.config.hidden_size)
        self.step_seconds = float(settings["step_seconds"])
        self.layer = int(settings["layer"])
        self.layers = len(layers_of(network))
        # Layer 0 is the input of the first one, which is kept to take it from.
        self.above = cut_above(network, max(1, self.layer))
        self.network = network

    def forward(self, recordings: Ragged) -> Ragged:
        """Features float32 [T, dim] of the recordings of B utterances; some or all may be empty.

        An utterance has as many time steps as `awtpn extract` gives it with the same encoder.
        """
        lengths = self.lengths(recordings)
        hidden, places = self.encode(recordings, lengths)
        found = [spans(self.centers(n), self.seconds(n), self.step_seconds) for n in lengths]
        host_offsets = torch.tensor([0, *np.cumsum([len(steps) for steps in found])], dtype=torch.int32)
        return Ragged(
            values=means_of(hidden, places, found),
            offsets=to_device_async(host_offsets.numpy(), hidden.device),
            host_offsets=host_offsets,
        )

    def encode(self, recordings: Ragged, lengths: Sequence[int]) -> tuple[Tensor, list[np.ndarray]]:
        """The model's own steps [R, dim] of all windows, and the rows of each utterance's among them."""
        raise NotImplementedError

    def lengths(self, recordings: Ragged) -> list[int]:
        """Samples or pictures of each utterance."""
        raise NotImplementedError

    def seconds(self, length: int) -> float:
        """Duration of so many samples or pictures."""
        raise NotImplementedError

    def centers(self, length: int) -> np.ndarray:
        """Seconds at which the model's own steps of so many samples or pictures are."""
        raise NotImplementedError

    def windows(self, length: int) -> list[int]:
        """Sizes, in samples or pictures, of what the model is given of so many samples or pictures."""
        raise NotImplementedError

    @property
    def per_pass(self) -> int:
        """Samples or pictures, padding included, of one forward and backward pass."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Encoder:
        """As of all modules; the network of an encoder that is not trained stays without dropout."""
        super().train(mode and self.config.is_trained)
        self.training = mode
        return self

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the network's weights are in."""
        return next(self.network.parameters()).dtype

    def run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Any]:
        """Call the network: hidden states [windows, steps, dim] of the layer, and all of its output.

        The last layer's output is taken after the norm that closes some models.
        """
        if self.layer == self.layers:
            output = self.network(**inputs)
            return output.last_hidden_state, output
        taken: list[Tensor] = []
        layer = layers_of(self.network)[max(0, self.layer - 1)]
        if self.layer:
            hook = layer.register_forward_hook(lambda _, given, out: taken.append(_first(out)))
        else:
            hook = layer.register_forward_pre_hook(
                lambda _, given, named: taken.append(given[0] if given else named["hidden_states"]),
                with_kwargs=True,
            )
        try:
            output = self.network(**inputs)
        finally:
            hook.remove()
        return taken[0], output


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def means_of(hidden: Tensor, places: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> Tensor:
    """Means of hidden steps over time steps.

    Args:
        hidden: [R, dim], rows of all utterances.
        places: per utterance the rows of its own steps, in order.
        found: per utterance [T, 2], begin and end in its own steps of each time step (`spans`).

    Returns:
        [sum T, dim], float32 or wider.
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    if not sum(map(len, found)):
        return hidden[:0].to(wide)
    rows, counts = [], []
    for own, steps in zip(places, found, strict=True):
        count = steps[:, 1] - steps[:, 0]
        # begin, begin + 1, ..., end - 1 of each time step, one after another.
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        rows.append(own[np.repeat(steps[:, 0], count) + within])
        counts.append(count)
    of_steps = np.concatenate(counts)
    offsets = to_device_async(np.concatenate([[0], np.cumsum(of_steps)]), hidden.device)
    chosen = to_device_async(np.concatenate(rows), hidden.device)
    return segment_mean(hidden[chosen].to(wide), offsets, utterance_of_step(offsets, len(chosen)))
