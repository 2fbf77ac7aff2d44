"""Which weights of an encoder are trained, and how fast: `EncoderSettings.tune`, LoRA, decay over layers."""

from __future__ import annotations

from typing import Any

from awtpn.model.encoders.base import Encoder
from awtpn.model.encoders.structure import adapted_names, depths, is_feature, is_fixed, layers_of

# Settings of a model that leave out layers or parts of its input at random in training. A layer must be
# computed on all ranks or on none, and the input is changed before the encoder instead.
RANDOM_OFF = {
    "layerdrop": 0.0,
    "encoder_layerdrop": 0.0,
    "drop_path_rate": 0.0,
    "apply_spec_augment": False,
}


def training_changes(config: Any, dropout: float | None) -> dict[str, Any]:
    """Changes of a model's own configuration for training.

    Args:
        config: of the model.
        dropout: of all its parts; None: its own.
    """
    names = config.to_dict()
    changes = {name: value for name, value in RANDOM_OFF.items() if name in names}
    if dropout is not None:
        changes |= {
            name: dropout
            for name, value in names.items()
            if "dropout" in name and isinstance(value, int | float) and not isinstance(value, bool)
        }
    return changes


def tune(encoder: Encoder) -> None:
    """Make the weights trainable that `encoder.config` says, and only these.

    Weights that no feature depends on are never trained.

    Raises:
        ValueError: that leaves no weight, or there are fewer layers.
        ImportError: peft is missing.
    """
    config, network = encoder.config, encoder.network
    key = f"encoder.{encoder.modality}.tune"
    network.requires_grad_(False)
    if config.trained_layers is not None and config.trained_layers > encoder.layer:
        raise ValueError(
            f"{key} is {config.tune}, but {config.model} has {encoder.layer} layers up to the one whose "
            "output is used; take fewer, or full"
        )
    if config.tune == "lora" and encoder.layer:
        add_lora(encoder)
    elif config.tune != "lora" and config.is_trained:
        lowest = 0 if config.trained_layers is None else encoder.layer - config.trained_layers + 1
        of = depths(network)
        for name, weight in network.named_parameters():
            chosen = lowest <= of[name] and is_used(encoder, of[name]) and not is_fixed(name)
            weight.requires_grad_(chosen and not (config.freeze_features and is_feature(name)))
    if config.is_trained and not any(weight.requires_grad for weight in network.parameters()):
        raise ValueError(
            f"{key} is {config.tune}, which trains no weight of {config.model} below layer {encoder.layer}, "
            "whose output is used; take frozen, or a higher layer"
        )
    convolutions = getattr(network, "feature_extractor", None)
    if convolutions is not None and not any(weight.requires_grad for weight in convolutions.parameters()):
        # Otherwise it asks for the gradient of its input in training, and keeps all activations for that.
        convolutions._freeze_parameters()
    if config.checkpointing:
        checkpoint_layers(network)


def is_used(encoder: Encoder, depth: int) -> bool:
    """Whether the features depend on weights of this depth, see `structure`."""
    return depth <= encoder.layer or encoder.layer == encoder.layers


def add_lora(encoder: Encoder) -> None:
    """Add trainable low-rank matrices to the projections of queries and values (Hu et al., 2021).

    W becomes W + alpha / rank * B A; B is zero at first.

    Raises:
        ValueError: the installed version of transformers does not call the projections.
        ImportError: peft is missing.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError(
            f"encoder.{encoder.modality}.tune lora needs the package peft ({error}); "
            "pip install 'awtpn-at-scale[finetune]'"
        ) from None
    if any(hasattr(module, "q_bias") for module in encoder.network.modules()):
        # There VideoMAE uses the weights of its projections without calling them: LoRA would have no effect.
        raise ValueError(
            f"encoder.{encoder.modality}.tune lora does not work with VideoMAE in this version of "
            "transformers; pip install --upgrade transformers, or take last-N-layers"
        )
    config = encoder.config
    names = adapted_names(encoder.network)
    assert names, f"no projections of queries and values in {type(encoder.network).__name__}"
    lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=names)  # type: ignore[arg-type]
    inject_adapter_in_model(lora, encoder.network)


def checkpoint_layers(network: Any) -> None:
    """Compute each transformer layer again in the backward pass, in place of keeping its activations."""
    # The former name is deprecated, but the only one in earlier versions.
    enable = (
        getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
    )
    enable({"use_reentrant": False})
    layers = layers_of(network)
    for module in network.modules():
        # Convolutions are not computed again: they depend on the lengths of the latest batch.
        if getattr(module, "gradient_checkpointing", False) and not any(module is layer for layer in layers):
            module.gradient_checkpointing = False


def lr_scales(encoder: Encoder) -> dict[str, float]:
    """Factor of the learning rate of each trained weight, by its name in the encoder.

    1 in the layer whose output is used and in what follows it, `lr_decay` times that of the layer above in
    each other layer, and one step below the lowest layer in what comes before the layers.
    """
    of = depths(encoder.network)
    return {
        f"network.{name}": encoder.config.lr_decay ** max(0, encoder.layer - of[name])
        for name, weight in encoder.network.named_parameters()
        if weight.requires_grad
    }
