"""FLOPs of encoders that are trained with the model, counted by torch on a network without memory.

`torch.utils.flop_counter` counts matrix products, convolutions and attention of a forward pass; a
multiplication and an addition are two FLOPs. Backward takes twice forward where weights are trained, as much
as forward where gradients only pass (LoRA), nothing below the lowest trained layer; checkpointing computes
forward of these layers once more. What comes before the layers is counted in proportion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from awtpn.bench.encoder_memory.activations import Pass
from awtpn.bench.encoder_memory.shape import Shape, meta_encoder
from awtpn.model.encoders.opening import CLASSES, own_config, quiet_transformers
from awtpn.model.encoders.settings import EncoderSettings
from awtpn.model.encoders.tuning import training_changes
from awtpn.model.encoders.video import preparation_of
from shards.extraction.encoders.hf import load_processor, locate_settings

SECONDS = (1, 3, 9)  # of windows of sound, to which a parabola is fitted


@dataclass(frozen=True)
class EncoderCost:
    """FLOPs of an encoder.

    Attributes:
        window: coefficients of the forward FLOPs of a window of so many samples: square, linear, constant. Of
            pictures a window has one size, and only the constant counts.
        backward: FLOPs of backward, divided by those of forward.
    """

    window: tuple[float, float, float]
    backward: float

    def forward_flops(self, of: Pass) -> float:
        """Of a pass, in which all windows are as long as the longest."""
        square, linear, constant = self.window
        return of.windows * (square * of.size**2 + linear * of.size + constant)


def encoder_cost(modality: str, settings: EncoderSettings, shape: Shape) -> EncoderCost:
    """Count the FLOPs of the encoder that the settings name; no weights are read.

    Args:
        shape: of the same encoder, from `open_shape`.
    """
    model = locate_settings(settings.model, settings.revision)
    architecture = CLASSES[modality].architectures[model.model_type]
    with quiet_transformers():
        config = own_config(model, architecture)
        for name, value in training_changes(config, settings.dropout).items():
            setattr(config, name, value)
        encoder = meta_encoder(modality, settings, config, architecture)
        if modality == "audio":
            window = _of_sound(encoder, shape, config)
        else:
            crop = preparation_of(
                load_processor(model, "AutoImageProcessor"), settings.model, config.model_type == "videomae"
            ).crop
            window = (0.0, 0.0, _of_pictures(encoder, shape, config, crop))
    return EncoderCost(window, backward_share(shape))


def _of_sound(encoder: Any, shape: Shape, config: Any) -> tuple[float, float, float]:
    rate = getattr(shape.windows, "rate", 0)
    if config.model_type == "whisper":
        frames = 2 * int(config.max_source_positions)
        return 0.0, 0.0, counted(encoder, {"input_features": (1, int(config.num_mel_bins), frames)})
    sizes = [seconds * rate for seconds in SECONDS]
    found = [counted(encoder, {"input_values": (1, size)}) for size in sizes]
    square, linear, constant = np.polyfit(sizes, found, 2).tolist()
    return square, linear, constant


def _of_pictures(encoder: Any, shape: Shape, config: Any, crop: int) -> float:
    frames = getattr(shape.windows, "frames", 1)
    size = (1, frames, 3, crop, crop) if config.model_type == "videomae" else (frames, 3, crop, crop)
    return counted(encoder, {"pixel_values": size})


def counted(encoder: Any, inputs: dict[str, tuple[int, ...]]) -> float:
    """FLOPs of one forward pass of tensors of these shapes."""
    encoder.eval()
    given = {name: torch.empty(size, device="meta") for name, size in inputs.items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder.run(given)
    return float(counter.get_total_flops())


def backward_share(shape: Shape) -> float:
    """FLOPs of backward, divided by those of forward."""
    learning = shape.learning / max(1, shape.layers)
    passing = (2 if shape.trains_layers else 1) * learning
    return passing + (learning if shape.settings.checkpointing else 0.0)
