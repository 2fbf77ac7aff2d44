"""Threads and memory of training on CPUs.

A math library divides each matrix product among its threads, which synchronize after every product. At this
model's sizes the synchronization costs as much as the threads save, and on a busy machine it waits for the
slowest thread. So a micro-batch is cut into pieces of whole utterances instead, and each thread runs forward
and backward of one piece. The pieces' gradients are added in a fixed order: the same number of threads gives
bit-exact results, another number gives the same losses and weights to rounding.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from awtpn.distributed.batch_layout import Layout, negatives_cross_micro_batches
from awtpn.learning.settings import LossConfig
from awtpn.model.base import ModalityOutput, ModelOutput
from awtpn.model.compute.dropout import DropoutFactors, draw_factors
from awtpn.model.settings import ModelConfig
from shards import FeatureBatch
from shards.cores import usable_cores

# With more cores than this, one is left to the prefetching thread.
FEW_CORES = 2
# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
T = TypeVar("T")


# --- Number of threads ---------------------------------------------------------------------------


def choose_threads(
    requested: int | None, recorded: int, local_ranks: int, environment: Mapping[str, str]
) -> int:
    """Number of threads of a rank on a CPU: the first of these that is set, else from the usable cores.

    Args:
        requested: `train.threads`.
        recorded: of the checkpoint that is resumed, or 0. The same number gives bit-exact results.
        local_ranks: ranks on this machine, which share its cores.
        environment: of this process; launchers set OMP_NUM_THREADS.
    """
    if requested or recorded:
        return requested or recorded
    if (given := environment.get("OMP_NUM_THREADS", "").split(",")[0]).isdigit() and int(given) > 0:
        return int(given)
    cores = usable_cores()
    return max(1, (cores if cores <= FEW_CORES else cores - 1) // local_ranks)


# --- Pieces of a micro-batch ---------------------------------------------------------------------


@dataclass(frozen=True)
class PieceThreads:
    """Threads that process the pieces of a micro-batch.

    Attributes:
        count: largest number of pieces; with 1 a micro-batch is not cut.
        granule: a piece's first place is a multiple of it, so that negatives are in the same piece.
        shared_dim: D, to estimate the work of utterances.
        pool: of count - 1 threads; the calling thread processes a piece too.
    """

    count: int = 1
    granule: int = 1
    shared_dim: int = 0
    pool: ThreadPoolExecutor | None = None

    def cut(self, batch: FeatureBatch) -> list[FeatureBatch]:
        """Cut a batch into at most `count` pieces of about equal work."""
        if self.count == 1:
            return [batch]
        return batch.cut(balanced_edges(batch, self.count, self.granule, self.shared_dim))

    def map(self, work: Callable[..., T], *arguments: Sequence[Any]) -> list[T]:
        """Call `work` for each piece, the first one on this thread; the results in order of the pieces.

        Raises:
            Exception: whatever `work` raises, after all calls have ended.
        """
        first, *rest = zip(*arguments, strict=True)
        assert not rest or self.pool is not None
        waiting = [self.pool.submit(work, *each) for each in rest] if self.pool else []
        try:
            result = work(*first)
        finally:
            for future in waiting:
                future.exception()
        return [result, *(future.result() for future in waiting)]


ONE_PIECE = PieceThreads()


def make_piece_threads(threads: int, layout: Layout, model: ModelConfig, loss: LossConfig) -> PieceThreads:
    """Threads for the micro-batches of a layout.

    Also sets torch's own threads, if there are more threads than pieces. If negatives come from the whole
    micro-batch (`loss.negatives` reference or global), it is not cut.
    """
    granule, per_batch = 1, layout.micro_batch
    modalities = list(model.modalities)
    if len(modalities) > 1 and not negatives_cross_micro_batches(loss, modalities, layout):
        granule = loss.negative_group if loss.negatives == "group" else per_batch
    count = max(1, min(threads, per_batch // granule))
    inside = max(1, threads // count)
    torch.set_num_threads(inside)
    if count == 1:
        return ONE_PIECE
    # set_num_threads applies to the calling thread only, so each thread of the pool calls it.
    pool = ThreadPoolExecutor(count - 1, "piece", initializer=torch.set_num_threads, initargs=(inside,))
    return PieceThreads(count, granule, model.shared_dim, pool)


def balanced_edges(batch: FeatureBatch, count: int, granule: int, shared_dim: int) -> list[int]:
    """Edges [n + 1], in places, of n <= `count` pieces of whole granules and about equal work."""
    work = np.zeros(len(batch), np.int64)
    for ragged in batch.features.values():
        length = ragged.host_offsets.diff().numpy().astype(np.int64)
        # Multiplications per step, over D: projection F, query-key map D, attention 2 M.
        work += length * (ragged.values.shape[1] + shared_dim + 2 * length)
    first, last = batch.first_place, batch.first_place + batch.num_places
    inner = np.arange(first + granule, last, granule)  # possible first places of a piece
    before = np.concatenate([[0], np.cumsum(work)])[np.searchsorted(batch.place.numpy(), inner)]
    edges = [first]
    for i in range(1, min(count, len(inner) + 1)):
        target = work.sum() * i / count
        place = int(inner[np.abs(before - target).argmin()])
        if place > edges[-1]:
            edges.append(place)
    return [*edges, last]


def forward_in_pieces(model: nn.Module, batch: FeatureBatch, threads: PieceThreads) -> ModelOutput:
    """The model's output of a whole batch, without gradients."""

    @torch.no_grad()  # applies to one thread only, so every thread needs it
    def work(piece: FeatureBatch) -> ModelOutput:
        output: ModelOutput = model(piece.features)
        return output

    outputs = threads.map(work, threads.cut(batch))
    return outputs[0] if len(outputs) == 1 else join_outputs(outputs)


