"""One optimizer step: reduce the batch's counts, accumulate gradients over micro-batches, update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from awtpn.distributed.cpu_threads import add_gradients, draw_dropout, trainable_parameters
from awtpn.distributed.engines import unwrap
from awtpn.learning.augmentation import augment
from awtpn.learning.losses import total_loss
from awtpn.learning.modality_dropout import drop_modalities
from awtpn.learning.optimizer import learning_rate, set_learning_rate
from awtpn.learning.prototypes import class_sums, find_prototypes, move_to_class_means
from awtpn.learning.targets import states_of_batch
from awtpn.model.base import ModelOutput
from awtpn.model.device import to_device_async
from awtpn.model.encoders.passes import passes_of
from awtpn.tracking.throughput import batch_cost
from awtpn.training.global_batch import GlobalBatchInfo, micro_batch_losses, reduce_batch_counts
from awtpn.training.held_means import HeldMeans, collect_means, hold
from awtpn.training.run_state import Run
from shards import FeatureBatch


def train_step(run: Run, batch: FeatureBatch, data_wait: float) -> GlobalBatchInfo:
    """One optimizer step on this rank's share of a global batch; its figures are added to `run.pending`.

    Args:
        data_wait: seconds that the step waited for the batch.
    """
    config, position = run.config, run.position
    modalities = list(config.model.modalities)
    odds = {m: config.model.dropout_of(m) for m in modalities}
    # Before anything is counted: a hidden modality counts as missing.
    batch = drop_modalities(batch, odds, config.run.seed, position.step)
    recordings = unwrap(run.model).recordings
    batch = augment(batch, config.augment, recordings, config.run.seed, position.step)
    parts = divide(run, batch)
    info = reduce_batch_counts(
        batch,
        config.loss,
        run.world,
        task=unwrap(run.model).task,
        class_weights=run.class_weights,
        modalities=modalities,
        terms=run.terms,
        layout=run.layout,
        seed=config.run.seed,
        step=position.step,
        stop=run.stops,
        whole=run.holds_means,
        passes=max(1, len(parts)),
    )
    lr = learning_rate(config.optim, position.step, run.total_steps)
    set_learning_rate(run.optimizer, lr)
    # All ranks run equally many passes: under ZeRO-3 each is a collective. The last ones may be empty.
    parts += [[]] * (info.passes - len(parts))
    every = config.track.norms_every
    if run.norms is not None and every and (position.step + 1) % every == 0:
        # Before backward, which under DeepSpeed calls the optimizer.
        run.norms.begin(run.world.device)
    terms, nonfinite, sums = forward_backward(run, batch, parts, info)
    grad_norm = run.engine.clip_and_step(run.accelerator, run.model, run.optimizer, config.optim.grad_clip)
    if sums is not None:
        move_prototypes(run, sums, grad_norm)
    run.pending.append(
        {
            "step": position.step + 1,
            "epoch": position.epoch,
            "terms": terms,
            "nonfinite": nonfinite,
            "keys": batch.key,
            "lr": lr,
            "grad_norm": grad_norm,
            "squares": None if run.norms is None else run.norms.take(),
            "fingerprint": f"{info.fingerprint:016x}",
            "utterances": info.utterances,
            "empty": info.empty,
            "data_wait": data_wait,
            "damaged": batch.damaged,
            "work": batch_cost(batch, unwrap(run.model)),
        }
    )
    return info


def divide(run: Run, batch: FeatureBatch) -> list[list[int]]:
    """The utterances of each forward and backward pass, as positions in a rank's batch.

    They are the micro-batches of the layout, some of which may be empty. With encoders in the model these are
    cut by the lengths of their recordings (`awtpn.model.encoders.passes`), and utterances change their order.
    """
    edges = torch.tensor(run.layout.edges(batch.first_place, batch.num_places))
    rows = torch.searchsorted(batch.place, edges).tolist()
    micro_batches = [list(range(low, high)) for low, high in pairwise(rows)]
    if not run.config.encoder:
        return micro_batches
    return passes_of(unwrap(run.model), batch, micro_batches)


def forward_backward(
    run: Run, batch: FeatureBatch, parts: Sequence[Sequence[int]], info: GlobalBatchInfo
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of the global batch's loss, accumulated over micro-batches.

    Args:
        parts: positions in the batch of each micro-batch, all of them together every one once.

    Returns:
        On the device: this rank's loss terms [len(run.terms)]; which of its utterances have logits that are
        not finite [B]; where prototypes are class means, its `class_sums` [C*K, D + 1].
    """
    config, world = run.config, run.world
    factor = run.engine.loss_factor(world.size, run.layout.accumulation)
    weights = None if run.class_weights is None else to_device_async(run.class_weights, world.device)
    task, names = unwrap(run.model).task, run.terms
    prototypes = find_prototypes(unwrap(run.model))
    sums = None
    if prototypes is not None and config.prototypes.update == "ema":
        sums = torch.zeros(len(prototypes), prototypes.shape[1] + 1, device=world.device)

    if run.config.encoder:
        micro_batches = [batch.take(rows) for rows in parts]
    else:
        micro_batches = batch.cut(run.layout.edges(batch.first_place, batch.num_places))
    held = hold_means(run, micro_batches, info) if run.holds_means else None

    def forward(
        micro: FeatureBatch, rows: Sequence[int], dropout: Any = None
    ) -> tuple[ModelOutput, Tensor, Tensor]:
        output = run.model(micro.features, dropout)
        terms = micro_batch_losses(
            output, micro, rows, info, config.loss, weights, run.layout.global_batch, task, names
        )
        loss = total_loss(terms, config.loss, names)
        if held is not None:
            loss = loss + held.loss(output, micro)
        return output, terms, loss * factor

    total = torch.zeros(len(names), device=world.device)
    nonfinite = torch.zeros(len(batch), dtype=torch.uint8, device=world.device)
    for i, (micro, rows) in enumerate(zip(micro_batches, parts, strict=True)):
        seed_randomness(config.run.seed, run.position.step, i, world.rank)
        pieces = run.piece_threads.cut(micro)
        with run.engine.accumulate(run.accelerator, run.model, i == len(micro_batches) - 1):
            if len(pieces) > 1:
                # Only under an engine with `splits_micro_batches`, which needs no call of backward().
                results = backward_in_pieces(run, pieces, rows, forward)
            else:
                output, terms, loss = forward(micro, rows)
                run.accelerator.backward(loss)
                results = [(output, terms)]
        of_micro = torch.cat([~output.logits.detach().isfinite().all(-1) for output, _ in results])
        places = to_device_async(np.asarray(rows, np.int64), world.device)
        nonfinite.index_copy_(0, places, of_micro.to(torch.uint8))
        for piece, (output, terms) in zip(pieces, results, strict=True):
            total += terms.detach().float()
            if sums is not None and prototypes is not None:
                states = states_of_batch(piece.label, piece.target, task)
                sums += class_sums(output, states, prototypes, config.model.prototypes_per_class)
    if held is not None and world.is_main:
        total += held.terms_in(names)  # of the whole batch: the ranks' terms are summed
    return total, nonfinite.bool(), sums


