"""How much memory a rank will need, by engine and ZeRO stage, told before the run.

A step's memory peaks at one of four moments: when weights are gathered (ZeRO-3), when forward ends and
backward begins (all activations live), when backward ends (all gradients live, and the buffers that reduce
them), or in the optimizer's update. What lives then is known from the parameters, the ranks and the lengths.
The engines' own buffers are those of PyTorch 2.13's DDP and of DeepSpeed 0.19.8, read from their code and
checked by measurement (tests/benchmarks/zero_memory.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from awtpn.distributed.engines import ENGINES
from awtpn.distributed.engines.deepspeed_config import Buckets
from awtpn.model.attention import KEPT_SCORES
from awtpn.model.flops import parameter_count
from shards.streaming.stream import PREFETCH_BYTES

# Batches that a stream reads ahead on the host, within its bytes; one more is in use, and one in the making.
AHEAD = 4
FLOAT = 4


@dataclass(frozen=True)
class Work:
    """A model, and what one rank does with it in a step.

    Attributes:
        feature_dims: features per step of each modality.
        dim, classes, prototypes_per_class, adaptive, learnable, dropout: of the model; see ModelConfig.
        steps: per modality the steps of the rank's largest micro-batch.
        batch_bytes: features of the rank's whole share of a step, as stored.
        accumulation: micro-batches per step.
        scores: per modality the attention scores of that micro-batch, the sum of squared lengths. CPUs keep
            some of them.
    """

    feature_dims: Mapping[str, int]
    dim: int
    classes: int
    steps: Mapping[str, int]
    batch_bytes: float
    accumulation: int = 1
    prototypes_per_class: int = 1
    adaptive: bool = True
    learnable: bool = True
    dropout: bool = True
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        return parameter_count(
            self.feature_dims,
            self.dim,
            self.classes,
            self.prototypes_per_class,
            self.adaptive,
            self.learnable,
        )

    @property
    def largest(self) -> int:
        """Elements of the largest parameter."""
        return max(self.dim**2 if self.adaptive else 0, *(f * self.dim for f in self.feature_dims.values()))


def moments(
    work: Work,
    engine: str,
    ranks: int,
    precision: str = "fp32",
    *,
    on_gpu: bool = False,
    buckets: Buckets | None = None,
) -> dict[str, dict[str, float]]:
    """Bytes of everything that lives on a rank's device, at each moment when memory may peak.

    Args:
        work: what the rank does.
        engine: one of ENGINES.
        ranks: that share the work; `none` has one.
        precision: train.precision.
        on_gpu: memory that PyTorch allocates on a GPU. Otherwise growth of the process on a CPU, from the
            moment before its model is built; there a buffer costs what is written of it, and the host's
            batches and libraries count, too.
        buckets: of DeepSpeed.

    Returns:
        {"rest": {...}, "gathering": {...}, "forward": {...}, "backward": {...}, "update": {...}}: part ->
        bytes; their sum is what the moment takes. "rest" is between steps, and never the peak.
    """
    buckets = buckets or Buckets()
    use = ENGINES[engine].memory
    stage = use.stage
    number, share = work.parameters, work.parameters / ranks
    half = precision != "fp32"
    size = 2 if half and use.half_weights else FLOAT
    bucket = min(number, buckets.reduce)
    # Slices for several ranks are copied together for the reduction.
    flat = bucket if ranks > 1 else 0
    # An empty buffer costs nothing on a CPU until it is written to.
    reserved = buckets.reduce * (1 + buckets.overlap_comm) if on_gpu else bucket

    state = {"weights": size * (share if stage == 3 else number)}
    held = reducing = waiting = updating = 0.0
    if stage == 0:
        state["optimizer states"] = 8.0 * number
        held = size * number
        if use.gradient_copy:
            state["buckets"] = FLOAT * number
        if use.flat_buckets:
            reducing = size * flat
        if use.half_weights and half:
            state["master weights"] = FLOAT * number
            updating = FLOAT * number  # the gradients, cast
    else:
        state["master weights"] = FLOAT * share
        state["optimizer states"] = 8.0 * share
        if stage < 3:
            # The bucket, and a flat copy of it that is reduced; then the rank's own part, flattened and cast.
            # Where gradients accumulate, ZeRO-2 holds this micro-batch's beside those so far and the bucket.
            beside = share if stage == 2 and work.accumulation > 1 else 0.0
            reducing = size * (reserved + max(flat, beside))
            waiting = size * reserved if on_gpu else 0.0  # set up by the first gradient
            held = size * (number if stage == 1 else share)
            updating = (2 * size + (FLOAT if half else 0)) * share
        else:
            state["gradients"] = size * share
            state["buckets"] = size * float(reserved)
    # ZeRO-3 gathers weights, and keeps as many as it may; on the way, before there is much else, a bucket or
    # module of them is there once more.
    module = 2 * work.largest
    gathered = size * float(min(number, max(buckets.live, module))) if stage == 3 else 0.0
    arriving = size * min(number, max(buckets.prefetch, module)) if stage == 3 else 0.0

    state["batches"] = 2.0 * work.batch_bytes  # the one in use, and the next
    if not on_gpu:
        state["batches"] += min(AHEAD * work.batch_bytes, PREFETCH_BYTES + work.batch_bytes)
        state["libraries"] = use.libraries
    accumulated = held if work.accumulation > 1 else 0.0
    activations = activation_bytes(work, half, autocast=half and not use.half_weights, on_gpu=on_gpu)
    found: dict[str, dict[str, float]] = {
        "rest": {},
        "gathering": {"gradients": accumulated, "gathered weights": gathered + arriving},
        "forward": {
            "gradients": accumulated,
            "buckets": waiting,
            "gathered weights": gathered,
            "activations": activations,
        },
        "backward": {"gradients": held, "gathered weights": gathered, "buckets": reducing},
        "update": {"gradients": held if stage == 0 else 0.0, "update": updating},
    }
    if stage in (1, 2):  # gradients lie in the bucket, then only this rank's part of them
        found["backward"]["gradients"] = accumulated
    return {moment: _sum_up(state, parts) for moment, parts in found.items()}


def _sum_up(*tables: Mapping[str, float]) -> dict[str, float]:
    total: dict[str, float] = {}
    for table in tables:
        for part, size in table.items():
            total[part] = total.get(part, 0.0) + size
    return {part: size for part, size in total.items() if size}


def activation_bytes(work: Work, half: bool, autocast: bool, on_gpu: bool) -> float:
    """What forward keeps for backward in one micro-batch, and backward's first gradients beside it.

    Per step of D shared dims, in elements of the activations' size: ReLU's result, the dropped-out h, the
    queries (and keys, where the maps stay apart) and the dropout mask (a byte on a GPU); and twice h in
    float32 for the distances. Half precision keeps two copies of h itself in float32 besides, for distances
    and pooling. A merged query-key map is kept, too. Backward's first gradients beside all this are some
    three activations of the larger modality (in half precision: four of float32) and a map's gradient.
    """
    size = 2 if half else FLOAT
    kept, largest = float(size * work.dim**2 if work.adaptive else 0), 0.0
    for modality, steps in work.steps.items():
        h = steps * work.dim
        copies = 2 * size if work.dropout else size  # ReLU's result, and h where dropout made another
        copies += (1 if on_gpu else size) if work.dropout else 0
        copies += 3 * FLOAT if half else FLOAT
        if work.adaptive:
            merged = steps > work.dim
            copies += size if merged else 2 * size
            kept += size * work.dim**2 if merged else 0
            kept += 0 if on_gpu else FLOAT * min(KEPT_SCORES, work.scores.get(modality, 0.0))
        kept += h * copies + steps * work.feature_dims[modality] * size
        largest = max(largest, float(h))
    if autocast:
        kept += 2 * work.parameters  # the weights' half-precision copies
    return kept + FLOAT * largest * (4 if half else 3)


def peak(found: Mapping[str, Mapping[str, float]]) -> tuple[str, float]:
    """The moment that takes most, and its bytes."""
    totals = {moment: math.fsum(parts.values()) for moment, parts in found.items()}
    worst = max(totals, key=lambda moment: totals[moment])
    return worst, totals[worst]


def saving_bytes(work: Work, engine: str) -> float:
    """Host memory that rank 0 takes in addition while it saves: weights and both moments in float32.

    Where they are partitioned, the one that is being gathered takes some room of its own.
    """
    gathering = ENGINES[engine].memory.stage > 0
    return 12.0 * work.parameters + 3 * FLOAT * work.largest * gathering


def largest_steps(mean: float, deviation: float, longest: int, micro_batch: int, accumulation: int) -> int:
    """Steps that a micro-batch will hardly exceed: three deviations above the mean of such sums.

    The stream deals ranks shares of about equal work; of a share, micro-batches are draws without
    replacement, so their sums deviate by sqrt(n (1 - n / N)) times the lengths' deviation.

    Args:
        mean, deviation, longest: of the lengths of utterances.
        micro_batch: utterances of a micro-batch, n.
        accumulation: micro-batches of a share, N / n.
    """
    likely = micro_batch * mean + 3 * deviation * math.sqrt(micro_batch * (1 - 1 / accumulation))
    return math.ceil(min(likely, micro_batch * longest))
