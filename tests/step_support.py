"""A training run without data, launcher or files, for tests of one optimizer step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from support import CLASSES
from torch import nn

from awtpn.config.schema import Config
from awtpn.distributed.batch_layout import Layout
from awtpn.distributed.stopping import StopFlag
from awtpn.distributed.world import World
from awtpn.run.position import Position
from awtpn.training.run_state import Run


def make_run(
    config: Config,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Any,
    device: torch.device,
    global_batch: int,
    accumulation: int = 1,
) -> Run:
    """A run of one process for `training.step.train_step`; fields that a step does not use are None."""
    absent: Any = None
    return Run(
        config=config,
        accelerator=accelerator,
        world=World(0, 1, 0, device, None, "none"),
        layout=Layout(global_batch, global_batch // accumulation, accumulation),
        dir=Path(),
        train=SimpleNamespace(classes=CLASSES, steps_per_epoch=10),  # type: ignore[arg-type]
        val=None,
        test=None,
        model=model.train(),
        optimizer=optimizer,
        position=Position(),
        total_steps=300,
        class_weights=np.ones(len(CLASSES)) if config.loss.class_weights == "balanced" else None,
        card={},
        stop=StopFlag(),
        watchdog=absent,
    )
