"""The position of a run, as a checkpoint records it; checked when it is read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from awtpn.model.files import STATE_FILE, read_state
from shards.safe_io.json_fields import from_record


@dataclass
class Position:
    """How far a run is, and what must not change when it resumes."""

    step: int = 0
    """Optimizer steps done."""
    epoch: int = 0
    epoch_step: int = 0
    """Steps done of this epoch."""
    best_f1: float = -1.0
    best_entropy: float = 0.0
    """w-F1 of the best checkpoint on validation data, and its cross-entropy, which decides between equals."""
    best_step: int = 0
    seed: int = 0
    global_batch_size: int = 0
    streams: int = 0
    data: str = ""
    """Digest of the training utterances: their manifest, split and selection."""
    validation_data: str = ""
    """Digest of the validation utterances of best_f1; "" where an older version recorded none."""
    skipped: int = 0
    """Steps skipped because a loss or gradient was not finite; train.skip_budget limits them."""
    left_out: int = 0
    """Steps that changed no weight: `skipped`, and those in which fp16's loss scaler was still searching."""
    damaged: list[str] = field(default_factory=list)
    """Utterances left out because their shard or array is damaged or missing."""
    seconds: float = 0.0
    """Wall time of training so far, over all starts of the run, without set-up."""
    rank_seconds: float = 0.0
    """The same, multiplied by the number of ranks of each start."""
    validated: int = 0
    """The step of the last validation."""
    threads: int = 0
    """CPU threads of each rank; another number changes the last bits of sums."""
    began_from: str = ""
    """The checkpoint that `run.resume` named when the run began; "" if it named none."""


def load_position(folder: Path) -> Position:
    """The position in a checkpoint; `find_resume_problem` checks its other files.

    Raises:
        ValueError: it is not a possible position. One line.
        OSError: its file cannot be read.
    """
    return parse_position(read_state(folder), folder)


def parse_position(state: dict[str, Any], folder: Path) -> Position:
    at = f"{folder / STATE_FILE}: position"
    position = from_record(Position, state.get("position"), at, finite=False)
    for field_ in fields(position):
        value = getattr(position, field_.name)
        least = -1 if field_.name == "best_f1" else 0
        # A cross-entropy has no upper bound.
        if isinstance(value, int | float) and field_.name != "best_entropy" and not least <= value < math.inf:
            raise ValueError(f"{at}.{field_.name} cannot be {value}")
    # An epoch has at least one step.
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
    """Adam's step, and the state of fp16's loss scaler."""
    step, scale = state.get("adam_step"), state.get("loss_scale", {})
    numbers = [step, *(scale.values() if isinstance(scale, dict) else [None])]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < float("inf"):
            raise ValueError(f"{folder / STATE_FILE}: adam_step or loss_scale cannot be {number!r:.60}")
    return float(cast(float, step)), scale
