"""The speed of this machine's device, from training steps of two batch sizes that it runs.

    seconds = pass_s + FLOPs / flops_per_s

FLOPs are those that the network needs. What does not grow with the batch (launches of kernels, the
optimizer's update) is in `pass_s`.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence

from awtpn.bench.memory_estimate import Workload
from awtpn.bench.roofline.account import times
from awtpn.bench.scaling.shares import network_cost
from awtpn.bench.step import CLASSES, DIMS, Setting, make_batches, make_step


def measure_device(setting: Setting, dim: int, batches: Sequence[int], rounds: int) -> tuple[float, float]:
    """FLOP/s and pass_s of steps of width `dim`, from the first and the last of `batches` utterances."""
    step = make_step("packed", dim, setting)
    work = Workload(DIMS, dim, CLASSES, dict.fromkeys(DIMS, 0), 0.0)
    made = [make_batches(batch, setting.device)[0] for batch in (batches[0], batches[-1])]
    flops = [network_cost({m: of["packed"][m].host_lengths for m in DIMS}, work).both for of in made]
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds):  # in turn, so that other work on the machine slows both
        for found, batch in zip(seconds, made, strict=True):
            found += times(functools.partial(step, batch), setting.device, 3)
    return fit(flops, [statistics.median(of) for of in seconds])


def fit(flops: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """FLOP/s and the constant of a line through two points; without a constant where it would be negative."""
    (small, large), (short, long) = flops, seconds
    if short < long and (constant := short - small * (long - short) / (large - small)) > 0:
        return (large - small) / (long - short), constant
    return large / long, 0.0
