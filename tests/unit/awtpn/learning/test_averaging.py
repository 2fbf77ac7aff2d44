"""Averaged weights: the equation by hand, steps that are skipped, and the exchange for a validation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from awtpn.learning.averaging import AVERAGE, kept_share, swap_averages
from awtpn.learning.optimizer import GuardedAdamW, learning_rate, make_optimizer
from awtpn.learning.settings import OptimConfig


def stepped(decay: float, gradients: list[float]) -> tuple[nn.Linear, GuardedAdamW, list[torch.Tensor]]:
    """A layer after steps with these gradients, its optimizer, and its weight after each step."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = make_optimizer(model, OptimConfig(lr=0.1), decay)
    assert isinstance(optimizer, GuardedAdamW)
    weights = []
    for gradient in gradients:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
        weights.append(model.weight.detach().clone())
    return model, optimizer, weights


def test_the_average_follows_the_weights_by_the_equation() -> None:
    model, optimizer, weights = stepped(0.3, [1.0, -2.0, 3.0, 1.0, 1.0, -1.0, 2.0, 1.0])
    average = torch.zeros_like(weights[0])
    kept = [0.0, 1 / 10, 2 / 11, 3 / 12, 0.3, 0.3, 0.3, 0.3]  # 4 / 13 is above the decay
    for c, weight in zip(kept, weights, strict=True):
        average = c * average + (1 - c) * weight
    torch.testing.assert_close(optimizer.state[model.weight][AVERAGE], average)
    assert kept_share(0.999, torch.tensor(10_000.0)) == pytest.approx(0.999)


def test_a_skipped_step_changes_no_average() -> None:
    """The first one, too: engines that skip it without a call of the optimizer have the same averages."""
    some = [1.0, -2.0, 3.0]
    model, optimizer, _ = stepped(0.9, [math.inf, 1.0, math.nan, *some[1:], math.inf])
    other, of_other, _ = stepped(0.9, some)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(optimizer.state[ours][AVERAGE], of_other.state[theirs][AVERAGE])


def test_weights_and_averages_are_exchanged_and_restored_to_the_bit() -> None:
    model, optimizer, weights = stepped(0.9, [1.0, -2.0, 3.0])
    average = optimizer.state[model.weight][AVERAGE].clone()
    swap_averages(optimizer.state)
    assert torch.equal(model.weight, average)
    assert not torch.equal(average, weights[-1])
    swap_averages(optimizer.state)
    assert torch.equal(model.weight, weights[-1])
    assert torch.equal(optimizer.state[model.weight][AVERAGE], average)


def test_without_a_decay_there_are_no_averages() -> None:
    model, optimizer, weights = stepped(0.0, [1.0])
    assert AVERAGE not in optimizer.state[model.weight]
    swap_averages(optimizer.state)
    assert torch.equal(model.weight, weights[-1])


def test_warm_up_is_a_share_of_the_steps_where_one_is_given() -> None:
    share, fixed = OptimConfig(lr=1.0, warmup_share=0.1), OptimConfig(lr=1.0, warmup_steps=40)
    assert [learning_rate(share, s, 400) for s in range(400)] == [
        learning_rate(fixed, s, 400) for s in range(400)
    ]
    assert learning_rate(OptimConfig(lr=1.0, warmup_share=0.0), 0, 400) == 1.0
    with pytest.raises(ValueError, match=r"optim\.warmup_share must lie in \[0, 1\), not 1\.5"):
        OptimConfig(warmup_share=1.5).validate()
