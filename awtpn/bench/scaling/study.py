"""The steps of one run on any number of ranks: what `awtpn doctor --scaling` asks of its tables."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from awtpn.bench.encoder_memory.shape import Shape
from awtpn.bench.memory_data import Data
from awtpn.bench.memory_estimate import Workload
from awtpn.bench.memory_table import make_workload
from awtpn.bench.scaling.collectives import Collective, holds_means, step_collectives
from awtpn.bench.scaling.encoder_flops import EncoderCost
from awtpn.bench.scaling.network import Network
from awtpn.bench.scaling.predict import Machine, Step, predict
from awtpn.bench.scaling.shares import cost_of_ranks, step_lengths
from awtpn.config.schema import Config
from awtpn.distributed.batch_layout import Layout, make_layout
from awtpn.distributed.engines import ENGINES
from awtpn.distributed.engines.deepspeed_config import ZERO, parse_buckets
from shards.tools.simulate import SplitSizes

# Bytes that AdamW reads and writes for a weight: the gradients' norm reads them once more; the update reads
# four float32 tensors and writes three.
UPDATE_BYTES = 32


@dataclass(frozen=True)
class Study:
    """All that the steps on any number of ranks have in common.

    Attributes:
        config: of the run.
        data: lengths and sizes.
        sizes: of the split that is planned.
        encoders: by modality the encoders and their FLOPs.
        machine, network, host: see `predict`.
    """

    config: Config
    data: Data
    sizes: SplitSizes
    encoders: Mapping[str, tuple[Shape, EncoderCost]]
    machine: Machine
    network: Network
    host: Network

    @functools.cached_property
    def mean_steps(self) -> dict[str, float]:
        """Stored time steps of a mean utterance, by modality of the model."""
        return {m: self.data.mean_steps[m] for m in self.config.model.modalities}

    def lengths(self, global_batch: int) -> list[NDArray[np.float64]]:
        """`step_lengths`, kept: it does not depend on the ranks."""
        if global_batch not in self._lengths:
            self._lengths[global_batch] = step_lengths(self.sizes, global_batch)
        return self._lengths[global_batch]

    @functools.cached_property
    def _lengths(self) -> dict[int, list[NDArray[np.float64]]]:
        return {}

    def engine(self, ranks: int) -> str:
        stage = self.config.train.zero_stage
        if stage is not None:
            return f"zero{stage}"
        return "ddp" if ranks > 1 else "none"

    @functools.cached_property
    def alone(self) -> float:
        """Seconds of computing for an utterance on one rank, in micro-batches of the run's size."""
        batch = self.config.train.global_batch_size
        return self.step(1, batch).computing / batch

    def step(self, ranks: int, global_batch: int) -> Step:
        """The step on so many ranks, of `train.micro_batch_size` or what a rank has, if that is less.

        Raises:
            ValueError: the ranks do not divide the global batch.
        """
        layout = layout_of(self.config, global_batch, ranks)
        config, engine = self.config, self.engine(ranks)
        work = make_workload(config, layout, self.data, on_gpu=True)
        lengths = self.lengths(global_batch)
        costs = [
            cost_of_ranks(of, ranks, layout.accumulation, work, self.mean_steps, self.encoders)
            for of in lengths
        ]
        stage = ENGINES[engine].memory.stage
        twice = holds_means(config, layout)
        updated = work.parameters / (ranks if stage else 1)
        return predict(
            costs,
            [of.tolist() for of in lengths],
            self.machine,
            self.network,
            self.host,
            lambda passes: self.collectives(layout, work, engine, ranks, passes),
            UPDATE_BYTES * updated,
            each_pass=stage >= 2 and ranks > 1,
            twice=twice,
        )

    def collectives(
        self, layout: Layout, work: Workload, engine: str, ranks: int, passes: int
    ) -> list[Collective]:
        return step_collectives(self.config, layout, work, engine, ranks, parse_buckets(ZERO), passes)


def layout_of(config: Config, global_batch: int, ranks: int) -> Layout:
    """The layout of so many ranks: the run's micro-batch, or all that a rank has if that is less."""
    share = global_batch // ranks
    micro = config.train.micro_batch_size
    return make_layout(global_batch, min(micro, share) if micro else None, ranks)
