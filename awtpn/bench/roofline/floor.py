"""The roofline model of a training step: the least time that its FLOPs and its memory traffic take.

Bytes are counted from the sizes, for the best form of each part: every tensor that a part reads or writes
passes through main memory once per pass, and intermediate results stay on the chip. Then no program can do a
part faster than the larger of FLOPs / peak rate and bytes / peak bandwidth. Casts, padding, repeated reads
and launches keep real programs above that floor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from awtpn.model.compute.flops import PARTS, parameter_count, step_flops

MASTER_BYTES = 4  # of each weight, gradient and Adam moment in the optimizer's update


class Cost(NamedTuple):
    """FLOPs and bytes of a part of a step."""

    flops: float
    bytes: float


class Peak(NamedTuple):
    """Measured peaks of a device: FLOP/s of a large matrix product, bytes/s of a large copy."""

    flops_per_s: float
    bytes_per_s: float


def step_cost(
    lengths: Mapping[str, Sequence[int]],
    feature_dims: Mapping[str, int],
    dim: int,
    classes: int,
    *,
    dtype: torch.dtype = torch.float32,
    feature_bytes: int = 2,
    recompute: bool = False,
) -> dict[str, Cost]:
    """FLOPs and bytes of one optimizer step, for each of `PARTS`: see `step_flops` and `step_bytes`."""
    flops = step_flops(lengths, feature_dims, dim, classes, recompute=recompute)
    moved = step_bytes(lengths, feature_dims, dim, classes, dtype=dtype, feature_bytes=feature_bytes)
    return {part: Cost(flops[part], moved[part]) for part in PARTS}


def step_bytes(
    lengths: Mapping[str, Sequence[int]],
    feature_dims: Mapping[str, int],
    dim: int,
    classes: int,
    *,
    dtype: torch.dtype = torch.float32,
    feature_bytes: int = 2,
) -> dict[str, float]:
    """Bytes that one optimizer step reads and writes, for each of `PARTS`.

    Args:
        lengths: per modality the steps of each utterance; 0 for one without the modality.
        feature_dims: features per step of each modality in `lengths`.
        dim: D, the shared dim.
        classes: C, with one prototype each.
        dtype: of the projections and of the attention's products (train.precision).
        feature_bytes: per stored feature value.
    """
    moved = dict.fromkeys(PARTS, 0.0)
    size, wide = dtype.itemsize, max(dtype.itemsize, 4)
    utterances = max((len(of) for of in lengths.values()), default=0)
    for modality, of in lengths.items():
        steps, features = sum(of), feature_dims[modality]
        h = steps * dim  # elements of one activation in the shared space
        # Forward reads features and weights and writes h; backward reads features, h and its gradient.
        moved["ses"] += 2 * steps * features * feature_bytes + 3 * h * size
        moved["ses"] += features * dim * (size + MASTER_BYTES)
        # Forward h -> distances; backward h and the distances' gradients -> gradient of h.
        moved["distances"] += 3 * h * size + 2 * steps * classes * wide + 2 * classes * dim * MASTER_BYTES
        # Forward h -> q; q, k -> w. Backward q, k -> dq, dk; then dq, h -> dh and the maps' gradients.
        moved["attention"] += 11 * h * size + 10 * steps * wide + 2 * dim**2 * (2 * size + MASTER_BYTES)
        moved["losses"] += 3 * h * size + 2 * steps * (classes + 1) * wide
    moved["losses"] += 12 * utterances * dim * wide + 2 * classes * dim * MASTER_BYTES
    # The norm reads the gradients once more; AdamW reads four tensors and writes three.
    moved["optimizer"] = 8.0 * MASTER_BYTES * parameter_count(feature_dims, dim, classes)
    return moved


def floor_s(cost: Cost, peak: Peak) -> float:
    """Seconds below which no program can do `cost`: the larger of compute time and memory time."""
    return max(cost.flops / peak.flops_per_s, cost.bytes / peak.bytes_per_s)


def bound_by(cost: Cost, peak: Peak) -> str:
    """What sets the floor: "compute" or "memory"."""
    return "compute" if cost.flops / peak.flops_per_s >= cost.bytes / peak.bytes_per_s else "memory"


def total(costs: Mapping[str, Cost]) -> Cost:
    """The sum over all parts."""
    return Cost(sum(c.flops for c in costs.values()), sum(c.bytes for c in costs.values()))