def join_outputs(outputs: Sequence[ModelOutput]) -> ModelOutput:
    """Concatenate the outputs of the pieces of a batch."""
    streams = {}
    for modality in outputs[0].streams:
        parts = [output.streams[modality] for output in outputs]
        joined = {
            f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(ModalityOutput)
        }
        steps = np.cumsum([0, *(len(part.h) for part in parts)]).tolist()
        rows = np.cumsum([0, *(len(part.present) for part in parts)]).tolist()
        begins = [part.offsets[:-1] + first for part, first in zip(parts, steps, strict=False)]
        joined["offsets"] = torch.cat([*begins, parts[-1].offsets[-1:] + steps[-2]])
        joined["utterance"] = torch.cat([p.utterance + r for p, r in zip(parts, rows, strict=False)])
        streams[modality] = ModalityOutput(**joined)
    return ModelOutput(torch.cat([output.logits for output in outputs]), streams)


def draw_dropout(
    pieces: Sequence[FeatureBatch], config: ModelConfig, dtype: torch.dtype
) -> list[DropoutFactors]:
    """Each piece's dropout factors.

    Drawn from torch's global generator for the whole micro-batch, the same numbers in the same order that the
    model draws. So the number of pieces does not change them.
    """
    steps: dict[str, Sequence[Tensor]] = {}
    statistics: dict[str, Sequence[Tensor]] = {}
    for m in config.modalities if config.dropout else ():
        counts = [len(piece.features[m].values) for piece in pieces]
        steps[m] = draw_factors((sum(counts), config.shared_dim), config.dropout, dtype).split(counts)
    for m in config.modalities if config.dropout_of_statistics else ():
        utterances, width = [len(piece) for piece in pieces], 2 * pieces[0].features[m].values.shape[1]
        wide = torch.promote_types(dtype, torch.float32)  # as the statistics are
        drawn = draw_factors((sum(utterances), width), config.dropout_of_statistics, wide)
        statistics[m] = drawn.split(utterances)
    return [
        DropoutFactors(*({m: parts[i] for m, parts in of.items()} for of in (steps, statistics)))
        for i in range(len(pieces))
    ]


def add_gradients(parameters: Sequence[nn.Parameter], of_pieces: Sequence[Sequence[Tensor]]) -> None:
    """Add the pieces' gradients, in order of the pieces, to the parameters' gradients."""
    total, *others = [list(gradients) for gradients in of_pieces]
    for gradients in others:
        torch._foreach_add_(total, gradients)
    for parameter, gradient in zip(parameters, total, strict=True):
        parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that require gradients, in the model's order."""
    return [p for p in model.parameters() if p.requires_grad]


# --- Memory --------------------------------------------------------------------------------------


def retain_freed_memory() -> bool:
    """Make glibc keep freed memory for the tensors of the next step.

    By default it maps every large block from the kernel and unmaps it when freed, so in each step the kernel
    clears all its pages again. Changes nothing if a MALLOC_* variable is set.

    Returns:
        Whether the setting was changed; False without glibc.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # Map no blocks; never shrink the heap; one heap for all threads, since a thread's own has a size limit.
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1))
    return all(mallopt(name, value) == 1 for name, value in settings)
