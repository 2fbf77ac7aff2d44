"""The prototype table's life: where it starts, how class means move it, and how ranks keep one table.

Learned by gradient, the table is reduced over ranks like any parameter. Moved by class means (EMA), it is
a float32 buffer that every rank updates identically from one reduced sum per optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from awtpn.model.finite_outputs import FiniteOutputs
from awtpn.model.network import AWTPN, ModelOutput
from shards import FeatureBatch

# Utterances that initialise the table from data, in plan order.
INIT_UTTERANCES = 1024
LLOYD_ITERATIONS = 10


# --- Start ---------------------------------------------------------------------------------------


@torch.no_grad()
def initialize_from_data(
    model: AWTPN,
    batches: Iterable[FeatureBatch],
    steps: int,
    batch_size: int,
    device: torch.device,
    seed: int,
    all_gather_object: Callable[[Any], list[Any]] = lambda value: [value],
) -> None:
    """Set the table to class means (K = 1) or k-means++ centres within each class (K > 1).

    The vectors are the plain time means of the first `steps` global batches' utterances in the shared
    space, one per modality that an utterance has. All ranks see all of them, each in its place, and
    compute the same table; no layout changes it. A class without utterances keeps its random prototypes.

    Args:
        model: before any engine has wrapped it; every rank holds all of it.
        batches: this rank's share of those global batches, in eval order.
        batch_size: places of a global batch.
        all_gather_object: `World.all_gather_object`: the value of every rank, on every rank.

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
    finite.check(all_gather_object, "prototypes.init=data, utterances to train on")
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
