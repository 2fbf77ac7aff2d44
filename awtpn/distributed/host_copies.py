"""Float32 copies of tensors on the host, in memory that is kept from one checkpoint to the next.

New memory for each checkpoint would be slower: the system clears each of its pages, and on a GPU's host
page-locked memory takes long to get. Copies from a GPU run beside the host, which goes on at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class HostCopies:
    """Holds one copy for each name. Before the next `add` of a name, its former copy must not be in use."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def add(self, name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype | None) -> Tensor:
        """Copy a tensor of any device.

        Args:
            name: of the copy.
            tensor: with as many elements as `shape` has.
            shape: of the copy.
            dtype: of the copy; None: as the tensor has it.

        Returns:
            The copy. Of a GPU's tensor it is complete only after `wait`.
        """
        dtype = dtype or tensor.dtype
        own = self._kept.get(name)
        if own is None or own.shape != torch.Size(shape) or own.dtype != dtype:
            own = torch.empty(tuple(shape), dtype=dtype, pin_memory=tensor.is_cuda)
            self._kept[name] = own
        own.copy_(tensor.detach().reshape(tuple(shape)), non_blocking=True)
        if tensor.is_cuda:
            # Later kernels of this stream, which change the tensor or reuse its memory, come after the copy.
            self._copied = self._copied or torch.cuda.Event()
            self._copied.record()
        return own

    def wait(self) -> None:
        """Wait until all copies are complete; any thread may call."""
        if self._copied is not None:
            self._copied.synchronize()
