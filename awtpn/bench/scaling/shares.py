"""The work of each rank and micro-batch in steps of an epoch, drawn from the stream's own plan.

The utterances of a step, and their places in the global batch, do not depend on the number of ranks
(`shards.planning.plan`). So one reading of the plan serves all: rank r of W has the places [r B / W,
(r + 1) B / W), and its micro-batches are consecutive parts of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from awtpn.bench.encoder_memory.activations import Pass
from awtpn.bench.encoder_memory.shape import Shape
from awtpn.bench.memory_estimate import Workload
from awtpn.bench.scaling.encoder_flops import EncoderCost
from awtpn.model.compute.flops import step_flops
from awtpn.model.encoders.passes import Budget, plan_passes
from shards.planning.plan import make_plan, rows_of_step
from shards.tools.simulate import SplitSizes

STEPS = 4  # of an epoch that are looked at, from its middle


@dataclass(frozen=True)
class PassCost:
    """FLOPs of a forward pass, and of forward and backward together."""

    forward: float
    both: float


def step_lengths(sizes: SplitSizes, global_batch: int, seed: int = 0) -> list[NDArray[np.float64]]:
    """Of some full steps of an epoch, the work of each place of the global batch, divided by the mean.

    Raises:
        ValueError: the split has fewer utterances than one global batch.
    """
    if sizes.utterances.sum() < global_batch:
        raise ValueError(
            f"{sizes.name} has {sizes.utterances.sum():,} utterances, fewer than a global batch of "
            f"{global_batch:,}: simulate a larger one, such as --synthetic {10 * global_batch}x1000"
        )
    plan = make_plan(sizes.utterances, global_batch, seed=seed, work=sizes.work)
    full = max(1, plan.rows // global_batch)
    begin = max(0, min(full // 2, full - STEPS))
    known: dict[int, NDArray[np.int64]] = {}
    found = []
    for step in range(begin, min(begin + STEPS, full)):
        _, shard, row = rows_of_step(plan, 0, step, 0, global_batch)
        new = [s for s in np.unique(shard).tolist() if s not in known]
        known |= dict(zip(new, sizes.work(new), strict=True))
        found.append(np.array([known[s][r] for s, r in zip(shard.tolist(), row.tolist(), strict=True)]))
    mean = float(np.mean(np.concatenate(found)))
    return [of / mean for of in found]


def cost_of_ranks(
    places: NDArray[np.float64],
    ranks: int,
    accumulation: int,
    work: Workload,
    mean_steps: Mapping[str, float],
    encoders: Mapping[str, tuple[Shape, EncoderCost]],
) -> list[list[list[PassCost]]]:
    """Per rank, per micro-batch the costs of its passes; without encoders a micro-batch is one pass.

    Args:
        places: [G] lengths of a step's utterances, divided by the mean.
        mean_steps: stored time steps of a mean utterance, by modality.
    """
    micro = len(places) // ranks // accumulation
    steps = {m: np.maximum(1, np.rint(places * mean)).astype(np.int64) for m, mean in mean_steps.items()}
    shares = np.arange(len(places)).reshape(ranks, accumulation, micro)
    if not encoders:
        return [
            [[network_cost({m: of[part].tolist() for m, of in steps.items()}, work)] for part in rank]
            for rank in shares
        ]
    lengths = {m: of.tolist() for m, of in steps.items()}
    windows = {m: [shape.windows_of(n) for n in lengths[m]] for m, (shape, _) in encoders.items()}
    budgets = {m: Budget(shape.budget, shape.settings.max_padding) for m, (shape, _) in encoders.items()}
    features = {
        m: [encoders[m][0].features_of(n) for n in of] if m in encoders else of for m, of in lengths.items()
    }
    return [
        [
            [
                pass_cost(rows, features, windows, work, {m: cost for m, (_, cost) in encoders.items()})
                for rows in plan_passes(windows, budgets, part.tolist())
            ]
            for part in rank
        ]
        for rank in shares
    ]


def pass_cost(
    rows: Sequence[int],
    features: Mapping[str, Sequence[int]],
    windows: Mapping[str, Sequence[Sequence[int]]],
    work: Workload,
    encoders: Mapping[str, EncoderCost],
) -> PassCost:
    """The cost of a pass of these utterances: encoders, and the network above them."""
    above = network_cost({m: [of[i] for i in rows] for m, of in features.items()}, work)
    forward, both = above.forward, above.both
    for m, cost in encoders.items():
        found = [size for i in rows for size in windows[m][i]]
        own = cost.forward_flops(Pass(len(found), max(found))) if found else 0.0
        forward, both = forward + own, both + own * (1 + cost.backward)
    return PassCost(forward, both)


def network_cost(lengths: Mapping[str, Sequence[int]], work: Workload) -> PassCost:
    """The cost of the network on features of these lengths, without the optimizer.

    Of forward and backward, forward is half of the projections (features take no gradient), and a third of
    all else.
    """
    flops = step_flops(
        lengths,
        work.feature_dims,
        work.dim,
        work.classes,
        work.prototypes_per_class,
        adaptive=work.adaptive,
        statistics=work.statistics,
    )
    del flops["optimizer"]
    both = sum(flops.values())
    return PassCost(flops["ses"] / 2 + (both - flops["ses"]) / 3, both)
