"""torch's DistributedDataParallel: every rank holds the whole model; gradients are averaged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from accelerate import Accelerator
from torch import nn

from awtpn.distributed.engines.base import Engine, MemoryUse


@contextlib.contextmanager
def accumulate(accelerator: Accelerator, model: nn.Module, last: bool) -> Iterator[None]:
    """See `Engine`."""
    accelerator.sync_gradients = last  # Accelerate's optimizer steps only where it is True
    with contextlib.nullcontext() if last else accelerator.no_sync(model):
        yield


# It splits no micro-batches: DDP reduces gradients in hooks of one backward pass.
DDP = Engine(
    accumulate,
    loss_factor=lambda ranks, accumulation: ranks,
    memory=MemoryUse(gradient_copy=True),
)
