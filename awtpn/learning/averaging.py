"""Averaged weights: a moving average of every trainable weight over optimizer steps (`train.ema_decay`).

After the n-th step that was not skipped:

    average <- c * average + (1 - c) * weight,    c = min(decay, (n - 1) / (n + 8))

The first average is the weight itself, so no share of it belongs to random initial values. c rises slowly, as
in TensorFlow's ExponentialMovingAverage, so that the averages of short runs follow their weights.

An average is an entry of the optimizer's state, beside Adam's moments. So it belongs to the same tensor that
the optimizer updates: a parameter, or under ZeRO a rank's own partition of the float32 weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

AVERAGE = "average"
States = Mapping[Tensor, dict[str, Any]]
"""The state of an optimizer: of each tensor that it has updated, "step" (a tensor []), the moments, and
AVERAGE where weights are averaged."""


def kept_share(decay: float, step: Tensor) -> Tensor:
    """c of the equation above, [], from the number of steps []; stays on the device."""
    return ((step - 1) / (step + 8)).clamp(max=decay)


@torch.no_grad()
def update_averages(states: States, weights: Iterable[Tensor], decay: float, skipped: Tensor) -> None:
    """Move the averages towards weights that the optimizer has just updated.

    Args:
        states: of the optimizer; tensors without one had no gradient yet, and are left out.
        weights: the optimizer's tensors, of any shape.
        decay: `train.ema_decay`.
        skipped: 1.0 if the step was skipped, else 0.0 []; a skipped step changes no average.
    """
    for weight in weights:
        if not (state := states.get(weight)):
            continue
        current = weight.detach().float()
        if AVERAGE not in state:
            state[AVERAGE] = current.clone()
        state[AVERAGE].lerp_(current, (1 - kept_share(decay, state["step"])) * (1 - skipped))


@torch.no_grad()
def swap_averages(states: States) -> None:
    """Exchange the values of each weight and its average. A second call restores both to the bit."""
    for weight, state in states.items():
        if AVERAGE in state:
            average = state[AVERAGE].clone()
            state[AVERAGE].copy_(weight)
            weight.copy_(average)
