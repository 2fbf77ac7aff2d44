"""Replicas: tensors that must have the same bits on every rank. They are compared, and copied from rank 0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor


def broadcast_from_rank0(tensors: Mapping[str, Tensor]) -> None:
    """Copy rank 0's values to all ranks, buffers too: not every engine broadcasts them at its start."""
    for tensor in tensors.values():
        dist.broadcast(tensor.detach(), src=0)


def checksum(tensor: Tensor) -> Tensor:
    """The sum of the elements' bit patterns as one int64 []: a change of any single element changes it."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    tensor = tensor.detach()
    bits = tensor.contiguous().view(kinds[tensor.itemsize]) if tensor.itemsize in kinds else tensor
    return bits.sum(dtype=torch.int64)


def find_divergent_replicas(
    tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None
) -> list[tuple[int, str]]:
    """(rank, tensor name) of each tensor that differs from the majority's, or without one from rank 0's.

    A collective: all ranks call it and get the same list. `group` reduces CPU tensors.
    """
    own = torch.stack([checksum(t) for t in tensors.values()]).cpu()
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, own, group=group)
    sums = torch.stack(everyone)  # [ranks, tensors]
    divergent = []
    for i, name in enumerate(tensors):
        column = sums[:, i].tolist()
        # Of equally common values the first one, rank 0's: two ranks have no majority.
        common = max(column, key=column.count)
        divergent += [(rank, name) for rank, value in enumerate(column) if value != common]
    return sorted(divergent)


def resync_from_rank0(
    tensors: Mapping[str, Tensor], names: Iterable[str], optimizer: torch.optim.Optimizer
) -> None:
    """Copy rank 0's named tensors to all ranks, and their optimizer state unless it is partitioned."""
    for name in names:
        tensor = tensors[name]
        dist.broadcast(tensor.detach(), src=0)
        # Under ZeRO the state is partitioned: it has no replicas that could differ.
        for state in optimizer.state.get(tensor, {}).values():
            if isinstance(state, Tensor) and state.device == tensor.device:
                dist.broadcast(state, src=0)
