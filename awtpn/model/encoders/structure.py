"""Where the parts of a Hugging Face encoder are: what comes before its layers, the layers, what follows them.

A weight's depth is 0 before the layers, 1 to n in layer 1 to n, and n + 1 in what follows them.
"""

from __future__ import annotations

from typing import Any

from torch import nn

# Names of the list of layers, by architecture and version of transformers.
LAYERS = ("layers", "layer")
# How the names of weights before the layers begin.
BEFORE = (
    *("feature_extractor.", "feature_projection.", "encoder.pos_conv_embed.", "masked_spec_embed"),
    *("conv1.", "conv2.", "embed_positions."),
    *("embeddings.", "pre_layrnorm."),
)
# Of these, what turns sound or pictures into vectors.
FEATURES = ("feature_extractor.", "conv1.", "conv2.", "embeddings.")
# Weights that are never trained: no features depend on them, or they are fixed (Whisper's sines).
FIXED = ("masked_spec_embed", "embeddings.mask_token", "embed_positions.")
# Projections of the queries and values of attention.
ADAPTED = ("q_proj", "v_proj", "query", "value")


def layers_of(network: nn.Module) -> list[nn.Module]:
    """The transformer layers from bottom to top."""
    return list(_list_of_layers(network)[1])


def cut_above(network: nn.Module, layers: int) -> list[nn.Module]:
    """Take the layers above the first `layers` out of the network, and return them."""
    owner, found, name = _list_of_layers(network)
    above = list(found[layers:])
    if above:
        setattr(owner, name, nn.ModuleList(found[:layers]))
    return above


def layers_name(network: nn.Module) -> str:
    """The name of the list of layers in the network, such as "encoder.layers"."""
    found = _list_of_layers(network)[1]
    return next(name for name, module in network.named_modules() if module is found)


def depths(network: Any) -> dict[str, int]:
    """The depth of each weight, by its name in the network; see the module."""
    layers, top = layers_name(network) + ".", len(layers_of(network)) + 1
    before: tuple[str, ...] = BEFORE
    # One of two kinds has its norm after the layers; Whisper's and pictures' norms have other names.
    if not getattr(network.config, "do_stable_layer_norm", True):
        before += ("encoder.layer_norm.",)
    found = {}
    for name, _ in network.named_parameters():
        if name.startswith(layers):
            found[name] = 1 + int(name[len(layers) :].partition(".")[0])
        else:
            found[name] = 0 if _plain(name).startswith(before) else top
    return found


def is_feature(name: str) -> bool:
    """Whether a weight belongs to the convolutions of sound, or to the embeddings of pictures."""
    return _plain(name).startswith(FEATURES)


def is_fixed(name: str) -> bool:
    """Whether a weight is never trained."""
    return _plain(name).startswith(FIXED)


def adapted_names(network: nn.Module) -> list[str]:
    """The names of the linear maps to queries and values in the layers."""
    prefix = layers_name(network) + "."
    return [
        name
        for name, module in network.named_modules()
        if name.startswith(prefix) and name.rpartition(".")[2] in ADAPTED and isinstance(module, nn.Linear)
    ]


def _plain(name: str) -> str:
    # Some versions of transformers keep the tower of pictures in a module of its own.
    return name.removeprefix("vision_model.")


def _list_of_layers(network: nn.Module) -> tuple[nn.Module, nn.ModuleList, str]:
    """The module that has the layers, their list, and its name there."""
    for owner in network.modules():
        for name, module in owner.named_children():
            if name in LAYERS and isinstance(module, nn.ModuleList):
                return owner, module, name
    raise AssertionError(f"{type(network).__name__} has no list of layers")
