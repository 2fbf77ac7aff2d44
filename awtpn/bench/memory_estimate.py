"""Estimate a rank's peak memory before a run, by engine and ZeRO stage.

Memory peaks at the start, when each rank has the whole model in float32, or in one of four phases of a step:
when weights are gathered (ZeRO-3), when forward ends (all activations exist), when backward ends (all
gradients exist, and the buffers that reduce them), or in the optimizer's update. The number of parameters,
the number of ranks and the utterances' lengths determine what exists in each phase. The activations of
encoders are those of `encoder_memory`. The engines' own buffers are those of PyTorch 2.13's DDP and
DeepSpeed 0.19.8, taken from their code and checked by measurement (tests/benchmarks/zero_memory.py and
encoder_memory.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from awtpn.bench.encoder_memory.activations import Pass, numbers_of, peak_bytes, quiet_bytes
from awtpn.bench.encoder_memory.shape import Shape
from awtpn.distributed.engines import ENGINES
from awtpn.distributed.engines.deepspeed_config import Buckets
from awtpn.model.attention import KEPT_SCORES
from awtpn.model.compute.flops import parameter_count
from shards.streaming.stream import PREFETCH_BYTES

# Batches that a stream prefetches on the host, up to PREFETCH_BYTES. One more is in use, one being filled.
PREFETCH = 4
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Workload:
    """A model, and the data that one rank processes in an optimizer step.

    Attributes:
        feature_dims: features per time step of each modality.
        dim, classes, prototypes_per_class, adaptive, learnable, dropout: of the model; see ModelConfig.
        statistics: `model.statistics`.
        averaged: `train.ema_decay` keeps an average of each weight.
        steps: per modality the time steps of the rank's largest micro-batch.
        batch_bytes: stored size of the features that the rank processes in an optimizer step.
        accumulation: micro-batches per optimizer step.
        scores: per modality the attention scores of that micro-batch, the sum of squared lengths. CPUs keep
            some of them for backward.
        passes: forward and backward passes per optimizer step. With encoders a micro-batch has one or more,
            and `steps` and `scores` are those of the largest pass.
        encoders: by modality the encoder, and what that pass gives it.
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
    averaged: bool = False
    statistics: bool = False
    scores: Mapping[str, float] = field(default_factory=dict)
    passes: int = 0
    encoders: Mapping[str, tuple[Shape, Pass]] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Trained parameters."""
        return self.own_parameters + sum(shape.counts.trained for shape, _ in self.encoders.values())

    @property
    def weights(self) -> int:
        """All parameters, those of frozen parts of encoders among them."""
        return self.own_parameters + sum(shape.counts.all for shape, _ in self.encoders.values())

    @property
    def accumulates(self) -> bool:
        """Whether gradients of one pass are there while another one runs."""
        return max(self.accumulation, self.passes) > 1

    @property
    def own_parameters(self) -> int:
        """Parameters without encoders."""
        return parameter_count(
            self.feature_dims,
            self.dim,
            self.classes,
            self.prototypes_per_class,
            self.adaptive,
            self.learnable,
            self.statistics,
        )

    @property
    def largest(self) -> int:
        """Elements of the largest parameter."""
        maps = [f * self.dim for f in self.feature_dims.values()] + [self.dim**2] * self.adaptive
        return max(maps + [shape.counts.largest for shape, _ in self.encoders.values()])


def phase_bytes(
    work: Workload,
    engine: str,
    ranks: int,
    precision: str = "fp32",
    *,
    on_gpu: bool = False,
    buckets: Buckets | None = None,
) -> dict[str, dict[str, float]]:
    """Bytes on a rank's device, by part, in each phase in which memory may peak.

    Args:
        work: model and data of the rank.
        engine: one of ENGINES.
        ranks: number of ranks; 1 for engine "none".
        precision: train.precision.
        on_gpu: count the memory that PyTorch allocates on a GPU. Otherwise the growth of the process on a CPU
            since before its model was built: there a buffer takes only the pages that were written, and the
            host's batches and libraries count too.
        buckets: DeepSpeed's buffer sizes; default: its own.

    Returns:
        {"start": {...}, "rest": {...}, "gathering": {...}, "forward": {...}, "backward": {...}, "update":
        {...}}: part -> bytes; the sum of the parts is the phase's memory. "rest" is between steps, and never
        the peak.
    """
    buckets = buckets or Buckets()
    use = ENGINES[engine].memory
    stage = use.stage
    number, share = work.parameters, work.parameters / ranks
    weights = work.weights
    half = precision != "fp32"
    # DeepSpeed casts the model; the others keep float32 weights, which autocast casts in each forward.
    size = 2 if half and use.half_weights else FLOAT
    bucket = min(number, buckets.reduce)
    # With several ranks, DeepSpeed copies the bucket's gradients into one flat tensor to reduce them.
    flat = bucket if ranks > 1 else 0
    # On a CPU an allocated buffer takes memory only once it is written.
    reserved = buckets.reduce * (1 + buckets.overlap_comm) if on_gpu else bucket

    state = {"weights": size * (weights / ranks if stage == 3 else weights)}
    if work.averaged:
        state["averaged weights"] = FLOAT * (share if stage else number)
    # Bytes of gradients after backward, of reduction buffers in backward and in forward, and in the update.
    gradients = reducing = waiting = updating = 0.0
    if stage == 0:
        state["optimizer states"] = 8.0 * number
        gradients = size * number
        if use.gradient_copy:
            state["buckets"] = FLOAT * number  # a second copy of the gradients, which DDP keeps
        if use.flat_buckets:
            reducing = size * flat
        if use.half_weights and half:
            state["master weights"] = FLOAT * number
            updating = FLOAT * number  # the gradients, cast
    else:
        state["master weights"] = FLOAT * share
        state["optimizer states"] = 8.0 * share
        if stage < 3:
            # The bucket and its flat copy. With accumulation, ZeRO-2 has this micro-batch's gradients beside
            # the accumulated ones and the bucket. The update flattens and casts the rank's own gradients.
            accumulating = share if stage == 2 and work.accumulates else 0.0
            reducing = size * (reserved + max(flat, accumulating))
            waiting = size * reserved if on_gpu else 0.0  # allocated at the first gradient, then kept
            gradients = size * (number if stage == 1 else share)
            updating = (2 * size + (FLOAT if half else 0)) * share
        else:
            state["gradients"] = size * share
            state["buckets"] = size * float(reserved)
    # ZeRO-3 gathers weights, and keeps up to stage3_max_live_parameters of them. While they arrive, a
    # prefetch bucket or module of them exists twice.
    module = 2 * work.largest
    gathered = size * float(min(weights, max(buckets.live, module))) if stage == 3 else 0.0
    arriving = size * min(weights, max(buckets.prefetch, module)) if stage == 3 else 0.0

    # The current and the next one; with encoders, the current one once more, in passes.
    state["batches"] = (3.0 if work.encoders else 2.0) * work.batch_bytes
    if not on_gpu:
        state["batches"] += min(PREFETCH * work.batch_bytes, PREFETCH_BYTES + work.batch_bytes)
        state["libraries"] = use.libraries
        state["layers above"] = FLOAT * sum(shape.counts.above for shape, _ in work.encoders.values())
    accumulated = gradients if work.accumulates else 0.0
    activations = activation_bytes(work, half, autocast=half and not use.half_weights, on_gpu=on_gpu)
    # Before the engine takes the model over, it is whole and in float32 on each rank, and encodes some data.
    start: dict[str, float] = {p: state[p] for p in ("batches", "libraries", "layers above") if p in state}
    start |= {"weights": float(FLOAT * weights), "activations": start_bytes(work, on_gpu)}
    found: dict[str, dict[str, float]] = {
        "rest": {},
        "gathering": {"gradients": accumulated, "gathered weights": gathered + arriving},
        "forward": {
            "gradients": accumulated,
            "buckets": waiting,
            "gathered weights": gathered,
            "activations": activations,
        },
        "backward": {"gradients": gradients, "gathered weights": gathered, "buckets": reducing},
        "update": {"gradients": gradients if stage == 0 else 0.0, "update": updating},
    }
    if stage in (1, 2):  # new gradients are in the bucket, which "buckets" counts
        found["backward"]["gradients"] = accumulated
    return {"start": _sum_up(start), **{phase: _sum_up(state, parts) for phase, parts in found.items()}}


def _sum_up(*tables: Mapping[str, float]) -> dict[str, float]:
    total: dict[str, float] = {}
    for table in tables:
        for part, size in table.items():
            total[part] = total.get(part, 0.0) + size
    return {part: size for part, size in total.items() if size}


def start_bytes(work: Workload, on_gpu: bool) -> float:
    """Bytes of the largest tensors while encoders encode the first utterances: in float32, no gradients."""
    found = [
        quiet_bytes(shape, of, numbers_of(shape, False, False, on_gpu), training=False)
        for shape, of in work.encoders.values()
    ]
    return max(found, default=0.0)


def activation_bytes(work: Workload, half: bool, autocast: bool, on_gpu: bool) -> float:
    """Bytes that forward keeps for backward in one pass, and those of backward's first gradients.

    Those of encoders are in `awtpn.bench.encoder_memory`; here are those of the network above them.

    Per time step and shared dim, forward keeps in the activations' dtype: the result of ReLU, h after
    dropout, the dropout mask (a byte on a GPU), the queries, and the keys if the query and key maps are not
    merged; and in float32 h for the distances. In half precision it keeps two more float32 copies of h, for
    distances and pooling. A merged query-key map is kept too. Backward's first gradients add some three
    activations of the largest modality (in half precision four, in float32) and a map's gradient.

    CPUs take less (`awtpn.model.compute.cpu_passes`): they keep no h for the distances, and in float32 of
    ReLU and dropout only their result. Backward's first gradients are two activations there in float32.
    """
    size = 2 if half else FLOAT
    kept, largest = float(size * work.dim**2 if work.adaptive else 0), 0.0
    for modality, steps in work.steps.items():
        h = steps * work.dim
        copies = size  # h
        if work.dropout and (on_gpu or half):
            copies += size + (1 if on_gpu else size)  # ReLU's result, and the mask
        copies += FLOAT * (2 * half + on_gpu)
        if work.adaptive:
            merged = steps > work.dim
            copies += size if merged else 2 * size
            kept += size * work.dim**2 if merged else 0
            kept += 0 if on_gpu else FLOAT * min(KEPT_SCORES, work.scores.get(modality, 0.0))
        kept += h * copies + steps * work.feature_dims[modality] * size
        largest = max(largest, float(h))
    if autocast:
        kept += 2 * work.own_parameters  # half-precision copies of the weights
    below, most = peak_bytes([*work.encoders.values()], half, autocast, on_gpu)
    gradients = 4 if half else 3 if on_gpu else 2
    return max(most, below + kept + FLOAT * largest * gradients, kept + most)


def peak(found: Mapping[str, Mapping[str, float]]) -> tuple[str, float]:
    """The phase of `phase_bytes` that takes most memory, and its bytes."""
    totals = {phase: math.fsum(parts.values()) for phase, parts in found.items()}
    worst = max(totals, key=lambda phase: totals[phase])
    return worst, totals[worst]


def saving_bytes(work: Workload, engine: str) -> float:
    """Additional host memory of rank 0 for checkpoints: weights, averages and Adam's moments in float32.

    With `train.async_checkpoint` it is kept from the first checkpoint on. If they are partitioned, gathering
    the largest tensor takes temporary copies of it.
    """
    gathering = ENGINES[engine].memory.stage > 0
    return (16.0 if work.averaged else 12.0) * work.parameters + 3 * FLOAT * work.largest * gathering


def largest_steps(mean: float, deviation: float, longest: int, micro_batch: int, accumulation: int) -> int:
    """Time steps that few micro-batches exceed: mean plus three standard deviations of their sum.

    The stream gives all ranks about equal work. A rank's N utterances of an optimizer step are divided into
    micro-batches of n at random, without replacement, so the standard deviation of their sums is
    sqrt(n (1 - n / N)) times that of the lengths.

    Args:
        mean, deviation, longest: of the lengths of utterances, in time steps.
        micro_batch: n.
        accumulation: N / n.
    """
    likely = micro_batch * mean + 3 * deviation * math.sqrt(micro_batch * (1 - 1 / accumulation))
    return math.ceil(min(likely, micro_batch * longest))
