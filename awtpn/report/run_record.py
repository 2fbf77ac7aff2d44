"""One finished run, as its folder records it. What a run folder does not record is None."""

from __future__ import annotations

import hashlib
import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awtpn.metrics.summary import task_type_of
from awtpn.report.answers import Answers, agree, answers_of
from awtpn.run.predictions import confusion_of, predictions_file, read_predictions
from shards.safe_io.bounded_json import parse_json

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # steps, values
# Key of a split's figures by class, dimension or label.
PARTS = {"classification": "per_class", "regression": "per_dimension", "multilabel": "per_label"}


@dataclass(frozen=True)
class RunRecord:
    """One finished run, as its folder records it."""

    dir: Path
    config: dict[str, Any]
    status: dict[str, Any]
    results: dict[str, Any]
    model: dict[str, Any]  # the best checkpoint's card: dataset, provenance, classes, dims

    @property
    def role(self) -> str:
        """The split that is reported: "test", or "val" if there were no test utterances."""
        return "test" if "test" in self.results else "val"

    @property
    def metrics(self) -> dict[str, Any]:
        """As `awtpn.metrics.classification.summarize` returns them, or that of another task."""
        found: dict[str, Any] = self.results[self.role]
        return found

    @property
    def task_type(self) -> str:
        """The type of the task: "classification", "regression" or "multilabel"."""
        return task_type_of(self.metrics)

    @property
    def parts(self) -> dict[str, dict[str, Any]]:
        """The figures of each class, dimension or label, by name."""
        found: dict[str, dict[str, Any]] = self.metrics[PARTS[self.task_type]]
        return found

    @property
    def names(self) -> list[str]:
        """The names of the classes, dimensions or labels, in order."""
        return list(self.metrics["labels"] if self.task_type == "classification" else self.parts)

    @property
    def seed(self) -> int:
        return int(self.config["run"]["seed"])

    @property
    def fold(self) -> str:
        """The utterances held out for the test, such as "fold 0"; empty without a selection."""
        select = self.config["data"]["select"]["test"] or {}
        values = {key: value if isinstance(value, list) else [value] for key, value in select.items()}
        return ", ".join(f"{key} {' '.join(map(str, value))}" for key, value in values.items())

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """Of a classification: [C, C], true classes as rows."""
        return np.array(self.metrics["confusion_matrix"], np.int64)

    @cached_property
    def predictions(self) -> list[dict[str, Any]] | None:
        """The predicted classes; None if the run kept none, or if they don't match its confusion matrix."""
        found = self._lines_of_predictions()
        if found is None or np.array_equal(confusion_of(found, self.names), self.confusion):
            return found
        self._warn_of_predictions()
        return None

    @cached_property
    def answers(self) -> Answers | None:
        """The predicted values, or probabilities of labels; None as of `predictions`."""
        lines = self._lines_of_predictions()
        if lines is None:
            return None
        found = answers_of(lines, self.task_type, self.names)
        if found is None or not agree(found, self.metrics):
            self._warn_of_predictions()
            return None
        return found

    def _lines_of_predictions(self) -> list[dict[str, Any]] | None:
        file = predictions_file(self.dir, self.role)
        if not file.is_file():
            return None
        lines = read_predictions(file)
        of_classes = all("label" in line for line in lines)
        if of_classes == (self.task_type == "classification"):
            return lines
        self._warn_of_predictions()  # of another task
        return None

    def _warn_of_predictions(self) -> None:
        file = predictions_file(self.dir, self.role)
        print(
            f"warning: {file} is left out: it does not match the metrics in results.json. Write it again "
            f"with awtpn evaluate {shlex.quote(str(self.dir))} --split {self.role} "
            f"--predictions {shlex.quote(str(file))}",
            file=sys.stderr,
        )

    def interval_of(self, dimension: str) -> float | None:
        """Half of the width of a dimension's 90 % interval; None where it is not defined.

        It is measured on the validation utterances if `has_own_interval`, else on the reported ones.
        """
        figures: Mapping[str, Any] = self.results["val"] if self.has_own_interval else self.metrics
        row = figures["per_dimension"].get(dimension, {})
        width: float | None = row.get("interval")
        return width

    @property
    def has_own_interval(self) -> bool:
        """Whether the interval was measured on other utterances than the reported ones."""
        return self.role == "test" and task_type_of(self.results.get("val") or {}) == "regression"

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return [
            parse_json(line, f"{self.dir / 'metrics.jsonl'}, line {number}")
            for number, line in enumerate((self.dir / "metrics.jsonl").read_text().splitlines(), 1)
        ]

    @property
    def skipped_steps(self) -> tuple[int, int]:
        """Number of optimizer steps that were skipped because they were not finite, and of all steps."""
        return sum(bool(line.get("skipped")) for line in self.lines), len(self.lines)

    @property
    def fingerprints(self) -> tuple[str, str]:
        """Fingerprint of the last step's utterances, and a digest of all steps' fingerprints."""
        words = [line["fingerprint"] for line in self.lines]
        return words[-1], hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]

    def curve(self, name: str) -> Curve:
        """A value of metrics.jsonl over the steps, without steps at which it was not finite."""
        points = [(line["step"], line[name]) for line in self.lines if line[name] is not None]
        return np.array([p[0] for p in points], float), np.array([p[1] for p in points], float)

    def epoch_mean(self, name: str, epoch: int) -> float:
        """Mean of a value of metrics.jsonl over an epoch's steps; NaN if none is finite.

        Args:
            name: of the value.
            epoch: counted among the epochs that the run has; -1 is the last.
        """
        epochs = sorted({line["epoch"] for line in self.lines})
        found = [line[name] for line in self.lines if line["epoch"] == epochs[epoch]]
        finite = [value for value in found if value is not None]
        return float(np.mean(finite)) if finite else math.nan

    def validations(self, metric: str) -> list[tuple[int, float]]:
        """(step, value of a metric) of each validation, from TensorBoard; empty if there was none."""
        return validations(self.dir, metric)


def validations(run_dir: Path, metric: str = "w-F1") -> list[tuple[int, float]]:
    """(step, value of a metric) of a run's validations; empty if it had none, or its event files are gone."""
    if not (run_dir / "tensorboard").is_dir():
        return []
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # All scalars (0 means no limit), and as little as possible of everything else.
    kept = {"scalars": 0, "images": 1, "histograms": 1, "tensors": 1, "compressedHistograms": 1}
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance=kept)
    events.Reload()
    tag = f"val/{metric}"
    return [(e.step, e.value) for e in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []
