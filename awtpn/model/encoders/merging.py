"""Saves a trained encoder as a Hugging Face folder, which `awtpn extract` and `open_encoder` open again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import Tensor

from awtpn.model.encoders.base import Encoder
from awtpn.model.encoders.opening import quiet_transformers
from awtpn.model.encoders.structure import layers_name


def save_merged(encoder: Encoder, folder: Path) -> None:
    """Write configuration, weights and processor, with the weights of LoRA added to those that they change.

    Of a Whisper the folder holds the encoder only. The live encoder is not changed.

    Args:
        encoder: whose weights are whole, not split over ranks.
        folder: is made; files of the same names are overwritten.
    """
    network: Any = encoder.network
    whisper = network.config.model_type == "whisper"
    prefix = "encoder." if whisper else ""
    state = {f"{prefix}{name}": weight for name, weight in merged_state(encoder).items()}
    config: Any = copy.deepcopy(encoder.original)
    # What is not in the folder.
    for name, value in (("add_adapter", False), ("decoder_layers", 0)):
        if hasattr(config, name):
            setattr(config, name, value)
    live = network.config
    network.config = config  # save_pretrained writes it
    try:
        with quiet_transformers():
            network.save_pretrained(folder, state_dict=state)
    finally:
        network.config = live
    if whisper:
        config.architectures = ["WhisperModel"]
        config.save_pretrained(folder)
    encoder.processor.save_pretrained(folder)


def merged_state(encoder: Encoder) -> dict[str, Tensor]:
    """All weights of the model by their names in it, on the CPU, as without LoRA; with the layers above."""
    network = encoder.network
    state = {}
    for name, weight in network.state_dict().items():
        if ".lora_" not in name:
            state[name.replace(".base_layer.", ".")] = weight.detach().cpu().contiguous()
    for name, module in network.named_modules():
        if hasattr(module, "get_delta_weight"):
            for adapter in module.active_adapters:
                delta = module.get_delta_weight(adapter).detach().cpu()
                state[f"{name}.weight"] = state[f"{name}.weight"] + delta.to(state[f"{name}.weight"].dtype)
    layers, first = layers_name(network), encoder.layers - len(encoder.above)
    for number, layer in enumerate(encoder.above, start=first):
        for name, weight in layer.state_dict().items():
            state[f"{layers}.{number}.{name}"] = weight.detach().cpu().contiguous()
    return state
