"""The collectives of an optimizer step, with their bytes and calls, as the code and its engines make them.

Of gradients and weights, P trained and A all parameters of s bytes (2 under DeepSpeed in half precision, else
4), n forward and backward passes a step:

- DDP: one all-reduce of the gradients, in buckets, during backward of the last pass.
- ZeRO 0: the same, after backward.
- ZeRO 1: the gradients all-reduced in buckets during backward of the last pass (DeepSpeed's bucket holds
  partitions of several ranks, so that it reduces all of it for all); then the weights all-gathered.
- ZeRO 2: as ZeRO 1, but in each pass.
- ZeRO 3: the weights all-gathered in forward and in backward of each pass, the gradients reduce-scattered.
  Weights that DeepSpeed keeps from forward to backward are counted twice: an upper bound.

Checkpoints, validation and the reduction at the start are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from awtpn.bench.memory_estimate import Workload
from awtpn.bench.scaling.network import Kind
from awtpn.config.schema import Config
from awtpn.distributed.batch_layout import Layout, negatives_cross_micro_batches
from awtpn.distributed.engines import ENGINES
from awtpn.distributed.engines.deepspeed_config import Buckets
from awtpn.learning.negatives import DRAWS
from awtpn.learning.settings import CROSS_MODAL, TERMS
from awtpn.tracking.throughput import WORK

FLOAT, INTEGER = 4, 8  # bytes
DDP_BUCKET = 25 << 20  # bytes, torch's default
# Modules of the network above encoders whose weights ZeRO 3 gathers one after another, for each modality, and
# of the whole: SES, query and key maps; prototypes, classifier.
MODULES, SHARED_MODULES = 3, 2
MODULES_OF_LAYER = 8  # of an encoder's layer: four maps of attention, two of the MLP, two norms
# Small collectives of DeepSpeed in a step: the gradients' norm, and whether all are finite.
ZERO_CHECKS = 2

Beside = Literal["nothing", "last backward", "backward", "passes"]


@dataclass(frozen=True)
class Collective:
    """The collectives of one kind and purpose in an optimizer step.

    Attributes:
        name: for the table.
        kind: what they do.
        size: bytes of all of them together, of whole tensors (`network.collective_s`).
        calls: their number; a fraction for what does not happen in each step.
        beside: computation that may hide them.
        on_host: by gloo between hosts, where others are between devices.
    """

    name: str
    kind: Kind
    size: float
    calls: float
    beside: Beside = "nothing"
    on_host: bool = False


def holds_means(config: Config, layout: Layout) -> bool:
    """Whether a step goes over its micro-batches twice (`awtpn.training.held_means`)."""
    modalities = list(config.model.modalities)
    return negatives_cross_micro_batches(config.loss, modalities, layout, bool(config.encoder))


def step_collectives(
    config: Config, layout: Layout, work: Workload, engine: str, ranks: int, buckets: Buckets, passes: int
) -> list[Collective]:
    """All collectives of an optimizer step; none for one rank.

    Args:
        work: the model; of its data only the classes are read.
        engine: one of ENGINES.
        buckets: DeepSpeed's.
        passes: forward and backward passes of a step.
    """
    if ranks == 1:
        return []
    held = holds_means(config, layout)
    return [
        *_of_gradients(config, work, engine, buckets, passes, held),
        *_of_losses(config, layout, work, held),
        *_on_host(config, layout, work, ranks, held),
    ]


def _of_gradients(
    config: Config, work: Workload, engine: str, buckets: Buckets, passes: int, held: bool
) -> list[Collective]:
    use = ENGINES[engine].memory
    size = 2 if use.half_weights and config.train.precision != "fp32" else FLOAT
    gradients, weights = float(size * work.parameters), float(size * work.weights)
    reductions = math.ceil(work.parameters / buckets.reduce)
    if use.stage == 0 and not use.flat_buckets:  # DDP
        calls = math.ceil(gradients / DDP_BUCKET)
        return [Collective("gradients", "all_reduce", gradients, calls, "last backward")]
    if use.stage == 0:
        return [Collective("gradients", "all_reduce", gradients, reductions)]
    checks = Collective("norm and overflow", "all_reduce", ZERO_CHECKS * FLOAT, ZERO_CHECKS)
    if use.stage < 3:
        times = passes if use.stage == 2 else 1
        beside: Beside = "backward" if use.stage == 2 else "last backward"
        reduced = Collective("gradients", "all_reduce", times * gradients, times * reductions, beside)
        return [reduced, Collective("new weights", "all_gather", size * work.parameters, 1), checks]
    modules = len(work.feature_dims) * MODULES + SHARED_MODULES
    modules += sum(shape.layers * MODULES_OF_LAYER for shape, _ in work.encoders.values())
    calls = max(modules, math.ceil(work.weights / buckets.prefetch))
    gathers = passes * (3 if held else 2)  # forward, backward, and a forward before that without gradients
    return [
        Collective("weights", "all_gather", gathers * weights, gathers * calls, "passes"),
        Collective("gradients", "reduce_scatter", passes * gradients, passes * reductions, "passes"),
        checks,
    ]


def _of_losses(config: Config, layout: Layout, work: Workload, held: bool) -> list[Collective]:
    """Means of the whole batch, where negatives cross ranks or passes; class means of prototypes."""
    found = []
    means = FLOAT * layout.global_batch * config.model.shared_dim * len(config.model.modalities)
    if held:
        found.append(Collective("means of the batch", "all_reduce", means, 1))
    elif config.loss.negatives == "global" and len(config.model.modalities) > 1:
        found += [
            Collective("means of the batch", "all_gather", means, 1),
            Collective("their gradients", "all_reduce", means, 1),
        ]
    if config.prototypes.update == "ema":
        rows = work.classes * work.prototypes_per_class
        found.append(Collective("class sums", "all_reduce", FLOAT * rows * (work.dim + 1), 1))
    return found


def _on_host(config: Config, layout: Layout, work: Workload, ranks: int, held: bool) -> list[Collective]:
    logged, checked = config.train.log_every, config.prototypes.check_every
    figures = len(TERMS) + 2 + len(WORK)
    found = [
        Collective(
            "batch counts",
            "all_reduce",
            INTEGER * count_numbers(config, layout, work, ranks, held),
            1,
            on_host=True,
        ),
        Collective("metrics", "all_reduce", INTEGER * figures, 1 / logged, on_host=True),
    ]
    if checked:
        tensors = MODULES * len(work.feature_dims) + SHARED_MODULES
        size = INTEGER * tensors * ranks / checked
        found.append(Collective("check of replicas", "all_gather", size, 1 / checked, on_host=True))
    return found


def count_numbers(config: Config, layout: Layout, work: Workload, ranks: int, held: bool) -> int:
    """Numbers that `awtpn.training.global_batch.reduce_batch_counts` sums over ranks, of classes."""
    modalities = len(config.model.modalities)
    pairs = len(config.loss.shares_of_pairs(list(config.model.modalities))) if CROSS_MODAL else 0
    table = layout.global_batch if pairs and (config.loss.negatives == "global" or held) else 0
    # Stop, passes of each rank, fingerprint, classes, modalities, empty; pairs, their draws; the slot table.
    return 1 + ranks + 1 + work.classes + modalities + 1 + pairs * (1 + len(DRAWS)) + table
