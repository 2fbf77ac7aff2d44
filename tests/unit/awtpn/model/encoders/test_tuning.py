"""Which weights of an encoder are trained, and how fast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders_in_models_support import MODELS, SHORT, features, opened, ragged, recordings_of

from awtpn.model.encoders.base import Encoder
from awtpn.model.encoders.structure import is_feature, layers_of
from awtpn.model.encoders.tuning import lr_scales

TUNES = ("frozen", "lora", "last-1-layers", "full")


def trained(encoder: Encoder) -> dict[str, torch.Tensor]:
    return {name: w for name, w in encoder.named_parameters() if w.requires_grad}


def gradients(encoder: Encoder, modality: str, lengths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Gradients of all weights after a pass; the seed fixes dropout."""
    encoder.zero_grad()
    torch.manual_seed(0)
    values = encoder(ragged(recordings_of(modality, *lengths))).values
    if values.requires_grad:
        (values * torch.linspace(0.5, 1.5, values.shape[1])).square().sum().backward()
    return {name: w.grad.clone() for name, w in encoder.named_parameters() if w.grad is not None}


@pytest.mark.parametrize("tune", TUNES)
@pytest.mark.parametrize(("modality", "name"), MODELS)
def test_gradients_reach_the_weights_that_are_tuned(
    modality: str, name: str, tune: str, folder_of: Callable[[str, str], Path]
) -> None:
    encoder = opened(modality, folder_of(modality, name), tune).train()
    chosen = trained(encoder)
    found = gradients(encoder, modality, SHORT[modality])
    assert found.keys() == chosen.keys()
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    if tune == "frozen":
        assert not chosen
        return
    # At first B of LoRA is 0, and so is the gradient of A. A bias of keys changes no attention.
    changed = {n for n, gradient in found.items() if gradient.abs().max() > 0}
    assert {n for n in chosen if ".lora_A." not in n and "k_proj.bias" not in n} <= changed
    prefixes = {"lora": ".lora_", "last-1-layers": ".2.", "full": "network."}
    layered = [n for n in chosen if "layer.2." in n or "layers.2." in n]
    if tune == "lora":
        assert len(chosen) == 3 * 2 * 2
        assert all(prefixes[tune] in n for n in chosen)
    elif tune == "last-1-layers":
        after = [n for n in chosen if n not in layered]
        assert layered
        assert all("norm" in n or ".head." in n for n in after)
    else:
        frozen = {n for n, w in encoder.named_parameters() if not w.requires_grad}
        assert {n for n, _ in encoder.named_parameters() if is_feature(n.removeprefix("network."))} <= frozen
        assert all(is_feature(n.removeprefix("network.")) or "spec" in n or "positions" in n for n in frozen)
    # A pass without any utterance: all trained weights have a gradient, of zeros.
    nothing = gradients(encoder, modality, (0, 0))
    assert nothing.keys() == chosen.keys()
    assert not any(gradient.any() for gradient in nothing.values())


@pytest.mark.parametrize(
    ("modality", "name", "settings"),
    [(*model, {"tune": "lora"}) for model in MODELS]
    + [("audio", "wav2vec2", {"tune": "full", "freeze_features": False})],
)
def test_checkpointing_changes_no_gradient(
    modality: str, name: str, settings: dict[str, Any], folder_of: Callable[[str, str], Path]
) -> None:
    """With dropout: it is drawn again as it was."""
    folder = folder_of(modality, name)

    def gradients_with(checkpointing: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)  # A of LoRA is random
        encoder = opened(modality, folder, checkpointing=checkpointing, dropout=0.2, **settings).train()
        return gradients(encoder, modality, SHORT[modality])

    found, reference = gradients_with(True), gradients_with(False)
    assert found.keys() == reference.keys()
    for n, gradient in found.items():
        torch.testing.assert_close(gradient, reference[n], atol=1e-5, rtol=1e-4)
    assert any(gradient.any() for gradient in found.values())


@pytest.mark.parametrize(("modality", "name"), MODELS)
def test_lora_starts_as_the_model_and_changes_it(
    modality: str, name: str, folder_of: Callable[[str, str], Path]
) -> None:
    folder, recordings = folder_of(modality, name), recordings_of(modality, *SHORT[modality])
    base, encoder = (opened(modality, folder, tune) for tune in ("frozen", "lora"))
    expected = np.concatenate(features(base, recordings))
    np.testing.assert_array_equal(np.concatenate(features(encoder, recordings)), expected)
    with torch.no_grad():
        for weight in trained(encoder).values():
            weight.add_(0.3)
    assert np.abs(np.concatenate(features(encoder, recordings)) - expected).max() > 1e-3


@pytest.mark.parametrize(("modality", "name"), MODELS)
def test_dropout_is_random_in_training_only(
    modality: str, name: str, folder_of: Callable[[str, str], Path]
) -> None:
    """And nothing else is: no layer and no part of the input is left out."""
    folder, recordings = folder_of(modality, name), recordings_of(modality, *SHORT[modality])
    for tune, dropout, random in (("full", 0.5, True), ("full", 0.0, False), ("frozen", 0.5, False)):
        encoder = opened(modality, folder, tune, dropout=dropout)
        training = np.concatenate(features(encoder.train(), recordings))
        plain = np.concatenate(features(encoder.eval(), recordings))
        assert (np.abs(training - plain).max() > 1e-3) == random


@pytest.mark.parametrize(("modality", "name"), MODELS)
def test_features_are_trained_where_that_is_asked_for_and_learning_rates_fall_from_layer_to_layer(
    modality: str, name: str, folder_of: Callable[[str, str], Path]
) -> None:
    folder = folder_of(modality, name)
    encoder = opened(modality, folder, "full", freeze_features=False, lr_decay=0.5).train()
    assert gradients(encoder, modality, SHORT[modality]).keys() == trained(encoder).keys()
    frozen = {n for n, w in encoder.named_parameters() if not w.requires_grad}
    assert all("spec" in n or "mask_token" in n or "embed_positions" in n for n in frozen)
    scales = lr_scales(encoder)
    assert scales.keys() == trained(encoder).keys()
    layers = layers_of(encoder.network)
    for number, layer in enumerate(layers):
        own = {id(weight) for weight in layer.parameters()}
        found = {scales[n] for n, w in encoder.named_parameters() if id(w) in own and w.requires_grad}
        assert found == {0.5 ** (2 - number)}
    lowest = [n for n in scales if is_feature(n.removeprefix("network."))]
    assert lowest
    assert {scales[n] for n in lowest} == {0.125}
    assert set(scales.values()) <= {1.0, 0.5, 0.25, 0.125}


def test_what_no_feature_depends_on_is_not_trained(folder_of: Callable[[str, str], Path]) -> None:
    for modality, name in MODELS:
        encoder = opened(modality, folder_of(modality, name), "full", layer=1, freeze_features=False).train()
        assert (encoder.layer, len(layers_of(encoder.network)), len(encoder.above)) == (1, 1, 2)
        found = gradients(encoder, modality, SHORT[modality])
        assert found.keys() == trained(encoder).keys()
        assert set(lr_scales(encoder).values()) == {1.0}


def test_what_cannot_be_trained_is_refused(folder_of: Callable[[str, str], Path]) -> None:
    folder = folder_of("audio", "hubert")
    with pytest.raises(ValueError, match=r"encoder.audio.tune is last-4-layers, but .* has 3 layers"):
        opened("audio", folder, "last-4-layers")
    with pytest.raises(ValueError, match=r"encoder.audio.tune is lora, which trains no weight of "):
        opened("audio", folder, "lora", layer=0)
