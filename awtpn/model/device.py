"""Choose a device; copy small arrays to it without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def resolve_device(name: torch.device | str) -> torch.device:
    """The device that a name such as "cpu", "cuda" or "cuda:1" stands for.

    Raises:
        ValueError: there is no such device here.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name}: no such kind of device; write cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name}: PyTorch sees {torch.cuda.device_count()} GPUs here; use cpu, or install its "
            "CUDA build where there is a GPU"
        )
    return device


def to_device_async(
    values: NDArray[Any] | Sequence[float], device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """Copy an array into a tensor on `device`; `dtype` defaults to the array's.

    A copy from pageable memory to a GPU waits until the GPU has finished all earlier work. A copy from
    page-locked memory is queued instead, and PyTorch keeps that memory until the copy is done.
    """
    tensor = torch.as_tensor(values, dtype=dtype)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
