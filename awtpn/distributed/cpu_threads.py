"""Threads and memory of training on CPUs.

A math library cuts each matrix product over its threads, which meet again after every product: at these sizes
the meeting costs as much as it saves, and beside a busy process each meeting waits for the slowest thread. So
a micro-batch is cut into pieces of whole utterances instead, and each piece goes forward and backward on a
thread of its own. The pieces' gradients are added in their order: the same number of threads gives the same
bits, and another number gives the same losses and weights to rounding.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from awtpn.learning.settings import LossConfig
from awtpn.model.network import ModelOutput, StreamOutput
from awtpn.model.settings import ModelConfig
from shards import FeatureBatch

# Up to so many cores all of them compute; of more, one is left to the thread that reads ahead.
FEW_CORES = 2
# glibc's numbers for mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
CGROUPS = Path("/sys/fs/cgroup")
T = TypeVar("T")


# --- How many ------------------------------------------------------------------------------------


def usable_cores(cgroups: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Cores that this process may use: its affinity, and the CPU quota of its container or job."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    return max(1, math.floor(min(cores, cpu_quota(cgroups, membership))))


def cpu_quota(cgroups: Path, membership: Path) -> float:
    """Cores that control groups grant (version 2 or 1), over all levels; infinity where none limits them."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return math.inf
    quota = math.inf
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = cgroups / controllers if controllers else cgroups
        folder = root / group.lstrip("/")
        # Inside a container the group's path may be the host's: then the limit stands at the root.
        for level in (root, *(p for p in (folder, *folder.parents) if root in p.parents)):
            quota = min(quota, _quota_of(level))
    return quota


def _quota_of(group: Path) -> float:
    try:
        if (group / "cpu.max").exists():
            most, period = (group / "cpu.max").read_text().split()
        else:
            most = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text()
        return math.inf if most in ("max", "-1") else int(most) / int(period)
    except (OSError, ValueError):
        return math.inf