def hold_means(run: Run, micro_batches: Sequence[FeatureBatch], info: GlobalBatchInfo) -> HeldMeans:
    """The first of two passes over the micro-batches: see `awtpn.training.held_means`."""
    config, world = run.config, run.world

    def outputs() -> Iterator[ModelOutput]:
        for i, micro in enumerate(micro_batches):
            seed_randomness(config.run.seed, run.position.step, i, world.rank)
            yield run.model(micro.features)

    means = collect_means(
        outputs(), micro_batches, list(config.model.modalities), run.layout.global_batch, world.size
    )
    return hold(means, info, config.loss)


def backward_in_pieces(
    run: Run,
    pieces: list[FeatureBatch],
    rows: Sequence[int],
    forward: Callable[..., tuple[ModelOutput, Tensor, Tensor]],
) -> list[tuple[ModelOutput, Tensor]]:
    """Forward and backward of a micro-batch, one thread per piece; adds to the parameters' gradients.

    Args:
        rows: positions of the micro-batch's utterances in the rank's batch.
        forward: of a piece, its positions and its dropout: the output, the terms and the loss.

    Returns:
        Each piece's output and terms, in their order.
    """
    model = unwrap(run.model)
    parameters = trainable_parameters(model)

    def work(
        piece: FeatureBatch, own: Sequence[int], dropout: Any
    ) -> tuple[ModelOutput, Tensor, tuple[Tensor, ...]]:
        output, terms, loss = forward(piece, own, dropout)
        # Not backward(): threads would add to one gradient in the order in which they finish.
        return output, terms, torch.autograd.grad(loss, parameters)

    dtype = torch.bfloat16 if run.config.train.precision == "bf16" else torch.float32
    dropout = draw_dropout(pieces, model.config, dtype)
    begins = [sum(map(len, pieces[:i])) for i in range(len(pieces))]
    own = [rows[first : first + len(piece)] for first, piece in zip(begins, pieces, strict=True)]
    found = run.piece_threads.map(work, pieces, own, dropout)
    add_gradients(parameters, [gradients for _, _, gradients in found])
    return [(output, terms) for output, terms, _ in found]


def seed_randomness(seed: int, step: int, micro_step: int, rank: int) -> None:
    """Seed torch's generator by the position in the run alone: a resumed run draws the same dropout."""
    words = np.random.SeedSequence([seed, step, micro_step, rank]).generate_state(2, np.uint32)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))


def move_prototypes(run: Run, sums: Tensor, grad_norm: Any) -> None:
    """Move the prototypes towards the class means of all ranks, by the same update on every rank.

    Args:
        sums: `class_sums` of this rank's utterances [C*K, D + 1]; they are summed over ranks here.
        grad_norm: as `clip_and_step` returned it.
    """
    if run.world.size > 1:
        dist.all_reduce(sums)
    # The optimizer skips a step whose gradients are not finite. Then the prototypes must not move
    # either: counts of 0 leave them as they are.
    prototypes = find_prototypes(unwrap(run.model))
    assert prototypes is not None
    norm = torch.as_tensor(0.0 if grad_norm is None else grad_norm)
    finite = sums.isfinite().all() & norm.isfinite()
    sums = torch.where(finite, sums, 0.0)
    move_to_class_means(prototypes, sums, run.config.prototypes.ema_decay)
