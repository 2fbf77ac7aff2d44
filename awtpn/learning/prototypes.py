"""Prototypes: initialization from data, and updates by class means (EMA).

Learned by gradient, prototypes are reduced over ranks like any parameter. Updated by class means, they are
a float32 buffer that every rank updates identically from one reduced sum per optimizer step
(`training.step.move_prototypes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from awtpn.learning.targets import nearest_states, states_of_batch
from awtpn.model.base import EmotionModel, ModelOutput
from awtpn.model.finite_outputs import FiniteOutputs
from awtpn.model.network import AWTPN
from shards import FeatureBatch

# Utterances that initialize the prototypes from data, in plan order.
INIT_UTTERANCES = 1024
LLOYD_ITERATIONS = 10


def find_prototypes(model: EmotionModel) -> Tensor | None:
    """The prototypes [S*K, D] of a model; None if it has none."""
    return model.tpn.prototypes if isinstance(model, AWTPN) else None


# --- Initialization ------------------------------------------------------------------------------


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
    """Set the prototypes to class means (K = 1) or k-means++ centers within each class (K > 1).

    In tasks without classes, an utterance belongs to one state in each group: to the label's absence or
    presence, or to the level that is nearest to its value.

    The vectors are the plain time means of the first `steps` global batches' utterances in the shared
    space, one per modality that an utterance has. Every rank gets all vectors in the same order and computes
    the same prototypes, for any layout. A class without utterances keeps its random prototypes.

    Args:
        model: not yet wrapped by an engine; every rank holds all of it.
        batches: this rank's share of those global batches, in eval order.
        batch_size: places of a global batch.
        all_gather_object: `World.all_gather_object`: the value of every rank, on every rank.

    Raises:
        NotFiniteError: some utterances' vectors are not finite; names them, on every rank.
    """
    finite = FiniteOutputs()
    modalities = list(model.config.modalities)
    rows = torch.zeros(steps * batch_size, len(modalities), model.config.shared_dim, device=device)
    states = sum(model.task.group_sizes)
    member = torch.zeros(steps * batch_size, len(modalities), states, device=device)
    training = model.training
    model.eval()
    for batch in batches:
        output = model(batch.to(device).features)
        place = batch.step * batch_size + batch.place.to(device)
        shares = states_of_batch(batch.label.to(device), batch.target.to(device), model.task)
        nearest = nearest_states(shares, model.task).to(member.dtype)
        for m, modality in enumerate(modalities):
            stream = output.streams[modality]
            rows[place, m] = stream.mean.float()
            member[place, m] = torch.where(stream.present[:, None], nearest, 0.0)
        finite.add(batch.key, rows[place].square().sum(-1))  # distances use squares, which overflow first
    model.train(training)
    finite.check(all_gather_object, "prototypes.init=data, utterances to train on")
    if dist.is_initialized():
        # Each row is non-zero on one rank, so the sum is exact whatever the number of ranks.
        dist.all_reduce(rows)
        dist.all_reduce(member)
    rows, member = rows.flatten(0, 1).cpu(), member.flatten(0, 1).cpu() > 0
    prototypes = model.tpn.prototypes.detach().cpu().float().view(states, -1, model.config.shared_dim)
    for s in range(states):
        of_state = rows[member[:, s]]
        if len(of_state):
            prototypes[s] = k_means(of_state, prototypes.shape[1], torch.Generator().manual_seed(seed + s))
    model.tpn.prototypes.copy_(prototypes.flatten(0, 1))


def k_means(points: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """k centers [k, D] of `points` [n, D] by k-means++ seeding and Lloyd's iterations; the mean for k = 1."""
    centers = points[torch.randint(len(points), (1,), generator=generator)]
    while len(centers) < k:
        nearest = torch.cdist(points, centers).amin(1).square()
        # With fewer distinct points than k all points are centers already: draw any point.
        odds = nearest if nearest.sum() > 0 else torch.ones_like(nearest)
        centers = torch.cat([centers, points[torch.multinomial(odds, 1, generator=generator)]])
    for _ in range(LLOYD_ITERATIONS):
        owner = torch.cdist(points, centers).argmin(1)
        for i in range(k):
            if (owner == i).any():
                centers[i] = points[owner == i].mean(0)
    return centers


# --- Class means (EMA) ---------------------------------------------------------------------------


@torch.no_grad()
def class_sums(output: ModelOutput, states: Tensor, prototypes: Tensor, per_class: int) -> Tensor:
    """Sums and counts of a micro-batch's vectors for each prototype: [S*K, D+1] float32.

    An utterance gives one vector per modality that it has: its pooled vector, in which time steps count by
    their reliability weights. It counts by its share of each state; with K > 1 it belongs to the nearest
    prototype of a state. The last column holds the counts.

    The sums are a matrix product with the owners, which gives the same bits each time; atomic additions would
    not. A vector that is not finite makes all sums NaN; the trainer skips such a step.

    Args:
        states: [B, S] share of each state (`targets.states_of_batch`); of classes one-hot.
    """
    sums = prototypes.new_zeros(len(prototypes), prototypes.shape[1] + 1, dtype=torch.float32)
    table = prototypes.view(-1, per_class, prototypes.shape[1]).float()
    for stream in output.streams.values():
        pooled = stream.pooled.float()
        owner = states[..., None]  # [B, S, 1]
        if per_class > 1:
            nearest = (pooled[:, None, None] - table).square().sum(-1).argmin(-1)  # [B, S]
            owner = owner * F.one_hot(nearest, per_class).to(owner.dtype)
        weight = stream.present.float()[:, None]
        with torch.autocast(prototypes.device.type, enabled=False):
            sums += owner.flatten(1).T.contiguous() @ (
                torch.cat([pooled, torch.ones_like(weight)], 1) * weight
            )
    return sums


@torch.no_grad()
def move_to_class_means(prototypes: Tensor, sums: Tensor, decay: float) -> None:
    """One EMA step of `prototypes` [S*K, D], in place, from the global batch's `sums` [S*K, D+1].

    A prototype without utterances does not change, nor does one whose mean is not finite. Shares of
    utterances can add up to a count below 1; the prototype itself then makes up the rest of the mean, so that
    it moves as much less.
    """
    count = sums[:, -1:]
    mean = sums[:, :-1] / count.clamp(min=1) + (1 - count).clamp(min=0) * prototypes
    usable = (count > 0) & mean.isfinite().all(-1, keepdim=True)
    prototypes.copy_(torch.where(usable, decay * prototypes + (1 - decay) * mean, prototypes))
