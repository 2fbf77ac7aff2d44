"""The time of an optimizer step on W ranks, by its parts.

    step = slowest rank's computing + update + communication that nothing hides + waiting for data

Where each pass has collectives (ZeRO 2 and 3), ranks wait for each other in each pass; elsewhere once a step.
So the slowest rank's computing is a sum over passes of the largest, or the largest sum over passes. Waiting
for data is what reading a rank's share takes longer than the rest of the step, since batches are read ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from awtpn.bench.scaling.collectives import Beside, Collective
from awtpn.bench.scaling.network import Network, collective_s
from awtpn.bench.scaling.shares import PassCost

BACKWARD = 2 / 3  # of a pass without encoders' extra forward: the share of the computing that is backward


@dataclass(frozen=True)
class Machine:
    """A rank's device and its host.

    Attributes:
        flops_per_s: that it reaches in a step.
        pass_s: seconds of a forward and backward pass besides (launches of kernels).
        update_bytes_per_s: at which the optimizer reads and writes its tensors; inf: its time is in `pass_s`.
        read_per_s: utterances of mean length that a process reads per second.
        overlap: share of the computing that can run while collectives do.
    """

    flops_per_s: float
    pass_s: float
    update_bytes_per_s: float
    read_per_s: float
    overlap: float


@dataclass(frozen=True)
class Step:
    """Seconds of a step's parts, as means over the steps looked at.

    Attributes:
        utterances: of the global batch.
        ranks: W.
        computing: of the mean rank.
        straggling: by which the slowest rank exceeds the mean.
        update: of the optimizer.
        communication: of all collectives; `exposed`: of these, what no computing hides.
        waiting: for data.
        passes: forward and backward passes of a rank, of the one that has most.
    """

    utterances: int
    ranks: int
    computing: float
    straggling: float
    update: float
    communication: float
    exposed: float
    waiting: float
    passes: float

    @property
    def seconds(self) -> float:
        return self.computing + self.straggling + self.update + self.exposed + self.waiting

    @property
    def per_s(self) -> float:
        """Utterances per second, over all ranks."""
        return self.utterances / self.seconds


def rank_seconds(costs: Sequence[PassCost], machine: Machine, passes: int, twice: bool) -> list[float]:
    """Seconds of each of `passes` passes of a rank; those that it lacks are empty.

    Args:
        twice: each pass's forward runs once more, without gradients.
    """
    flops = [cost.both + (cost.forward if twice else 0.0) for cost in costs]
    flops += [0.0] * (passes - len(costs))
    return [own / machine.flops_per_s + machine.pass_s * (4 / 3 if twice else 1) for own in flops]


def predict(
    steps: Sequence[Sequence[Sequence[Sequence[PassCost]]]],
    lengths: Sequence[Sequence[float]],
    machine: Machine,
    network: Network,
    host: Network,
    collectives: Callable[[int], list[Collective]],
    update_bytes: float,
    *,
    each_pass: bool,
    twice: bool,
) -> Step:
    """The step's time on as many ranks as the first of `steps` has.

    Args:
        steps: of some steps the costs, by rank, micro-batch and pass.
        lengths: of the same steps, the lengths of the places, divided by the mean.
        network, host: between devices, and between hosts.
        collectives: of a number of passes, `collectives.step_collectives`.
        update_bytes: that the optimizer reads and writes on a rank.
        each_pass: ranks wait for each other in each pass.
        twice: see `rank_seconds`.
    """
    ranks, parts = len(steps[0]), []
    for of_ranks, places in zip(steps, lengths, strict=True):
        flat = [[cost for micro in rank for cost in micro] for rank in of_ranks]
        passes = max(1, *map(len, flat))
        seconds = np.array([rank_seconds(costs, machine, passes, twice) for costs in flat])  # [W, passes]
        mean = float(seconds.sum() / ranks)
        slowest = float(seconds.max(0).sum() if each_pass else seconds.sum(1).max())
        backward = BACKWARD / (4 / 3 if twice else 1)
        free: dict[Beside, float] = {
            "nothing": 0.0,
            "last backward": float(seconds[:, -1].min()) * backward,
            "backward": mean * backward,
            "passes": mean,
        }
        whole, exposed = communication(collectives(passes), ranks, network, host, free, machine.overlap)
        update = update_bytes / machine.update_bytes_per_s
        share = np.array(places).reshape(ranks, -1).sum(1).max() / machine.read_per_s
        waiting = max(0.0, float(share) - slowest - update - exposed)
        parts.append((mean, slowest - mean, update, whole, exposed, waiting, float(passes)))
    computing, straggling, update, whole, exposed, waiting, count = (
        float(np.mean(column)) for column in zip(*parts, strict=True)
    )
    return Step(len(lengths[0]), ranks, computing, straggling, update, whole, exposed, waiting, passes=count)


def communication(
    collectives: Sequence[Collective],
    ranks: int,
    network: Network,
    host: Network,
    free: dict[Beside, float],
    overlap: float,
) -> tuple[float, float]:
    """Seconds of all collectives, and of those that computing does not hide."""
    whole: dict[Beside, float] = dict.fromkeys(free, 0.0)
    for of in collectives:
        whole[of.beside] += collective_s(host if of.on_host else network, of.kind, of.size, ranks, of.calls)
    exposed = sum(max(0.0, seconds - overlap * free[beside]) for beside, seconds in whole.items())
    return sum(whole.values()), exposed


def efficiency(step: Step, alone: float) -> float:
    """Utterances/s of W ranks, divided by W times those of a rank that takes `alone` seconds for each."""
    return step.per_s * alone / step.ranks


def stops_at(at: Callable[[int], Step | None], alone: float, most: int) -> tuple[int, float] | None:
    """The first power of two of ranks whose efficiency is below a half, and that efficiency.

    Args:
        at: the step on so many ranks; None where the global batch has fewer utterances than ranks.
        alone: see `efficiency`.
        most: ranks that are looked at.
    """
    ranks = 2
    while ranks <= most and (step := at(ranks)) is not None:
        if (found := efficiency(step, alone)) < 0.5:
            return ranks, found
        ranks *= 2
    return None
