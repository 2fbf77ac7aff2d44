"""The prototype table's life: where it starts, how class means move it, and how ranks keep one table.

Learned by gradient, the table is reduced over ranks like any parameter. Moved by class means (EMA), it is
a float32 buffer that every rank updates identically from one reduced sum per optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from awtpn.finite_outputs import FiniteOutputs
from awtpn.model import AWTPN, ModelOutput
from shards import FeatureBatch

# Utterances that initialise the table from data, in plan order.
INIT_UTTERANCES = 1024
LLOYD_ITERATIONS = 10


@dataclass
class PrototypesConfig:
    """How the prototype table starts, moves and is watched."""

    update: Literal["gradient", "ema"] = "gradient"
    """gradient: learned like any parameter; ema: moving averages of class means."""
    init: Literal["random", "data"] = "random"
    """random: N(0, 0.02^2); data: class means (K = 1) or k-means++ within each class (K > 1)."""
    ema_decay: float = 0.99
    """Share of the old table that an EMA step keeps."""
    check_every: int = 100
    """Steps between comparisons of the table and all replicated weights over ranks; 0: never."""
    on_drift: Literal["error", "heal"] = "error"
    """When ranks differ: stop and name the rank, or take rank 0's tensors and optimizer state."""

    def validate(self) -> None:
        """Raise ValueError, naming the key, for a setting that no table can have."""
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"prototypes.ema_decay must lie in [0, 1), not {self.ema_decay}")
        if self.check_every < 0:
            raise ValueError(f"prototypes.check_every must not be negative, but is {self.check_every}")


# --- Start ---------------------------------------------------------------------------------------


@torch.no_grad()
def initialise_from_data(
    model: AWTPN,
    batches: Iterable[FeatureBatch],
    steps: int,
    batch_size: int,
    device: torch.device,
    seed: int,
    from_all: Callable[[Any], list[Any]] = lambda value: [value],
) -> None:
    """Set the table to class means (K = 1) or k-means++ centres within each class (K > 1).

    The vectors are the plain time means of the first `steps` global batches' utterances in the shared
    space, one per modality that an utterance has. All ranks see all of them, each in its place, and
    compute the same table; no layout changes it. A class without utterances keeps its random prototypes.

    Args:
        model: before any engine has wrapped it; every rank holds all of it.
        batches: this rank's share of those global batches, in eval order.
        batch_size: places of a global batch.
        from_all: `World.from_all`: the value of every rank, on every rank.

    Raises:
        NotFiniteError: some utterances' vectors are not finite; names them, on every rank.
    """
    finite = FiniteOutputs()
    modalities = model.config.modalities
    rows = torch.zeros(steps * batch_size, len(modalities), model.config.shared_dim, device=device)
    label_of_row = torch.zeros(steps * batch_size, len(modalities), dtype=torch.int64, device=device)
    training = model.training
    model.eval()
    for batch in batches:
        output = model(batch.to(device).features)
        place = batch.step * batch_size + batch.place.to(device)
        for m, modality in enumerate(modalities):
            stream = output.streams[modality]
            rows[place, m] = stream.mean.float()
            label_of_row[place, m] = torch.where(stream.present, batch.label.to(device) + 1, 0)
        finite.add(batch.key, rows[place].square().sum(-1))  # distances are of squares, which overflow first
    model.train(training)
    finite.check(from_all, "prototypes.init=data, utterances to train on")
    if dist.is_initialized():
        # Each row is non-zero on one rank, so the sum is exact whatever the number of ranks.
        dist.all_reduce(rows)
        dist.all_reduce(label_of_row)
    rows, labels = rows.flatten(0, 1).cpu(), label_of_row.flatten().cpu() - 1
    table = model.tpn.prototypes.detach().cpu().float().view(len(model.classes), -1, model.config.shared_dim)
    for c in range(len(model.classes)):
        of_class = rows[labels == c]
        if len(of_class):
            table[c] = k_means(of_class, table.shape[1], torch.Generator().manual_seed(seed + c))
    model.tpn.prototypes.copy_(table.flatten(0, 1))


