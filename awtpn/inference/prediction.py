"""The prediction for one utterance: a class, labels, or values with intervals; and the steps' weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from awtpn.inference.intervals import HalfWidths, Intervals, interval_around
from awtpn.metrics.multilabel import THRESHOLD
from awtpn.model.task import Task, predicted_values, probabilities
from awtpn.run.predictions import significant
from shards.safe_io.printable import listed

DIGITS = 6  # decimals of a written probability or weight


@dataclass(frozen=True)
class Prediction:
    """The prediction for one utterance. What the model's task does not have is None.

    Attributes:
        label: the most probable class (classification).
        probabilities: by class name, which sum to 1; or of each label (multilabel). Empty for values.
        weights: per modality the steps' reliability weights [T] float32 (Eq. 15-18), which sum to 1; empty
            for a modality that the utterance lacks. {} of a baseline, which has no reliability weights.
        labels: those that are present, their probability being above `metrics.multilabel.THRESHOLD`, 0.5, in
            the model's order; there may be none (multilabel).
        values: by dimension, in the unit of the target (regression).
        intervals: by dimension the 90 % prediction interval (low, high), or None where it is not known; see
            `awtpn.inference.intervals` (regression).
    """

    label: str | None
    probabilities: dict[str, float]
    weights: dict[str, NDArray[np.float32]]
    labels: list[str] | None = None
    values: dict[str, float] | None = None
    intervals: Intervals | None = None

    @property
    def is_finite(self) -> bool:
        """Whether no probability, value or weight is NaN or infinite."""
        given = [*self.probabilities.values(), *(self.values or {}).values()]
        return all(bool(np.isfinite(of).all()) for of in [np.array(given), *self.weights.values()])

    def as_json(self) -> dict[str, Any]:
        """The prediction as plain JSON, only what the task has; probabilities to six decimals."""
        found: dict[str, Any] = {}
        if self.values is not None:
            found["values"] = {name: significant(value) for name, value in self.values.items()}
            found["intervals"] = {
                name: None if span is None else [significant(end) for end in span]
                for name, span in (self.intervals or {}).items()
            }
        else:
            found |= {"label": self.label} if self.labels is None else {"labels": self.labels}
            found["probabilities"] = {name: round(p, DIGITS) for name, p in self.probabilities.items()}
        rounded = {m: [round(float(w), DIGITS) for w in weights] for m, weights in self.weights.items()}
        return found | {"weights": rounded}

    def described(self) -> str:
        """The answer in a few words: "happy", "happy and sad", "no label", "valence 3.2, arousal 1.5"."""
        if self.values is not None:
            return ", ".join(f"{name} {value:.4g}" for name, value in self.values.items())
        if self.labels is not None:
            return listed(self.labels) if self.labels else "no label"
        return str(self.label)


def make_predictions(
    logits: Tensor,
    weights: Mapping[str, Sequence[Tensor]],
    task: Task,
    half_widths: HalfWidths,
) -> list[Prediction]:
    """The predictions for B utterances.

    Args:
        logits: [B, outputs].
        weights: per modality, of each utterance the steps' weights [T], on the CPU.
        task: of the model.
        half_widths: of the dimensions' intervals; not used for other tasks.
    """
    regression = task.type == "regression"
    rows = predicted_values(logits.double(), task) if regression else probabilities(logits, task)
    found = []
    for i, row in enumerate(rows.cpu()):
        of_steps = {modality: of[i].numpy() for modality, of in weights.items()}
        named = dict(zip(task.names, row.tolist(), strict=True))
        if regression:
            assert task.ranges is not None
            intervals = {
                name: interval_around(value, half_widths.get(name), bounds)
                for (name, value), bounds in zip(named.items(), task.ranges, strict=True)
            }
            found.append(Prediction(None, {}, of_steps, values=named, intervals=intervals))
        elif task.type == "multilabel":
            present = [name for name, share in named.items() if share > THRESHOLD]
            found.append(Prediction(None, named, of_steps, labels=present))
        else:
            found.append(Prediction(task.names[int(row.argmax())], named, of_steps))
    return found
