"""Saves a trained encoder as a Hugging Face folder, which `awtpn extract` and `open_encoder` open again."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from awtpn.model.encoders.base import Encoder
from awtpn.model.encoders.card import ENCODER_FILES, folder_of
from awtpn.model.encoders.opening import quiet_transformers
from awtpn.model.encoders.readme import readme_of_merged
from awtpn.model.encoders.structure import layers_name
from shards.extraction.encoders.hf import README, locate
from shards.safe_io.bounded_json import read_json
from shards.safe_io.json_text import json_text

PRIVATE = "_name_or_path"  # of a configuration: where it was read from


def export_encoders(encoders: nn.ModuleDict, out: Path) -> dict[str, Any]:
    """Write each encoder with its trained weights into `out`, so that an export needs nothing else.

    Args:
        encoders: of a model, with whole weights.
        out: the folder of the export; they are in its folders encoders/audio and encoders/video.

    Returns:
        The records for the card (see `card`), in which each is frozen and names its folder.
    """
    found = {}
    for modality, module in encoders.items():
        encoder = cast(Encoder, module)
        folder = out / folder_of(modality)
        base = encoder.base or base_of(encoder)
        save_merged(encoder, folder)
        (folder / README).write_text(readme_of_merged(base, encoder.licence))
        missing = [name for name in ENCODER_FILES if not (folder / name).is_file()]
        assert not missing, missing
        model = locate(str(folder), None, modality)
        config = replace(encoder.config, model=folder_of(modality), revision=None, tune="frozen")
        origin = {"id": modality, "sha256": model.origin["sha256"], "model_type": model.model_type}
        settings = {n: value for n, value in encoder.settings.items() if n not in ("path", "revision")}
        found[modality] = {
            "config": config.record(),
            "settings": settings | origin,
            "recording": asdict(encoder.recording),
            "folder": folder_of(modality),
            "base": base,
            **({} if encoder.licence is None else {"licence": encoder.licence}),
        }
    return found


def base_of(encoder: Encoder) -> dict[str, Any]:
    """What an encoder was made from and how, for the record of a merged one."""
    named = ("id", "revision", "sha256")
    known = {name: encoder.settings[name] for name in named if name in encoder.settings}
    return known | {"tune": encoder.config.tune}


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
    for path in folder.glob("*.json"):
        _drop_private(path)


def _drop_private(path: Path) -> None:
    """Leave out of a file of settings where its model was read from."""
    settings = read_json(path)
    if isinstance(settings, Mapping) and PRIVATE in settings:
        kept = {name: value for name, value in settings.items() if name != PRIVATE}
        path.write_text(json_text(kept, indent=2) + "\n")


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