def k_means(points: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """k centres [k, D] of `points` [n, D] by k-means++ seeding and Lloyd's iterations; the mean for k = 1."""
    centres = points[torch.randint(len(points), (1,), generator=generator)]
    while len(centres) < k:
        nearest = torch.cdist(points, centres).amin(1).square()
        # All points on centres already (fewer distinct points than k): any of them will do.
        odds = nearest if nearest.sum() > 0 else torch.ones_like(nearest)
        centres = torch.cat([centres, points[torch.multinomial(odds, 1, generator=generator)]])
    for _ in range(LLOYD_ITERATIONS):
        owner = torch.cdist(points, centres).argmin(1)
        for i in range(k):
            if (owner == i).any():
                centres[i] = points[owner == i].mean(0)
    return centres


# --- Class means (EMA) ---------------------------------------------------------------------------


@torch.no_grad()
def class_sums(output: ModelOutput, label: Tensor, table: Tensor, per_class: int) -> Tensor:
    """Sums and counts of a micro-batch's utterances for each prototype: [C*K, D+1] float32.

    An utterance gives one vector per modality it has, its reliability-weighted (pooled) one: the steps
    that carry its emotion count, those that carry none hardly do. With K > 1 it goes to the nearest
    prototype of its class. The last column counts.

    The sums are a product with the one-hot owners: the same bits each time, which atomic additions are not.
    What is not finite spoils all of them; the trainer leaves out such a step.
    """
    sums = table.new_zeros(len(table), table.shape[1] + 1, dtype=torch.float32)
    rows = torch.arange(len(table), device=table.device)
    for stream in output.streams.values():
        pooled = stream.pooled.float()
        own = table.view(-1, per_class, table.shape[1])[label].float()  # [B, K, D]
        nearest = (pooled[:, None] - own).square().sum(-1).argmin(-1)
        weight = stream.present.float()[:, None]
        owner = (rows[:, None] == label * per_class + nearest).float()  # [C*K, B]
        with torch.autocast(table.device.type, enabled=False):
            sums += owner @ (torch.cat([pooled, torch.ones_like(weight)], 1) * weight)
    return sums


@torch.no_grad()
def move_to_class_means(table: Tensor, sums: Tensor, decay: float) -> None:
    """One EMA step of `table` [C*K, D], in place, from the global batch's `sums` [C*K, D+1].

    Prototypes that no utterance came to stay as they are, and so do those that a NaN came to.
    """
    count = sums[:, -1:]
    mean = sums[:, :-1] / count.clamp(min=1)
    table.copy_(
        torch.where(
            (count > 0) & mean.isfinite().all(-1, keepdim=True), decay * table + (1 - decay) * mean, table
        )
    )


# --- One table on all ranks ----------------------------------------------------------------------


def replicated_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers that every rank should hold alike: all but ZeRO-3's partitions."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: t for name, t in tensors.items() if not _is_partitioned(t)}


def _is_partitioned(tensor: Tensor) -> bool:
    return hasattr(tensor, "ds_id") and not getattr(tensor, "ds_persist", False)


@torch.no_grad()
def gather_table(model: AWTPN) -> Tensor:
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


def broadcast_from_main(tensors: Mapping[str, Tensor]) -> None:
    """Give every rank rank 0's values: an explicit start, since DeepSpeed leaves buffers out."""
    for tensor in tensors.values():
        dist.broadcast(tensor.detach(), src=0)


def checksum(tensor: Tensor) -> Tensor:
    """The sum of a tensor's bit patterns as one int64: any change of a single element changes it."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    tensor = tensor.detach()
    bits = tensor.contiguous().view(kinds[tensor.itemsize]) if tensor.itemsize in kinds else tensor
    return bits.sum(dtype=torch.int64)


def drifted(tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> list[tuple[int, str]]:
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


def heal(tensors: Mapping[str, Tensor], names: Iterable[str], optimizer: torch.optim.Optimizer) -> None:
    """Give every rank rank 0's value of the named tensors, and of their optimizer state where it is local."""
    for name in names:
        tensor = tensors[name]
        dist.broadcast(tensor.detach(), src=0)
        # Under ZeRO the state is partitioned: it has no replicas that could differ.
        for state in optimizer.state.get(tensor, {}).values():
            if isinstance(state, Tensor) and state.device == tensor.device:
                dist.broadcast(state, src=0)
