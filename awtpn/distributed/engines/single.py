"""One process without other ranks: nothing wraps the model (but DDP, where torchrun starts a lone rank)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from accelerate import Accelerator
from torch import nn

from awtpn.distributed.engines.base import Engine, MemoryUse


@contextlib.contextmanager
def accumulate(accelerator: Accelerator, model: nn.Module, last: bool) -> Iterator[None]:
    """See `Engine`; there is nothing to reduce."""
    accelerator.sync_gradients = last  # Accelerate's optimizer steps only where it is True
    yield


SINGLE = Engine(
    accumulate,
    loss_factor=lambda ranks, accumulation: 1,
    memory=MemoryUse(),
    splits_micro_batches=True,
)
