"""Count the values that a computation allocates: deterministic, and on the meta device without memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


@dataclass
class Count:
    values: int = 0


class _Allocations(TorchDispatchMode):
    def __init__(self, count: Count) -> None:
        super().__init__()
        self.count = count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in known:
                self.count.values = max(self.count.values, tensor.numel())
        return result


@contextlib.contextmanager
def largest_allocation() -> Iterator[Count]:
    """Values in the largest tensor that any operation allocates (views and in-place results do not count)."""
    count = Count()
    with _Allocations(count):
        yield count


@contextlib.contextmanager
def saved_for_backward() -> Iterator[Count]:
    """Values that autograd keeps between forward and backward; counts each tensor once."""
    count, seen = Count(), {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen[storage._cdata] = tensor  # keep a reference, so that no other storage gets its address
            count.values += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield count


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """New tensors have shapes but no values; reading a value fails."""
    with autocast_ignores_meta(), torch.device("meta"):
        yield


@contextlib.contextmanager
def autocast_ignores_meta() -> Iterator[None]:
    """Make autocast do nothing on the meta device, which it does not support."""
    autocast = torch.autocast

    def tolerant(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return contextlib.nullcontext() if device_type == "meta" else autocast(device_type, *args, **kwargs)

    torch.autocast = tolerant  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        torch.autocast = autocast  # type: ignore[misc]
