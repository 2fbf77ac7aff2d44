"""Metrics of sentiment as the literature reports them: values are cut into classes, which are compared.

Two corpora have two definitions. Both are those of MMSA (github.com/thuiar/MMSA,
src/MMSA/utils/metricsTop.py), whose figures most papers compare with. The range of the dimension chooses one.

CMU-MOSI and CMU-MOSEI, range -3 to 3:

- Acc-7, Acc-5, Acc-3: truth and prediction are clipped to -3..3, -2..2 or -1..1 and rounded (`numpy.round`:
  2.5 becomes 2, 1.5 becomes 2); the share of utterances with the same integer. MMSA computes Acc-3 so, too,
  but does not report it.
- Acc-2, F1-2: positive (> 0) against the rest, over the utterances whose truth is not 0. MMSA: Non0_acc_2.
- Acc-2-has0, F1-2-has0: non-negative (>= 0) against negative, over all utterances. MMSA: Has0_acc_2.

CH-SIMS, range -1 to 1: truth and prediction are clipped to -1..1 and cut at these places, each class with its
upper end; there is no Acc-7, and all utterances count:

- Acc-2, F1-2: [-1, 0], (0, 1]. So a truth of 0 counts as negative here. MMSA: Mult_acc_2, F1_score.
- Acc-3: [-1, -0.1], (-0.1, 0.1], (0.1, 1]
- Acc-5: [-1, -0.7], (-0.7, -0.1], (-0.1, 0.1], (0.1, 0.7], (0.7, 1]

F1 is the mean F1 of the two classes, weighted by their utterances (scikit-learn's average="weighted"). Values
are compared in float32, as MMSA has them: in float64 a label of 0.1 that was stored as float32 would be above
0.1. MMSA also clips before it computes MAE and Corr of CH-SIMS; here MAE and Corr are of unclipped values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from awtpn.metrics.summary import sentiment_metrics

# The upper ends of all classes of CH-SIMS but the last.
SIMS_CUTS = {"2": (0.0,), "3": (-0.1, 0.1), "5": (-0.7, -0.1, 0.1, 0.7)}


@dataclass(frozen=True)
class Cut:
    """Values cut into classes.

    Attributes:
        truth, predicted: [U] classes.
        counted: [U] whether the utterance counts.
    """

    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    counted: NDArray[np.bool_]


def cut_values(
    truth: NDArray[np.float64], predicted: NDArray[np.float64], bounds: Sequence[float] | None
) -> dict[str, Cut]:
    """The classes that each metric "Acc-NAME" (and "F1-NAME") of a dimension compares, by NAME.

    Args:
        truth: [U] true values; one that is missing (NaN) does not count.
        predicted: [U] predicted values.
        bounds: least and largest value of the dimension; without those of a corpus above the result is empty.
    """
    known = ~np.isnan(truth)
    # What is missing is not counted, so any number will do for it.
    real, guess = np.where(known, truth, 0).astype(np.float32), predicted.astype(np.float32)
    names = [name.removeprefix("Acc-") for name in sentiment_metrics(bounds) if name.startswith("Acc-")]
    if "7" not in names:
        return {name: Cut(_sims(real, name), _sims(guess, name), known) for name in names}
    found = {}
    for name in names:
        if name == "2":
            found[name] = Cut(_int(real > 0), _int(guess > 0), known & (real != 0))
        elif name == "2-has0":
            found[name] = Cut(_int(real >= 0), _int(guess >= 0), known)
        else:
            most = (int(name) - 1) // 2
            found[name] = Cut(_rounded(real, most), _rounded(guess, most), known)
    return found


def summarize_sentiment(
    truth: NDArray[np.float64], predicted: NDArray[np.float64], bounds: Sequence[float] | None
) -> dict[str, float | None]:
    """The sentiment metrics of a dimension, as fractions of 1; None if no utterance counts.

    Args: as of `cut_values`. Predictions are finite.
    """
    figures: dict[str, float | None] = {}
    for name, cut in cut_values(truth, predicted, bounds).items():
        real, guess = cut.truth[cut.counted], cut.predicted[cut.counted]
        figures[f"Acc-{name}"] = float((real == guess).mean()) if len(real) else None
        if name.startswith("2"):
            figures[f"F1-{name}"] = _weighted_f1(real, guess) if len(real) else None
    return figures


def _weighted_f1(truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Mean F1 = 2 TP / (2 TP + FP + FN) of both classes, weighted by their utterances."""
    total = 0.0
    for c in (0, 1):
        support, answers = int((truth == c).sum()), int((predicted == c).sum())
        right = int(((truth == c) & (predicted == c)).sum())
        total += support * 2 * right / max(support + answers, 1)
    return total / len(truth)


def _int(values: NDArray[np.bool_]) -> NDArray[np.int64]:
    return values.astype(np.int64)


def _rounded(values: NDArray[np.float32], most: int) -> NDArray[np.int64]:
    """Classes -most..most; predictions that are no numbers are in no class of the truth."""
    return np.nan_to_num(np.round(np.clip(values, -most, most)), nan=most + 1).astype(np.int64)


def _sims(values: NDArray[np.float32], name: str) -> NDArray[np.int64]:
    # side="left": a value equal to a cut is in the class below it.
    return np.searchsorted(np.array(SIMS_CUTS[name], np.float32), np.clip(values, -1, 1), side="left")
