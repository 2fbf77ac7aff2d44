"""What a running training holds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

from awtpn.config.schema import Config
from awtpn.distributed.batch_layout import Layout, negatives_cross_micro_batches
from awtpn.distributed.cpu_threads import ONE_PIECE, PieceThreads
from awtpn.distributed.engines import ENGINES, Engine
from awtpn.distributed.stopping import StopFlag
from awtpn.distributed.watchdog import Watchdog
from awtpn.distributed.world import World
from awtpn.learning.part_norms import PartNorms
from awtpn.learning.settings import CROSS_MODAL, terms_of
from awtpn.run.checkpoint_writer import CheckpointWriter
from awtpn.run.position import Position
from awtpn.run.remote.session import RemoteRun
from awtpn.tracking.profile import StepProfiler
from awtpn.tracking.trackers import Trackers
from shards import FeatureStream


@dataclass
class Run:
    """The state of one process of a training run."""

    config: Config
    accelerator: Accelerator
    world: World
    layout: Layout
    dir: Path
    train: FeatureStream
    val: FeatureStream | None
    test: FeatureStream | None
    model: nn.Module
    """Wrapped by the engine, as `optimizer` is."""
    optimizer: torch.optim.Optimizer
    position: Position
    total_steps: int
    class_weights: NDArray[np.float64] | None
    card: dict[str, Any]
    stop: StopFlag
    watchdog: Watchdog
    piece_threads: PieceThreads = ONE_PIECE
    """Share each micro-batch, where the engine allows it and the device is a CPU."""
    parameters: int = 0
    """Of the whole model."""
    best_by: str = "w-F1"
    """The metric that the best checkpoint is chosen by."""
    validate_every: int = 1
    """Epochs between validations; `train.validate_every`, or what is chosen for this run."""
    changed: list[str] = field(default_factory=list)
    """What the best checkpoint in `position` was chosen by, and is another one now: data or metric."""
    continues: bool = False
    """It begins as the model of features that `run.init_from` names, with the encoders of these features."""
    norms: PartNorms | None = None
    """Measures the norms of the model's parts, in the steps of `track.norms_every`."""
    profiler: StepProfiler = field(default_factory=StepProfiler)
    """Records the steps of `train.profile`."""
    trackers: Trackers = field(default_factory=Trackers)
    """The services of `track.to`; none but on the main rank."""
    pending: list[dict[str, Any]] = field(default_factory=list)
    """What `train_step` found of each step that `flush` has not written yet; tensors are on the device."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Name and cause of each utterance that was found damaged since this start."""
    told_empty: bool = False
    """The user knows that some utterances have none of the modalities in use."""
    since: float = 0.0
    """When the oldest pending step began."""
    counted: float = field(default_factory=time.perf_counter)
    """`position` counts the run's time up to this moment."""
    writer: CheckpointWriter = field(default_factory=CheckpointWriter)
    """Writes checkpoints beside the training; idle on other ranks than the main rank."""
    remote: RemoteRun | None = None
    """What is at the URL, if `run.dir` is one; on all ranks or on none."""

    @property
    def stops(self) -> bool:
        """This rank asks all to stop: it got a signal, or a checkpoint could not be written or sent."""
        not_sent = self.remote is not None and self.remote.failure is not None
        return self.stop.is_set() or self.writer.failure is not None or not_sent

    @property
    def terms(self) -> tuple[str, ...]:
        """The loss terms of the run's model."""
        return terms_of(self.config.model.name)

    @property
    def holds_means(self) -> bool:
        """Whether the cross-modal terms are computed for the whole batch: see `awtpn.training.held_means`."""
        crosses = negatives_cross_micro_batches(
            self.config.loss, list(self.config.model.modalities), self.layout, bool(self.config.encoder)
        )
        return crosses and set(CROSS_MODAL) <= set(self.terms)

    @property
    def checkpoints(self) -> Path:
        return self.dir / "checkpoints"

    @property
    def engine(self) -> Engine:
        return ENGINES[self.world.engine]
