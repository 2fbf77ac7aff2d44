"""90 % prediction intervals around predicted values, by split conformal prediction.

The half-width of a dimension's interval is the "interval" of its validation figures in results.json or in an
export's card: of n residuals |truth - prediction| the ceil(0.9 (n + 1))-th smallest (Vovk et al. 2005; Lei et
al. 2018; `metrics.regression.prediction_interval`). A new utterance that is exchangeable with the validation
utterances has its true value within the interval with a probability of at least 90 %:

- of each dimension alone, not of all at once;
- on average over utterances: the interval has the same width for easy and for hard ones;
- if the validation utterances had no part in the training. They chose the best checkpoint, so the coverage is
  slightly optimistic: expect a little less than 90 %. For other speakers, recordings or annotators it does
  not hold at all.

An interval is cut to the range of its dimension, in which all true values lie. Where the dataset states no
range, it is that of the training utterances, and a true value beyond it is never within the interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from awtpn.metrics.summary import task_type_of
from awtpn.model.files import model_folder
from awtpn.model.task import Task
from awtpn.run.results import RESULTS_FILE, StoredResults, read_results
from shards.storage.local_path import local_path

Interval = tuple[float, float]
Intervals = dict[str, Interval | None]
HalfWidths = dict[str, float | None]


def half_widths(results: Any, task: Task) -> HalfWidths:
    """Half of the width of each dimension's interval, None where it is not known.

    Args:
        results: of a run, or of a model's card, which others may have written; None if there are none.
        task: of the model; the result is empty unless it is a regression.
    """
    if task.type != "regression":
        return {}
    figures = _member(results, "val")
    known = isinstance(figures, Mapping) and task_type_of(figures) == "regression"
    rows = _member(figures, "per_dimension") if known else None
    return {name: _half_width(_member(_member(rows, name), "interval")) for name in task.names}


def _member(record: Any, name: str) -> Any:
    return record.get(name) if isinstance(record, Mapping) else None


def _half_width(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < math.inf else None


def interval_around(value: float, half_width: float | None, bounds: Sequence[float]) -> Interval | None:
    """(low, high) around a value, cut to the range `bounds`; None if the half-width is not known.

    A value outside of the range, which a linear head can predict, may have an interval of one point.
    """
    if half_width is None:
        return None
    low, high = bounds
    return min(max(value - half_width, low), high), max(min(value + half_width, high), low)


def results_of_run(source: str | Path) -> StoredResults:
    """The results of the run whose folder or checkpoint `source` is, if they belong to the weights there.

    Raises:
        ValueError: results.json is not JSON.
    """
    path = local_path(source)
    if not path.is_dir():
        return StoredResults(None, None)
    if (path / RESULTS_FILE).is_file():
        return read_results(path, model_folder(path))
    folder = path.resolve()
    if folder.parent.name == "checkpoints":  # RUN/checkpoints/step-00000100
        return read_results(folder.parent.parent, folder)
    return StoredResults(None, None)
