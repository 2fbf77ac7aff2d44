"""TODO."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from awtpn.model.network import AWTPN


def replicated_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers that every rank should hold alike: all but ZeRO-3's partitions."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: t for name, t in tensors.items() if not _is_partitioned(t)}


def _is_partitioned(tensor: Tensor) -> bool:
    return hasattr(tensor, "ds_id") and not getattr(tensor, "ds_persist", False)


@torch.no_grad()
def gather_prototypes(model: AWTPN) -> Tensor:
    """The whole table [C*K, D] as float32 on the host; under ZeRO-3 a collective, so every rank calls."""
    table: Any = model.tpn.prototypes
    if hasattr(table, "ds_id"):
        from deepspeed.runtime.zero import GatheredParameters, ZeroParamStatus

        # Small tensors, which are not partitioned while the model trains, are before its first step.
        if table.ds_status != ZeroParamStatus.AVAILABLE:
            with GatheredParameters([table]):
                return _on_host(table)
    return _on_host(table)


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().clone()


def broadcast_from_rank0(tensors: Mapping[str, Tensor]) -> None:
    """Give every rank rank 0's values: an explicit start, since DeepSpeed leaves buffers out."""
    for tensor in tensors.values():
        dist.broadcast(tensor.detach(), src=0)


def checksum(tensor: Tensor) -> Tensor:
    """The sum of a tensor's bit patterns as one int64: any change of a single element changes it."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    tensor = tensor.detach()
    bits = tensor.contiguous().view(kinds[tensor.itemsize]) if tensor.itemsize in kinds else tensor
    return bits.sum(dtype=torch.int64)


def find_divergent_replicas(
    tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None
) -> list[tuple[int, str]]:
    """(rank, tensor name) wherever a rank differs from the majority; from rank 0 where there is none.

    All ranks call it and all get the same list. `group` reduces CPU tensors.
    """
    own = torch.stack([checksum(t) for t in tensors.values()]).cpu()
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, own, group=group)
    sums = torch.stack(everyone)  # [ranks, tensors]
    found = []
    for i, name in enumerate(tensors):
        column = sums[:, i].tolist()
        # Of equally common values rank 0's: with two ranks there is no majority.
        common = max(column, key=column.count)
        found += [(rank, name) for rank, value in enumerate(column) if value != common]
    return sorted(found)


def resync_from_rank0(
    tensors: Mapping[str, Tensor], names: Iterable[str], optimizer: torch.optim.Optimizer
) -> None:
    """Give every rank rank 0's value of the named tensors, and of their optimizer state where it is local."""
    for name in names:
        tensor = tensors[name]
        dist.broadcast(tensor.detach(), src=0)
        # Under ZeRO the state is partitioned: it has no replicas that could differ.
        for state in optimizer.state.get(tensor, {}).values():
            if isinstance(state, Tensor) and state.device == tensor.device:
                dist.broadcast(state, src=0)
