"""Which checkpoint is the best: by one metric of the task on the validation data (`train.best_by`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from awtpn.metrics.summary import TIE_BREAKS, better, task_type_of
from awtpn.run.position import Position


def is_best(figures: Mapping[str, Any], position: Position, best_by: str) -> bool:
    """Whether a validation is better than that of the best checkpoint so far; the first one always is.

    Between equals, a second metric of the task decides (`TIE_BREAKS`): of equal w-F1, the smaller
    cross-entropy.
    """
    if not position.best_step or position.best_by != best_by:
        return True
    tie = TIE_BREAKS[task_type_of(figures)]
    if figures[best_by] == position.best_value:
        return better(tie, figures[tie], position.best_tie)
    return better(best_by, figures[best_by], position.best_value)


def record_best(figures: Mapping[str, Any], position: Position, best_by: str) -> None:
    """Write a validation's figures into the position as those of the best checkpoint."""
    position.best_by, position.best_value = best_by, figures[best_by]
    position.best_tie = figures[TIE_BREAKS[task_type_of(figures)]]


def forget_best(position: Position) -> None:
    """Without validation figures: the next checkpoint is the best."""
    position.best_by, position.best_value, position.best_tie = "", None, None
