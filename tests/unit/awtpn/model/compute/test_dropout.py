"""The model's dropout on CPUs is that of `nn.Dropout`, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from awtpn.model.compute.dropout import Dropout


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("contiguous", [True, False])
def test_values_gradients_and_generator_are_those_of_nn_dropout(
    p: float, dtype: torch.dtype, training: bool, contiguous: bool
) -> None:
    found = []
    for make in (nn.Dropout, Dropout):
        torch.manual_seed(3)
        x = torch.randn(70, 11, 13, dtype=dtype)
        x = (x if contiguous else x.transpose(0, 1)).requires_grad_()
        y = make(p).train(training)(x)
        (gradient,) = torch.autograd.grad(y.square().sum(), x)
        found.append((y.detach(), gradient, torch.get_rng_state()))
    for theirs, ours in zip(*found, strict=True):
        assert torch.equal(theirs, ours)


def test_an_empty_batch_draws_nothing() -> None:
    before = torch.get_rng_state()
    assert Dropout(0.5)(torch.zeros(0, 8)).shape == (0, 8)
    assert torch.equal(torch.get_rng_state(), before)