def choose_threads(asked: int | None, recorded: int, ranks_here: int, environment: Mapping[str, str]) -> int:
    """Threads of a rank on a CPU.

    Args:
        asked: `train.threads`, which rules.
        recorded: of the checkpoint that is resumed, or 0: the same number gives the same bits.
        ranks_here: ranks on this machine, which share its cores.
        environment: launchers set OMP_NUM_THREADS.
    """
    if asked or recorded:
        return asked or recorded
    if (given := environment.get("OMP_NUM_THREADS", "").split(",")[0]).isdigit() and int(given) > 0:
        return int(given)
    cores = usable_cores()
    return max(1, (cores if cores <= FEW_CORES else cores - 1) // ranks_here)


# --- Pieces of a micro-batch ---------------------------------------------------------------------


@dataclass(frozen=True)
class PieceThreads:
    """Threads that work on the pieces of a micro-batch.

    Attributes:
        count: pieces at most; with 1 a micro-batch stays whole.
        granule: pieces begin at places that this divides, so that negatives stay within their piece.
        shared_dim: D, by which the work of utterances is weighed.
        pool: of count - 1 threads; the caller's own works, too.
    """

    count: int = 1
    granule: int = 1
    shared_dim: int = 0
    pool: ThreadPoolExecutor | None = None

    def cut(self, batch: FeatureBatch) -> list[FeatureBatch]:
        """Pieces of about equal work; one where the batch is not to be cut."""
        if self.count == 1:
            return [batch]
        return batch.cut(balanced_edges(batch, self.count, self.granule, self.shared_dim))

    def map(self, work: Callable[..., T], *arguments: Sequence[Any]) -> list[T]:
        """`work` on each piece's arguments, in their order; the first piece on this thread.

        Raises whatever `work` raises, after all have ended.
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


def make_piece_threads(threads: int, per_batch: int, model: ModelConfig, loss: LossConfig) -> PieceThreads:
    """Threads for micro-batches of `per_batch` places; the rest of `threads` works inside the products.

    Negatives of the whole micro-batch (`loss.negatives` reference or global) leave it in one piece.
    """
    granule = 1
    if len(model.modalities) > 1:
        granule = loss.negative_group if loss.negatives == "group" else per_batch
    count = max(1, min(threads, per_batch // granule))
    inside = max(1, threads // count)
    torch.set_num_threads(inside)
    if count == 1:
        return ONE_PIECE
    # A thread takes its number of threads when it first computes.
    pool = ThreadPoolExecutor(count - 1, "piece", initializer=torch.set_num_threads, initargs=(inside,))
    return PieceThreads(count, granule, model.shared_dim, pool)


def balanced_edges(batch: FeatureBatch, count: int, granule: int, shared_dim: int) -> list[int]:
    """Places [n + 1] that cut a batch into n <= `count` pieces of whole granules and about equal work."""
    work = np.zeros(len(batch), np.int64)
    for ragged in batch.features.values():
        length = ragged.host_offsets.diff().numpy().astype(np.int64)
        # Multiplications of a step of the projections and maps, and those of attention over M steps.
        work += length * (ragged.values.shape[1] + shared_dim + 2 * length)
    first, last = batch.first_place, batch.first_place + batch.num_places
    inner = np.arange(first + granule, last, granule)  # where a piece may begin
    before = np.concatenate([[0], np.cumsum(work)])[np.searchsorted(batch.place.numpy(), inner)]
    edges = [first]
    for i in range(1, min(count, len(inner) + 1)):
        wanted = work.sum() * i / count
        place = int(inner[np.abs(before - wanted).argmin()])
        if place > edges[-1]:
            edges.append(place)
    return [*edges, last]


def forward_in_pieces(model: nn.Module, batch: FeatureBatch, threads: PieceThreads) -> ModelOutput:
    """The model's output of a whole batch, without gradients."""

    @torch.no_grad()  # which every thread has to be told
    def work(piece: FeatureBatch) -> ModelOutput:
        output: ModelOutput = model(piece.features)
        return output

    outputs = threads.map(work, threads.cut(batch))
    return outputs[0] if len(outputs) == 1 else join_outputs(outputs)


def join_outputs(outputs: Sequence[ModelOutput]) -> ModelOutput:
    """One output of consecutive utterances from those of their pieces."""
    streams = {}
    for modality in outputs[0].streams:
        parts = [output.streams[modality] for output in outputs]
        joined = {f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(StreamOutput)}
        steps = np.cumsum([0, *(len(part.h) for part in parts)]).tolist()
        rows = np.cumsum([0, *(len(part.present) for part in parts)]).tolist()
        begins = [part.offsets[:-1] + first for part, first in zip(parts, steps, strict=False)]
        joined["offsets"] = torch.cat([*begins, parts[-1].offsets[-1:] + steps[-2]])
        joined["utterance"] = torch.cat([p.utterance + r for p, r in zip(parts, rows, strict=False)])
        streams[modality] = StreamOutput(**joined)
    return ModelOutput(torch.cat([output.logits for output in outputs]), streams)


def draw_dropout(
    pieces: Sequence[FeatureBatch], config: ModelConfig, dtype: torch.dtype
) -> list[dict[str, Tensor] | None]:
    """Each piece's factors of dropout [T, D] per modality: 0 or 1 / (1 - p).

    Drawn from torch's global generator for the whole micro-batch, the same numbers as `nn.Dropout` draws
    within the model: in how many pieces the batch is worked on changes nothing.
    """
    if config.dropout == 0:
        return [None] * len(pieces)
    kept = 1 - config.dropout
    drawn = {}
    for m in config.modalities:
        steps = [len(piece.features[m].values) for piece in pieces]
        whole = torch.empty(sum(steps), config.shared_dim, dtype=dtype)
        drawn[m] = whole.bernoulli_(kept).div_(kept).split(steps)
    return [{m: parts[i] for m, parts in drawn.items()} for i in range(len(pieces))]


def add_gradients(parameters: Sequence[nn.Parameter], of_pieces: Sequence[Sequence[Tensor]]) -> None:
    """Add the pieces' gradients, in their order, to those that the parameters have."""
    total, *others = [list(gradients) for gradients in of_pieces]
    for gradients in others:
        torch._foreach_add_(total, gradients)
    for parameter, gradient in zip(parameters, total, strict=True):
        parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that gradients move, in their order."""
    return [p for p in model.parameters() if p.requires_grad]


# --- Memory --------------------------------------------------------------------------------------


def hold_memory() -> bool:
    """Have the C library keep the memory that tensors leave, for those of the next step.

    By default it maps a large block afresh from the kernel each time and gives it back: every step then pays
    for clearing each of its pages again. Where MALLOC_* variables say how it shall work, they rule.

    Returns:
        Whether it was told so; only glibc can be.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # No mapped blocks; never shrink the heap; one heap for all threads: a thread's own takes no large blocks.
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1))
    return all(mallopt(name, value) == 1 for name, value in settings)
