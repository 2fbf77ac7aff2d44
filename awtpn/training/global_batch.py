"""What all ranks must know before a step's first forward, and the losses of a micro-batch.

One small sum over ranks per step carries everything that could differ between ranks: the counts that the
losses' normalizers need, stop signals, the fingerprint of the data, and (for global negatives) the slot
table: the label of each place. So no rank decides alone. Host arrays are summed over gloo (`World.sum`),
which does not wait for the GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from awtpn.distributed.batch_layout import Layout
from awtpn.distributed.world import World
from awtpn.learning.losses import LossNormalizers, NegativePool, loss_terms
from awtpn.learning.negatives import (
    DRAWS,
    NONE,
    complete_pairs,
    draw_for_pairs,
    draw_other_class,
    draw_permutation,
    make_slot_table,
    read_slot_table,
)
from awtpn.learning.settings import CROSS_MODAL, TERMS, LossConfig, Pair
from awtpn.learning.targets import count_targets, read_target_counts, target_codes
from awtpn.model.base import ModelOutput
from awtpn.model.device import to_device_async
from awtpn.model.task import Task
from shards import FeatureBatch


@dataclass(frozen=True)
class GlobalBatchInfo:
    """Counts over the global batch, the same on every rank, and this rank's negatives."""

    normalizers: LossNormalizers
    negatives: dict[Pair, NDArray[np.int64]]
    """By pair of modalities: the place of each utterance's negative, of this rank's B, [len(DRAWS), B]."""
    utterances: int
    empty: int
    """Utterances that have none of the modalities in use."""
    fingerprint: int
    stop: bool
    passes: int = 1
    """Forward and backward passes of every rank."""
    everywhere: WholeBatch | None = None
    """The whole global batch, where the cross-modal terms need it at once."""


@dataclass(frozen=True)
class WholeBatch:
    """What the cross-modal terms need to know about the G places of the global batch.

    Attributes:
        present: per modality [G] bool, which utterances have it; False at empty places.
        negatives: by pair of modalities the place of each utterance's negative, [len(DRAWS), G].
    """

    present: dict[str, NDArray[np.bool_]]
    negatives: dict[Pair, NDArray[np.int64]]


