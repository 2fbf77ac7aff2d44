"""Where a run stands: what a checkpoint records of it, checked where it is read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from awtpn.model.files import STATE_FILE, read_state
from shards.safe_io.json_fields import from_record


@dataclass
class Position:
    """Where a run stands, and what must not change for it to go on."""

    step: int = 0
    """Optimizer steps done."""
    epoch: int = 0
    epoch_step: int = 0
    """Steps done of this epoch."""
    best_f1: float = -1.0
    best_entropy: float = 0.0
    """The best checkpoint's w-F1 and, which decides between equals, cross-entropy on validation data."""
    best_step: int = 0
    seed: int = 0
    global_batch_size: int = 0
    streams: int = 0
    data: str = ""
    """Digest of the training utterances: their manifest, split and selection."""
    validation_data: str = ""
    """Digest of the validation utterances that best_f1 is of; "" where an older version recorded none."""
    skipped: int = 0
    """Steps left out because a loss or gradient was not finite; train.skip_budget bounds them."""
    left_out: int = 0
    """Steps that changed nothing: `skipped`, and those with which fp16's loss scale found its range."""
    damaged: list[str] = field(default_factory=list)
    """Utterances left out because their shard or array is damaged or missing."""
    seconds: float = 0.0
    """Wall time that the run took so far, over all its starts, without getting ready."""
    rank_seconds: float = 0.0
    """The same times the ranks that took part."""
    validated: int = 0
    """The step of the last validation."""
    threads: int = 0
    """CPU threads of each rank: another number changes the last bits of sums."""
    began_from: str = ""
    """The checkpoint that `run.resume` named when the run began from one."""


def load_position(folder: Path) -> Position:
    """Where the run of a checkpoint stands; see `problem` for its other files.

    Raises:
        ValueError: that cannot be where a run stands. One line.
        OSError: its file cannot be read.
    """
    return parse_position(read_state(folder), folder)


def parse_position(state: dict[str, Any], folder: Path) -> Position:
    at = f"{folder / STATE_FILE}: position"
    position = from_record(Position, state.get("position"), at, finite=False)
    for field_ in fields(position):
        value = getattr(position, field_.name)
        least = -1 if field_.name == "best_f1" else 0
        # A cross-entropy may be of any size.
        if isinstance(value, int | float) and field_.name != "best_entropy" and not least <= value < math.inf:
            raise ValueError(f"{at}.{field_.name} cannot be {value}")
    # An epoch has a step at least.
    for name, least in (
        ("epoch_step", position.epoch_step + position.epoch),
        ("best_step", position.best_step),
        ("validated", position.validated),
        ("skipped", position.skipped),
    ):
        if least > position.step:
            raise ValueError(
                f"{at}.{name} cannot be {getattr(position, name)} at step {position.step} of epoch "
                f"{position.epoch}"
            )
    return position


def parse_adam(state: dict[str, Any], folder: Path) -> tuple[float, dict[str, float]]:
    """Adam's step, and where fp16's search for a loss scale stands."""
    step, scale = state.get("adam_step"), state.get("loss_scale", {})
    numbers = [step, *(scale.values() if isinstance(scale, dict) else [None])]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < float("inf"):
            raise ValueError(f"{folder / STATE_FILE}: adam_step or loss_scale cannot be {number!r:.60}")
    return float(cast(float, step)), scale
