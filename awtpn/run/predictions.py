"""Predictions of a model for every utterance of a split, as a file: one JSON line each, in plan order.

A line holds `key`, `label` (the truth), `predicted` and `probabilities` by class name. One global batch is
in memory at a time, whatever the size of the split.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from awtpn.distributed.world import World
from awtpn.run.atomic_write import open_atomic
from shards import FeatureBatch
from shards.safe_io.bounded_json import parse_json
from shards.safe_io.json_text import json_text

DIGITS = 6  # of a written probability

WriteBatch = Callable[[FeatureBatch, Tensor], None]
Row = tuple[str, int, int, list[float]]  # key, label, predicted, probabilities


def predictions_file(run_dir: Path, role: str) -> Path:
    """The file of the best checkpoint's predictions for the "val" or "test" utterances."""
    return run_dir / f"predictions-{role}.jsonl"


@contextlib.contextmanager
def writing_predictions(path: Path | None, classes: Sequence[str], world: World) -> Iterator[WriteBatch]:
    """A function that takes each rank's part of a global batch and its logits [B, C]; rank 0 writes.

    Every rank calls it for every batch, because it gathers. The file appears when the block succeeds. With
    `path` None (on every rank) nothing is gathered or written.
    """
    if path is None:
        yield lambda batch, logits: None
        return
    with open_atomic(path) if world.is_main else contextlib.nullcontext() as file:

        def record(batch: FeatureBatch, logits: Tensor) -> None:
            # Ranks own consecutive places, so their parts in rank order are in plan order.
            for part in world.all_gather_object(_rows(batch, logits)):
                if file is not None:
                    _write(file, part, classes)

        yield record


def _rows(batch: FeatureBatch, logits: Tensor) -> list[Row]:
    # Logits that are not finite stop the evaluation at its end, when all such utterances are known. Until
    # then they are written as zeros; the file is removed before anybody reads it.
    logits = logits.float().nan_to_num(0.0, 0.0, 0.0)
    columns = (batch.label, logits.argmax(-1), logits.softmax(-1))
    return list(zip(batch.key, *(column.tolist() for column in columns), strict=True))


def _write(file: TextIO, rows: list[Row], classes: Sequence[str]) -> None:
    for key, label, predicted, probabilities in rows:
        line = {
            "key": key,
            "label": classes[label],
            "predicted": classes[predicted],
            "probabilities": {name: round(p, DIGITS) for name, p in zip(classes, probabilities, strict=True)},
        }
        file.write(json_text(line) + "\n")


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
                prediction["key"], prediction["label"], prediction["predicted"], prediction["probabilities"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{path}, line {number}: not a prediction; write the file again with "
                    f"awtpn evaluate MODEL --predictions {quote(str(path))}"
                ) from None
            lines.append(prediction)
    return lines
