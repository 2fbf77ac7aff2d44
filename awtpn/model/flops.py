"""The roofline account of a training step: what must be computed and moved, and how long that must take.

FLOPs and bytes are counted from the lengths alone, for the best form of each part: every tensor that a part
takes or gives goes through main memory once per pass, and whatever a part needs only for itself stays on the
chip. A part can then be no faster than the larger of FLOPs / peak rate and bytes / peak bandwidth. What a
program does besides (casts, padding, kernels that re-read, launches) is what keeps it from that floor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

PARTS = ("ses", "distances", "attention", "losses", "optimiser")
# Weights, gradients and Adam's moments as one update sees them.
MASTER_BYTES = 4


class Cost(NamedTuple):
    """What a part of a step must do."""

    flops: float
    bytes: float

    def __add__(self, other: object) -> Cost:
        """Both, one after the other."""
        if not isinstance(other, tuple):
            return NotImplemented
        return Cost(self.flops + other[0], self.bytes + other[1])


class Peak(NamedTuple):
    """What a device does at best, measured: FLOP/s of a large matrix product, bytes/s of a large copy."""

    flops_per_s: float
    bytes_per_s: float


def step_cost(
    lengths: Mapping[str, Sequence[int]],
    feature_dims: Mapping[str, int],
    dim: int,
    classes: int,
    prototypes_per_class: int = 1,
    *,
    dtype: torch.dtype = torch.float32,
    feature_bytes: int = 2,
    adaptive: bool = True,
    recompute: bool = False,
) -> dict[str, Cost]:
    """FLOPs and bytes of one optimizer step (forward, backward, clipping, AdamW), per part.

    A multiplication and an addition count as two FLOPs. T steps of F features, D shared dims, M steps of an
    utterance: the large terms are SES 4 T F D (features take no gradient), distances 6 T C K D, attention
    6 T D^2 + 6 D^3 for its maps (12 T D^2 where D > T) and 6 sum M^2 D for its scores, the optimiser's
    bytes 32 per parameter.

    Args:
        lengths: per modality the steps of each utterance of the step (of one rank, for a rank's account);
            an utterance without the modality has 0.
        feature_dims: features per step of each modality in `lengths`.
        dim: D, the shared dim.
        classes, prototypes_per_class: C and K.
        dtype: of the projections and of the attention's products (train.precision).
        feature_bytes: per stored feature value.
        adaptive: `model.awm` is adaptive; uniform has no attention.
        recompute: count the scores that forms of linear memory compute a second time in backward
            (2 sum M^2 D more). The network itself does not need them, so figures of its own work leave them.

    Returns:
        A `Cost` for each of `PARTS`: ses (standardise, project, ReLU), distances (to the prototypes),
        attention (reliability, maps, scores, weights), losses (pooling, classifier, loss terms), optimiser
        (gradient norm and update).
    """
    cost = dict.fromkeys(PARTS, Cost(0.0, 0.0))
    size, wide = dtype.itemsize, max(dtype.itemsize, 4)
    utterances = max((len(of) for of in lengths.values()), default=0)
    prototypes = classes * prototypes_per_class
    for modality, of in lengths.items():
        steps, features = sum(of), feature_dims[modality]
        h = steps * dim  # elements of one activation in the shared space
        # Forward reads features and weights and writes h; backward reads features, h and its gradient.
        cost["ses"] += Cost(
            4 * steps * features * dim + 2 * steps * features + 4 * h,
            2 * steps * features * feature_bytes + 3 * h * size + features * dim * (size + MASTER_BYTES),
        )
        # Forward h -> distances; backward h and the distances' gradients -> gradient of h.
        cost["distances"] += Cost(
            6 * h * prototypes + 5 * h,
            3 * h * size + 2 * steps * classes * wide + 2 * prototypes * dim * MASTER_BYTES,
        )
        if adaptive:
            cost["attention"] += _attention_cost(of, dim, size, wide, recompute)
        # Mean and weighted sum of h, both ways; then the log-softmax of the align term.
        cost["losses"] += Cost(10 * h + 15 * steps * classes, 3 * h * size + 2 * steps * (classes + 1) * wide)
    # Two cosines, two norms and the classifier on the utterances' vectors; backward is twice forward.
    pooled = utterances * dim
    cost["losses"] += Cost(
        54 * pooled + 6 * pooled * classes, 12 * pooled * wide + 2 * classes * dim * MASTER_BYTES
    )
    numbers = parameter_count(feature_dims, dim, classes, prototypes_per_class, adaptive)
    # The norm reads the gradients once more; AdamW reads four tensors and writes three.
    cost["optimiser"] = Cost(18.0 * numbers, 8.0 * numbers * MASTER_BYTES)
    return cost


def _attention_cost(lengths: Sequence[int], dim: int, size: int, wide: int, recompute: bool) -> Cost:
    steps, scores = sum(lengths), sum(m * m for m in lengths)
    # h (Wq^T Wk) saves one map over the steps for one product of the maps themselves.
    maps = min(6 * steps * dim**2 + 6 * dim**3, 12 * steps * dim**2)
    products = (8 if recompute else 6) * scores * dim
    softmax = 12 * scores
    # Forward: h -> q; q, k -> w. Backward: q, k -> dq, dk; then dq, h -> dh and the maps' gradients.
    activations = 11 * steps * dim * size + 10 * steps * wide
    return Cost(maps + products + softmax, activations + 2 * dim**2 * (2 * size + MASTER_BYTES))


def parameter_count(
    feature_dims: Mapping[str, int],
    dim: int,
    classes: int,
    prototypes_per_class: int = 1,
    adaptive: bool = True,
    learnable_prototypes: bool = True,
) -> int:
    """Parameters that learn: SES, prototypes, query and key maps, classifier."""
    ses = sum(features * dim + dim for features in feature_dims.values())
    maps = 2 * dim**2 * len(feature_dims) if adaptive else 0
    table = classes * prototypes_per_class * dim if learnable_prototypes else 0
    return ses + maps + table + classes * dim + classes


def floor_s(cost: Cost, peak: Peak) -> float:
    """Seconds below which no program can do `cost`: the larger of computing it and moving it."""
    return max(cost.flops / peak.flops_per_s, cost.bytes / peak.bytes_per_s)


def bound_by(cost: Cost, peak: Peak) -> str:
    """What sets the floor: "compute" or "memory"."""
    return "compute" if cost.flops / peak.flops_per_s >= cost.bytes / peak.bytes_per_s else "memory"


def total(costs: Mapping[str, Cost]) -> Cost:
    """All parts together."""
    return Cost(math.fsum(c.flops for c in costs.values()), math.fsum(c.bytes for c in costs.values()))
