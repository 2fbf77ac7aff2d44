"""Refuses a model's folder whose configuration describes more weights than its files hold.

Whoever shares a model writes both its card and the configuration of its encoders. Missing weights would be
filled with random numbers, so a forged configuration could ask for any amount of memory.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from shards.extraction.encoders.hf import SAFE_WEIGHTS, LocatedModel

# Of a Whisper, only the encoder is stored, and the decoder's embeddings of tokens are made at random.
UNSTORED = 1 << 27


def check_size(model: LocatedModel, config: Any, architecture: str) -> None:
    """Compare the numbers of weights; takes no memory for them. Pickled weights are not looked at.

    Args:
        model: where its files are.
        config: its configuration.
        architecture: name of the class.

    Raises:
        ValueError: there are far more by the configuration, or a file is damaged.
    """
    import transformers

    sizes = stored_sizes(model)
    if not sizes:
        return
    described = UNSTORED + sum(sizes) + 1
    # Each layer has weights. To build very many, even without memory, would take hours.
    if _most_layers(config.to_dict()) <= len(sizes):
        try:
            with torch.device("meta"):
                network: Any = getattr(transformers, architecture)(config)
        except (RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
            raise ValueError(
                f"{model.spec}: {model.folder / 'config.json'} is not that of a model "
                f"({' '.join(str(error).split()):.200})"
            ) from None
        described = sum(weight.numel() for weight in network.parameters())
    spare = UNSTORED if model.model_type == "whisper" else 0
    # A pooler, say, which no features depend on, may be missing in the files.
    if described > 2 * sum(sizes) + spare:
        raise ValueError(
            f"{model.spec}: {model.folder / 'config.json'} describes a larger model than the weights beside "
            "it are of: get the files of that model"
        )


def stored_sizes(model: LocatedModel) -> list[int]:
    """Numbers of each stored tensor; [] where there are no safetensors. Reads only the headers.

    Raises:
        ValueError: a file is damaged.
    """
    sizes = []
    for path in sorted({path for pattern in SAFE_WEIGHTS for path in model.folder.glob(pattern)}):
        if path.suffix != ".safetensors":
            continue
        try:
            with safe_open(path, "pt") as file:
                shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{model.spec}: {path} is damaged ({error!s:.200})") from None
        sizes += [int(torch.Size(shape).numel()) for shape in shapes]
    return sizes


def _most_layers(settings: dict[Any, Any]) -> int:
    """The largest number of layers of any kind in a configuration."""
    found = [0]
    for name, value in settings.items():
        if isinstance(value, dict):
            found.append(_most_layers(value))
        elif "layers" in str(name) and isinstance(value, int):
            found.append(value)
    return max(found)