def reduce_batch_counts(
    batch: FeatureBatch,
    config: LossConfig,
    world: World,
    *,
    task: Task,
    class_weights: NDArray[np.float64] | None,
    modalities: Iterable[str],
    terms: Sequence[str] = tuple(TERMS),
    layout: Layout,
    seed: int,
    step: int,
    stop: bool,
    whole: bool = False,
    passes: int = 1,
) -> GlobalBatchInfo:
    """Draw this step's negatives and sum its counts over ranks; every rank calls.

    Args:
        batch: this rank's share of the global batch.
        task: of the model.
        modalities: of the model, in its order.
        terms: of the loss; without cross-modal ones, no negatives are drawn.
        class_weights: [C] of the cross-entropy, or [K, 2] of labels; None for equal ones.
        step: steps done before this one; it seeds the negatives, together with `seed`.
        stop: this rank got a stop signal.
        whole: also tell the negatives of all places, which may lie in any micro-batch.
        passes: that this rank needs; all ranks run as many as the one that needs the most.
    """
    label, place = batch.host_label.numpy(), batch.place.numpy()
    names = list(modalities)
    present = np.stack([batch.features[m].host_offsets.diff().numpy() > 0 for m in names])  # [M, B]
    pairs = list(config.shares_of_pairs(names)) if set(terms) & set(CROSS_MODAL) else []
    columns = [(names.index(a), names.index(v)) for a, v in pairs]
    numbers = [list(combinations(names, 2)).index(pair) for pair in pairs]
    both = complete_pairs(present, columns)  # [N, B]
    needs_table = config.negatives == "global" or whole
    slot_table = make_slot_table(layout.global_batch, place, target_codes(batch, task), present)
    # Without classes all labels are 0, so that the only count is that of the utterances.
    classes = len(task.names) if task.type == "classification" else 1

    def draw(table: NDArray[np.int64], group: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of the utterances in a slot table: their negatives [N, draws, P], and the number of valid ones."""
        labels, has = read_slot_table(table, len(names))
        complete = complete_pairs(has, columns)
        drawn = draw_for_pairs(
            complete,
            numbers,
            lambda of_pair, number: draw_other_class(labels, of_pair, group, seed, step, number),
        )
        return drawn, (complete[:, None] & (drawn != NONE)).sum(-1)

    if config.negatives == "reference":
        negatives = draw_for_pairs(
            both,
            numbers,
            lambda of_pair, number: _permuted(batch, of_pair, layout.accumulation, seed, step, number),
        )
        valid = (both[:, None] & (negatives != NONE)).sum(-1)
    elif config.negatives == "group" and not whole:
        # A group lies within one rank, so this rank's own part of the slot table is enough.
        everywhere, valid = draw(slot_table, config.negative_group)
        negatives = everywhere[..., place]
    else:
        valid = np.zeros((len(pairs), len(DRAWS)), dtype=np.int64)  # counted below, for all ranks

    parts: dict[str, NDArray[np.int64]] = {
        "stop": np.array([stop], dtype=np.int64),
        # A place for each rank, so that a sum gives all of them.
        "passes": np.where(np.arange(world.size) == world.rank, passes, 0),
        "fingerprint": np.array([batch.fingerprint()], dtype=np.uint64).view(np.int64),
        "class": np.bincount(label, minlength=classes),
        "present": present.sum(1),
        "empty": (~present.any(0)).sum(keepdims=True),
        "both": both.sum(1),
        "negative": valid.ravel(),
        "targets": count_targets(batch, task, present),
        # Only the configuration decides on shapes, never the data: all ranks must sum the same shape.
        "slot_table": slot_table if pairs and needs_table else slot_table[:0],
    }
    total = dict(zip(parts, _split(world.sum(np.concatenate(list(parts.values()))), parts), strict=True))

    valid = total["negative"].reshape(valid.shape)
    of_all = None
    if needs_table:
        # Every rank now has the whole slot table, and makes the same draws for all places.
        table = total["slot_table"] if pairs else slot_table
        group = layout.global_batch if config.negatives == "global" else config.negative_group
        everywhere, valid = draw(table, group)
        negatives = everywhere[..., place]
        _, has = read_slot_table(table, len(names))
        of_all = WholeBatch(dict(zip(names, has, strict=True)), dict(zip(pairs, everywhere, strict=True)))
    utterances = int(total["class"].sum())
    weight = float(utterances)
    if class_weights is not None and task.type == "classification":
        weight = float(total["class"] @ class_weights)
    normalizers = LossNormalizers(
        utterances=max(1, utterances),
        present={m: max(1, int(n)) for m, n in zip(names, total["present"], strict=True)},
        both={pair: max(1, int(n)) for pair, n in zip(pairs, total["both"], strict=True)},
        negative={
            pair: {name: max(1, int(n)) for name, n in zip(DRAWS, of_pair, strict=True)}
            for pair, of_pair in zip(pairs, valid, strict=True)
        },
        class_weight=weight or 1.0,
        targets=read_target_counts(total["targets"], names, class_weights),
    )
    return GlobalBatchInfo(
        normalizers,
        dict(zip(pairs, negatives, strict=True)),
        utterances,
        int(total["empty"][0]),
        int(total["fingerprint"].view(np.uint64)[0]),
        bool(total["stop"][0]),
        int(total["passes"].max()),
        of_all if whole else None,
    )


def _split(vector: NDArray[np.int64], parts: Mapping[str, NDArray[Any]]) -> list[NDArray[np.int64]]:
    return np.split(vector, np.cumsum([len(p) for p in parts.values()])[:-1])


def _permuted(
    batch: FeatureBatch, complete: NDArray[np.bool_], accumulation: int, seed: int, step: int, draw: int
) -> NDArray[np.int64]:
    """The published code's negatives: one permutation per micro-batch."""
    place = batch.place.numpy()
    micro_batch = (place - batch.first_place) * accumulation // batch.num_places
    negative = np.full(len(place), NONE, dtype=np.int64)
    for m in range(accumulation):
        own = micro_batch == m
        negative[own] = draw_permutation(place[own], complete[own], seed, step, draw)
    return negative


def micro_batch_losses(
    output: ModelOutput,
    micro: FeatureBatch,
    rows: Sequence[int],
    info: GlobalBatchInfo,
    config: LossConfig,
    class_weights: Tensor | None,
    global_batch: int,
    task: Task | None = None,
    terms: Sequence[str] = tuple(TERMS),
) -> Tensor:
    """The share [len(terms)] of each loss term that one micro-batch adds.

    The cross-modal terms are 0 where `awtpn.training.held_means` computes them for the whole batch.

    Args:
        rows: positions of its utterances in the rank's batch.
    """
    if info.everywhere is not None:
        here = [name for name in terms if name not in CROSS_MODAL]
        shares = loss_terms(
            output, micro.label, {}, info.normalizers, config, class_weights, task, micro.target, here
        )
        return torch.stack([shares[here.index(n)] if n in here else shares.new_zeros(()) for n in terms])
    place = micro.place.numpy()
    own = np.asarray(rows, np.int64)
    means = {v: output.streams[v].mean for _, v in info.negatives}
    row_of_place = np.full(global_batch + 1, NONE, dtype=np.int64)  # index NONE = -1: the last one
    if config.negatives == "global" and means:
        # One collective for all modalities, so that its backward has one, too: no order to agree on.
        gathered = all_gather_with_grad(torch.cat(list(means.values()), 1), micro, global_batch)
        means = dict(zip(means, gathered.chunk(len(means), 1), strict=True))
        row_of_place[:-1] = np.arange(global_batch)
    else:
        row_of_place[place] = np.arange(len(place))
    pools = {
        (a, v): NegativePool(
            means[v],
            {
                name: to_device_async(row_of_place[drawn[own]], means[v].device)
                for name, drawn in zip(DRAWS, of_pair, strict=True)
            },
        )
        for (a, v), of_pair in info.negatives.items()
    }
    return loss_terms(
        output, micro.label, pools, info.normalizers, config, class_weights, task, micro.target, terms
    )


def all_gather_with_grad(means: Tensor, batch: FeatureBatch, global_batch: int) -> Tensor:
    """The global batch's vectors [global_batch, D] by place; gradients flow back to the ranks they come from.

    Empty places are zero. A collective: every rank calls, also one without utterances.
    """
    own = means.new_zeros(batch.num_places, means.shape[1])
    own = own.index_copy(0, to_device_async((batch.place - batch.first_place).numpy(), means.device), means)
    if batch.num_places == global_batch:
        return own
    return _GatherOverRanks.apply(own)


class _GatherOverRanks(torch.autograd.Function):
    """Concatenates every rank's rows; the gradient of a row is the sum of all ranks' gradients of it."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        ctx.rows = len(own)
        everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, own.contiguous())
        return torch.cat(everyone)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank() * ctx.rows :][: ctx.rows]
