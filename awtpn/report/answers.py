"""Predicted values, or probabilities of labels, as arrays: of one run, and of several together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awtpn.metrics.bootstrap_values import label_replicates, value_replicates
from awtpn.metrics.multilabel import THRESHOLD
from awtpn.metrics.summary import SENTIMENT, task_type_of
from awtpn.run.predictions import truth_and_predictions

Floats = NDArray[np.float64]
# Predictions are written with six decimals: what a written number may differ from the model's.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Answers:
    """What a model answered for each utterance.

    Attributes:
        keys: of the U utterances.
        truth: [U, K] true values or intensities, NaN where missing.
        given: [U, K] predicted values or probabilities.
    """

    keys: list[str]
    truth: Floats
    given: Floats

    @property
    def residual(self) -> Floats:
        """truth - prediction [U, K], NaN where the truth is missing."""
        return self.truth - self.given


def answers_of(lines: Sequence[Mapping[str, Any]], task_type: str, names: Sequence[str]) -> Answers | None:
    """The answers in lines of predictions; None if a line is of another task or has other names."""
    found = truth_and_predictions(lines, task_type, names)
    return None if found is None else Answers([str(line["key"]) for line in lines], *found)


def agree(answers: Answers, figures: Mapping[str, Any]) -> bool:
    """Whether figures can be those of these answers, whose numbers are rounded."""
    if task_type_of(figures) == "regression":
        rows = figures["per_dimension"].values()
        return all(_values_agree(column, row) for column, row in zip(answers.residual.T, rows, strict=True))
    columns = zip(answers.truth.T, answers.given.T, figures["per_label"].values(), strict=True)
    threshold = threshold_of(figures)
    return all(_labels_agree(truth, given, row, threshold) for truth, given, row in columns)


def _values_agree(residual: Floats, row: Mapping[str, Any]) -> bool:
    known = residual[~np.isnan(residual)]
    if row["MAE"] is None:  # the model answered no numbers, or there are no true values
        return True
    return len(known) == row["utterances"] and math.isclose(
        float(np.abs(known).mean()), row["MAE"], rel_tol=1e-9, abs_tol=2 * ROUNDING
    )


def _labels_agree(truth: Floats, given: Floats, row: Mapping[str, Any], threshold: float) -> bool:
    known = ~np.isnan(truth)
    present = truth > 0
    if (int(known.sum()), int((known & present).sum())) != (row["utterances"], row["positives"]):
        return False
    if row["accuracy"] is None:
        return True
    right = int((known & (present == (given > threshold))).sum())
    # Rounding may have moved these to the other side of the threshold.
    unsure = int((known & (np.abs(given - threshold) <= ROUNDING)).sum())
    return abs(right - row["accuracy"] * row["utterances"]) <= unsure + 0.5


def threshold_of(figures: Mapping[str, Any]) -> float:
    """The probability above which the figures count a label as predicted."""
    return float(figures.get("threshold", THRESHOLD))


def together(runs: Sequence[Answers]) -> Answers:
    """The answers of several runs, one after another."""
    return Answers(
        [key for run in runs for key in run.keys],
        np.concatenate([run.truth for run in runs]),
        np.concatenate([run.given for run in runs]),
    )


def by_utterance(answers: Answers) -> list[tuple[str, Floats, Floats]]:
    """Of each utterance: its key, its truth [K], and what all models answered [models, K]."""
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(answers.keys):
        rows.setdefault(key, []).append(row)
    return [(key, answers.truth[of_key[0]], answers.given[of_key]) for key, of_key in rows.items()]


def replicates(
    runs: Sequence[Answers | None], figures: Mapping[str, Any], seed: int
) -> tuple[tuple[str, ...], Floats] | None:
    """Bootstrap of the mean over runs that were tested on the same utterances.

    Args:
        runs: answers of each.
        figures: of one of the runs.
        seed: of the draws.

    Returns:
        Names of the metrics, and their values in every draw [resamples, metrics], NaN where not defined; None
        if a run has no answers, or the runs have those of different utterances.
    """
    known = [run for run in runs if run is not None]
    if len(known) < len(runs) or not known[0].keys:
        return None
    places = [{key: row for row, key in enumerate(run.keys)} for run in known]
    if any(place.keys() != places[0].keys() for place in places):
        return None
    order = list(places[0])
    given = [run.given[[place[key] for key in order]] for run, place in zip(known, places, strict=True)]
    truth = known[0].truth[[places[0][key] for key in order]]
    if task_type_of(figures) == "multilabel":
        return label_replicates(truth, given, threshold_of(figures), seed=seed)
    return value_replicates(truth, given, ranges_of(figures), seed=seed)


def ranges_of(figures: Mapping[str, Any]) -> list[tuple[float, float] | None]:
    """Of each dimension, the range by which its sentiment metrics were chosen; None where it has none."""
    found: list[tuple[float, float] | None] = []
    for row in figures["per_dimension"].values():
        fitting = [bounds for bounds, names in SENTIMENT.items() if all(name in row for name in names)]
        # The corpus with more metrics stands first.
        found.append(fitting[0] if fitting else None)
    return found
