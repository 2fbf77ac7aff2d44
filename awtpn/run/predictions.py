"""Predictions of a model for every utterance of a split, as a file: one JSON line each, in plan order.

A line holds `key`, and by the task:

- classes: `label` (the truth), `predicted` and `probabilities` by class name
- values: `values` (the truth) and `predicted`, by dimension; the truth is null where it is missing
- labels: `labels` (the truth: 0, or the intensity) and `probabilities`, by label

One global batch is in memory at a time, whatever the size of the split.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from awtpn.distributed.world import World
from awtpn.model.task import Task, predicted_values, probabilities
from awtpn.run.atomic_write import open_atomic
from shards import FeatureBatch
from shards.safe_io.bounded_json import parse_json
from shards.safe_io.json_text import json_text

DIGITS = 6  # decimals of a written probability
SIGNIFICANT = 8  # digits of a written value, whatever its unit: float32 holds no more

WriteBatch = Callable[[FeatureBatch, Tensor], None]
# Of a line of each task: the truth first, by which it is recognized, then what the model answered.
FIELDS = {
    "classification": ("label", "predicted", "probabilities"),
    "regression": ("values", "predicted"),
    "multilabel": ("labels", "probabilities"),
}


def predictions_file(run_dir: Path, role: str) -> Path:
    """The file of the best checkpoint's predictions for the "val" or "test" utterances."""
    return run_dir / f"predictions-{role}.jsonl"


@contextlib.contextmanager
def writing_predictions(path: Path | None, task: Task, world: World) -> Iterator[WriteBatch]:
    """A function that takes each rank's part of a global batch and its logits [B, outputs]; rank 0 writes.

    Every rank calls it for every batch, because it gathers. The file appears when the block succeeds. With
    `path` None (on every rank) nothing is gathered or written.
    """
    if path is None:
        yield lambda batch, logits: None
        return
    with open_atomic(path) if world.is_main else contextlib.nullcontext() as file:

        def record(batch: FeatureBatch, logits: Tensor) -> None:
            # Ranks own consecutive places, so their parts in rank order are in plan order.
            lines = prediction_lines(batch, logits, task)
            lines = [lines[row] for row in batch.place.argsort().tolist()]
            for part in world.all_gather_object(lines):
                if file is not None:
                    file.writelines(json_text(line) + "\n" for line in part)

        yield record


def prediction_lines(batch: FeatureBatch, logits: Tensor, task: Task) -> list[dict[str, Any]]:
    """A line for each utterance of a batch."""
    # Logits that are not finite stop the evaluation at its end, when all such utterances are known. Until
    # then they are written as zeros; the file is removed before anybody reads it.
    logits = logits.float().nan_to_num(0.0, 0.0, 0.0)
    if task.type == "classification":
        columns = (batch.label, logits.argmax(-1), probabilities(logits, task))
        return [
            {
                "key": key,
                "label": task.names[label],
                "predicted": task.names[predicted],
                "probabilities": _named(task, of_classes),
            }
            for key, label, predicted, of_classes in zip(
                batch.key, *(column.tolist() for column in columns), strict=True
            )
        ]
    truth = [
        {name: None if math.isnan(value) else value for name, value in zip(task.names, values, strict=True)}
        for values in batch.host_target.tolist()
    ]
    if task.type == "regression":
        predicted = [
            {name: significant(value) for name, value in zip(task.names, values, strict=True)}
            for values in predicted_values(logits.double(), task).tolist()
        ]
        fields = zip(batch.key, truth, predicted, strict=True)
        return [{"key": key, "values": known, "predicted": values} for key, known, values in fields]
    named = [_named(task, of_labels) for of_labels in probabilities(logits, task).tolist()]
    fields = zip(batch.key, truth, named, strict=True)
    return [{"key": key, "labels": known, "probabilities": of_labels} for key, known, of_labels in fields]


def significant(value: float) -> float:
    """A value of any unit to SIGNIFICANT digits."""
    return float(f"{value:.{SIGNIFICANT}g}")


def _named(task: Task, numbers: Sequence[float]) -> dict[str, float]:
    """Probabilities by the task's names."""
    return {name: round(number, DIGITS) for name, number in zip(task.names, numbers, strict=True)}


def confusion_of(lines: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> NDArray[np.int64]:
    """The confusion matrix [C, C] (truth, prediction); all 0 if one line has a class of another dataset."""
    index = {name: i for i, name in enumerate(classes)}
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    for line in lines:
        if line["label"] not in index or line["predicted"] not in index:
            return np.zeros_like(confusion)
        confusion[index[line["label"]], index[line["predicted"]]] += 1
    return confusion


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The lines of a predictions file.

    Raises:
        ValueError: a line is not a prediction; names the file and the line.
    """
    lines = []
    with path.open() as file:
        for number, line in enumerate(file, 1):
            try:
                prediction = parse_json(line, path)
                _check_line(prediction)
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{path}, line {number}: not a prediction; write the file again with "
                    f"awtpn evaluate MODEL --predictions {quote(str(path))}"
                ) from None
            lines.append(prediction)
    return lines


def _check_line(prediction: Mapping[str, Any]) -> None:
    """Raise KeyError if a line is not a prediction of any task."""
    fields = FIELDS.values()
    of_task = next((of for of in fields if of[0] in prediction), FIELDS["classification"])
    for name in ("key", *of_task):
        prediction[name]


def truth_and_predictions(
    lines: Sequence[Mapping[str, Any]], task_type: str, names: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Truth and prediction of values or labels, [U, K] each in the order of `names`, NaN where null.

    None if a line is of another task or has other names.
    """
    arrays = []
    for field in FIELDS[task_type]:
        found = [_row(line.get(field), names) for line in lines]
        if any(row is None for row in found):
            return None
        arrays.append(np.array(found, np.float64).reshape(len(lines), len(names)))
    truth, predicted = arrays
    return truth, predicted


def _row(given: Any, names: Sequence[str]) -> list[float] | None:
    """Numbers in the order of `names`, NaN for null; None if they are not numbers of these names."""
    if not isinstance(given, Mapping) or given.keys() != set(names):
        return None
    numbers = [given[name] for name in names]
    if any(isinstance(n, bool) or not isinstance(n, int | float | None) for n in numbers):
        return None
    return [math.nan if n is None else float(n) for n in numbers]
