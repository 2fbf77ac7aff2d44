"""Confidence intervals of a run's results, and how many true values its prediction intervals hold.

results.json holds enough for the intervals of classes, a confusion matrix. For values and labels the
bootstrap needs the truth and the prediction of each utterance, which are in the run's predictions-*.jsonl.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awtpn.inference.intervals import half_widths
from awtpn.metrics.bootstrap_values import bootstrap_labels, bootstrap_values
from awtpn.metrics.multilabel import summarize_labels
from awtpn.metrics.regression import summarize_values
from awtpn.metrics.summary import HEADLINES
from awtpn.model.sharing.card_results import Measured, reported
from awtpn.model.task import Task, task_of_card
from awtpn.run.predictions import predictions_file, read_predictions, truth_and_predictions

# Largest difference between figures of results.json and those of the predictions, which are rounded.
SAME = 1e-3


def measure(card: Mapping[str, Any], run_dir: Path) -> tuple[Measured | None, str | None]:
    """What the predictions in a run folder tell of the results that a card reports.

    Args:
        card: of the run's model, with its `results`.
        run_dir: the run folder.

    Returns:
        What is measured, None for classes and where there are no predictions; and a line if the predictions
        are left out, since they are not those of the results.

    Raises:
        ValueError: the file of predictions is damaged.
    """
    task = task_of_card(card)
    role, figures = reported(card)
    if role is None or task.type == "classification":
        return None, None
    file = predictions_file(run_dir, role)
    if not file.is_file():
        return None, None
    found = truth_and_predictions(read_predictions(file), task.type, task.names)
    if found is None or not len(found[0]) or not _same(figures, *found, task):
        return None, f"{file} does not match the results: they are exported without confidence intervals"
    truth, predicted = found
    if task.type == "multilabel":
        return Measured(bootstrap_labels(truth, [predicted]), {}), None
    intervals = bootstrap_values(truth, [predicted], task.ranges)
    # The prediction intervals are made of the validation utterances, so those cannot tell what they hold.
    widths = half_widths(card["results"], task) if role == "test" else dict.fromkeys(task.names)
    return Measured(intervals, coverage(truth, predicted, task, widths)), None


def coverage(
    truth: NDArray[np.float64], predicted: NDArray[np.float64], task: Task, widths: Mapping[str, float | None]
) -> dict[str, float]:
    """By dimension the share of the true values that lie within the interval around the prediction.

    Args:
        truth, predicted: [U, K], of `run.predictions.truth_and_predictions`.
        task: a regression.
        widths: half of the width of each dimension's interval; None where it is not known.
    """
    found = {}
    for k, name in enumerate(task.names):
        known, half = ~np.isnan(truth[:, k]), widths[name]
        if half is not None and known.any():
            found[name] = float((np.abs(truth[:, k] - predicted[:, k])[known] <= half).mean())
    return found


def _same(
    figures: Mapping[str, Any], truth: NDArray[np.float64], predicted: NDArray[np.float64], task: Task
) -> bool:
    """Whether the figures are those of the predictions."""
    if task.type == "regression":
        of_lines = summarize_values(truth, predicted, task.names, task.ranges)
    else:
        of_lines = summarize_labels(truth, predicted, task.names)
    pairs = [(figures.get(name), of_lines[name]) for name in HEADLINES[task.type]]
    return figures.get("utterances") == of_lines["utterances"] and all(
        one is other if one is None or other is None else abs(one - other) <= SAME * max(1.0, abs(other))
        for one, other in pairs
    )
