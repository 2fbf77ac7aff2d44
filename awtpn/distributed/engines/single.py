"""One process without other ranks: nothing wraps the model (but DDP, where torchrun starts a lone rank)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import nn

from awtpn.distributed.engines.base import Engine, MemoryUse


@contextlib.contextmanager
def accumulate(accelerator: Accelerator, model: nn.Module, last: bool) -> Iterator[None]:
    """See `Engine`; there is nothing to reduce."""
    accelerator.sync_gradients = last  # Accelerate's optimizer steps only where it is True
    yield


def wrap(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, precision: str
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """See `Engine`."""
    # The model is on its device already. To place it, Accelerate would look for DTensors in it, and importing
    # them takes a third of a second.
    wrapped, wrapped_optimizer = accelerator.prepare(model, optimizer, device_placement=[False, True])
    return wrapped, wrapped_optimizer


SINGLE = Engine(
    accumulate,
    wrap=wrap,
    loss_factor=lambda ranks, accumulation: 1,
    memory=MemoryUse(),
    splits_micro_batches=True,
)
