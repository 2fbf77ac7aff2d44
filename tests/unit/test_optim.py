"""A step whose gradients are no numbers to go by changes nothing, whatever clipping has made of them."""

from __future__ import annotations

import math

import pytest
import torch
from step_support import make_run
from support import batch, small_model, utterances
from torch import nn

from awtpn.config import Config
from awtpn.model import AWTPN
from awtpn.optim import GuardedAdamW, make_optimizer, tell_norm
from awtpn.trainer import train_step

BATCH = batch(utterances([(4, 3), (2, 5)] * 4, dtype=torch.float32), [0, 1, 2, 0, 1, 2, 0, 1])


class Engine:
    """What Accelerate does for one process."""

    backward = staticmethod(torch.Tensor.backward)
    clip_grad_norm_ = staticmethod(nn.utils.clip_grad_norm_)
    sync_gradients = True


def moments(model: AWTPN, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Weights, moments and counted steps."""
    of_adam = [t for p in model.parameters() for t in optimizer.state[p].values()]
    return [t.detach().clone() for t in [*model.parameters(), *of_adam]]


@pytest.mark.parametrize("factor", [1e30, math.inf, math.nan], ids=["norm overflows", "infinite", "NaN"])
def test_a_step_that_cannot_be_clipped_changes_nothing(factor: float) -> None:
    """Finite gradients of a norm beyond float32 are clipped to 0: weights and moments would decay."""
    config, model = Config(), small_model(dtype=torch.float32)
    optimizer = make_optimizer(model, config.optim)
    run = make_run(config, model, optimizer, Engine(), torch.device("cpu"), len(BATCH))
    train_step(run, BATCH, data_wait=0.0)
    before = moments(model, optimizer)

    bad = model.classifier.weight.register_hook(lambda gradient: gradient.sign() * factor)
    train_step(run, BATCH, data_wait=0.0)
    bad.remove()
    assert not torch.isfinite(run.pending[1]["grad_norm"])
    assert all(torch.equal(x, y) for x, y in zip(before, moments(model, optimizer), strict=True))

    train_step(run, BATCH, data_wait=0.0)
    assert torch.isfinite(run.pending[2]["grad_norm"])
    assert not any(torch.equal(x, y) for x, y in zip(before, moments(model, optimizer), strict=True))


def test_a_gradient_scaler_keeps_its_say() -> None:
    """fp16's scaler finds what is not finite, and skips; of the norm it knows nothing."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = GuardedAdamW([weight], lr=0.1, fused=True)
    for gradient, norm, moves in ((1.0, 1.0, True), (math.inf, 1.0, False), (1.0, math.inf, False)):
        before = weight.detach().clone()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        scaler.scale(weight.sum()).backward()
        weight.grad = torch.full_like(weight, 2 * gradient)
        scaler.unscale_(optimizer)
        tell_norm(optimizer, torch.tensor(norm))
        scaler.step(optimizer)
        assert torch.equal(weight, before) is not moves
        optimizer.zero_grad()
    assert not hasattr(optimizer, "found_inf")
