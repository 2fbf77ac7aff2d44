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
    best_by: str = ""
    """The metric that the best checkpoint was chosen by; "" before the first validation."""
    best_value: float | None = None
    best_tie: float | None = None
    """That metric of the best checkpoint on validation data, None where it is not defined; and the metric
    that decides between equals (`metrics.summary.TIE_BREAKS`)."""
    best_step: int = 0
    seed: int = 0
    global_batch_size: int = 0
    streams: int = 0
    data: str = ""
    """Digest of the training utterances: their manifest, split and selection."""
    validation_data: str = ""
    """Digest of the validation utterances of best_value; "" where an older version recorded none."""
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
    without_best: int = 0
    """Validations since the best one."""
    stopped_early: int = 0
    """Validations without a new best after which train.patience ended the run; 0: it did not."""
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
    position = from_record(Position, _in_todays_form(state.get("position")), at, finite=False)
    for field_ in fields(position):
        value = getattr(position, field_.name)
        # A metric may be negative, and a cross-entropy has no upper bound.
        metric = field_.name in ("best_value", "best_tie")
        if isinstance(value, int | float) and not metric and not 0 <= value < math.inf:
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


def _in_todays_form(record: Any) -> Any:
    """The record of an earlier version, which knew one metric, w-F1, by the names of today."""
    if not isinstance(record, dict) or "best_f1" not in record:
        return record
    record = dict(record)
    value, tie = record.pop("best_f1"), record.pop("best_entropy", 0.0)
    none = value == -1.0
    return record | {
        "best_by": "" if none else "w-F1",
        "best_value": None if none else value,
        "best_tie": None if none else tie,
    }


def parse_adam(state: dict[str, Any], folder: Path) -> tuple[float, dict[str, float]]:
    """Adam's step, and the state of fp16's loss scaler."""
    step, scale = state.get("adam_step"), state.get("loss_scale", {})
    numbers = [step, *(scale.values() if isinstance(scale, dict) else [None])]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < float("inf"):
            raise ValueError(f"{folder / STATE_FILE}: adam_step or loss_scale cannot be {number!r:.60}")
    return float(cast(float, step)), scale
