"""Small things on their way to the device, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def send(
    values: NDArray[Any] | Sequence[float], device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """An array as a tensor on `device`; its dtype is the array's own unless another is asked for.

    From pageable memory a copy to a GPU would wait until the device has done all that was asked of it before.
    From page-locked memory it joins the queue, and PyTorch keeps the memory until it is done.
    """
    tensor = torch.as_tensor(values, dtype=dtype)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
