"""Steps that were skipped, and values that are not finite: refused where nothing was or could be learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from awtpn.model.finite_outputs import NotFiniteError
from awtpn.run.position import Position

FIX = "check these utterances' features for huge values, or lower optim.lr; then train in another run.dir"


def steps_left_out(position: Position) -> int:
    """Steps of a run whose update was skipped, over all its starts."""
    # Checkpoints of an older version have only `skipped`.
    return max(position.left_out, position.skipped)


def describe_steps(position: Position) -> dict[str, Any]:
    """For status.json and results.json: steps done, how many of them were skipped, and an early stop."""
    early = {"stopped_early": position.stopped_early} if position.stopped_early else {}
    return {"step": position.step, "skipped": steps_left_out(position)} | early


def check_any_step_counted(position: Position) -> None:
    """Refuse to finish a run that learned nothing.

    Raises:
        NotFiniteError: every step was skipped; on every rank.
    """
    if 0 < position.step <= steps_left_out(position):
        raise NotFiniteError(
            f"all {position.step} steps were skipped, since losses or gradients were not finite, so nothing "
            f"was learned: {FIX} (metrics.jsonl lists the steps, the output above the utterances)"
        )


def check_statistics(what: str, mean: NDArray[np.float64], std: NDArray[np.float64]) -> None:
    """Refuse means or standard deviations [D] that float32 cannot hold.

    Raises:
        ValueError: names `what` and the feature's index.
    """
    with np.errstate(over="ignore"):
        held = np.isfinite(mean.astype(np.float32)) & np.isfinite(std.astype(np.float32))
    if not held.all():
        first = int(np.flatnonzero(~held)[0])
        raise ValueError(
            f"{what}[{first}] has mean {mean[first]:.6g} and deviation {std[first]:.6g} over the training "
            "utterances, so it cannot be standardized: correct these features and pack them again"
        )


def check_finite_start(model: nn.Module, resumed: Path | None) -> None:
    """Refuse to start with weights that are NaN or infinite: every step would be skipped.

    Raises:
        ValueError: names the tensor, and where it came from.
    """
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            fix = (
                f"{resumed} is broken: resume an earlier checkpoint with --run.resume"
                if resumed
                else "check run.init_from, or with prototypes.init=data the training utterances' features"
            )
            raise ValueError(f"the run would begin with values of {name} that are NaN or infinite: {fix}")
