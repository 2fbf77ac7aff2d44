"""Learning rates and weight decay of encoders' weights: groups of the optimizer that follow the schedule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from training_encoders_support import model_of_recordings, small_encoders

from awtpn.learning.optimizer import LR_SCALE, learning_rate, make_optimizer, set_learning_rate
from awtpn.learning.settings import OptimConfig
from awtpn.model.base import EmotionModel

OPTIM = OptimConfig(lr=1e-2, weight_decay=0.3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return small_encoders(tmp_path_factory.mktemp("encoders"))


def made(folders: dict[str, str], **settings: Any) -> tuple[EmotionModel, torch.optim.AdamW]:
    model = model_of_recordings(folders, settings)
    return model, make_optimizer(model, OPTIM)


def groups_of(model: EmotionModel, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """The group of each weight, by its name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: group for group in optimizer.param_groups for p in group["params"]}


def rates(model: EmotionModel, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    return {name: group["lr"] for name, group in groups_of(model, optimizer).items()}


@pytest.mark.parametrize("tune", ["full", "lora", "last-1-layers", "frozen"])
def test_every_trained_weight_is_in_one_group(folders: dict[str, str], tune: str) -> None:
    model, optimizer = made(folders, tune=tune)
    listed = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {p for p in model.parameters() if p.requires_grad}
    of_encoders = [name for name in groups_of(model, optimizer) if name.startswith("encoders.")]
    assert bool(of_encoders) == (tune != "frozen")
    assert sorted(of_encoders) == sorted(model.trained_of_encoders())


@pytest.mark.parametrize(
    ("tune", "lr", "expected"), [("full", None, 1e-5), ("lora", None, 1e-4), ("full", 2e-4, 2e-4)]
)
def test_encoders_have_their_own_peak_and_follow_the_schedule(
    folders: dict[str, str], tune: str, lr: float | None, expected: float
) -> None:
    model, optimizer = made(folders, tune=tune, lr=lr)
    for step in (0, 3, 70):
        now = learning_rate(OPTIM, step, 100)
        set_learning_rate(optimizer, now)
        for name, rate in rates(model, optimizer).items():
            of_encoder = name.startswith("encoders.")
            assert rate == pytest.approx(now * (expected / OPTIM.lr if of_encoder else 1), rel=1e-12), name
    assert {group["weight_decay"] for group in optimizer.param_groups} == {OPTIM.weight_decay}


def test_lower_layers_learn_more_slowly(folders: dict[str, str]) -> None:
    model, optimizer = made(folders, tune="full", lr=1e-3, lr_decay=0.5, freeze_features=False)
    set_learning_rate(optimizer, OPTIM.lr)
    found = rates(model, optimizer)
    for name, expected in {
        "classifier.weight": OPTIM.lr,
        "encoders.audio.network.encoder.layers.1.attention.q_proj.weight": 1e-3,
        "encoders.audio.network.encoder.layers.0.attention.q_proj.weight": 5e-4,
        "encoders.audio.network.feature_extractor.conv_layers.0.conv.weight": 2.5e-4,
        "encoders.video.network.layernorm.weight": 1e-3,
        "encoders.video.network.embeddings.cls_token": 2.5e-4,
    }.items():
        assert found[name] == pytest.approx(expected, rel=1e-12), name
    assert {group[LR_SCALE] for group in optimizer.param_groups} == {1.0, 0.1, 0.05, 0.025}


def test_weight_decay_is_the_encoders_own(folders: dict[str, str]) -> None:
    """With gradients of zero, a step multiplies each weight by 1 - its rate x its decay."""
    model, optimizer = made(folders, tune="last-1-layers", lr=1e-3, weight_decay=0.0)
    set_learning_rate(optimizer, OPTIM.lr)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1.0 if name.startswith("encoders.") else 1 - OPTIM.lr * OPTIM.weight_decay
        torch.testing.assert_close(parameter.detach(), before[name] * factor, msg=name)


def test_a_model_of_features_has_one_group(folders: dict[str, str]) -> None:
    model, optimizer = made(folders, tune="frozen")
    (group,) = optimizer.param_groups
    assert group[LR_SCALE] == 1.0
    set_learning_rate(optimizer, 0.123)
    assert set(rates(model, optimizer).values()) == {0.123}
