"""Calibration: probabilities against what is true, predicted values against true ones; the surest mistakes.

Of classes it takes predictions as `awtpn.run.predictions` writes them, of one model or of several together;
of values and labels it takes arrays, of one dimension or label at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awtpn.metrics.multilabel import hits_by_threshold

RESIDUAL_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def calibration(predictions: Sequence[Mapping[str, Any]], bins: int = 10) -> list[dict[str, float]]:
    """Mean confidence, accuracy and count of each bin of the highest probability; empty bins are left out."""
    confidence = np.array([max(p["probabilities"].values()) for p in predictions])
    right = np.array([p["predicted"] == p["label"] for p in predictions])
    return _by_confidence(confidence, right, bins)


def _by_confidence(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int
) -> list[dict[str, float]]:
    """Mean confidence, share that is right, and count of each bin of equal width; empty ones are left out."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        {
            "confidence": float(confidence[place == b].mean()),
            "accuracy": float(right[place == b].mean()),
            "count": int((place == b).sum()),
        }
        for b in range(bins)
        if (place == b).any()
    ]


def calibration_error(table: Sequence[Mapping[str, float]]) -> float:
    """Expected calibration error: the mean of |accuracy - confidence|, weighted by utterances."""
    total = sum(row["count"] for row in table)
    return sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in table) / total


@dataclass(frozen=True)
class Mistake:
    """An utterance for which the models' mean probabilities predict a wrong class."""

    key: str
    label: str
    predicted: str
    probability: float
    wrong: int  # number of models that are wrong about it
    models: int  # number of models that predicted it


def surest_mistakes(predictions: Sequence[Mapping[str, Any]], most: int = 10) -> list[Mistake]:
    """The wrong predictions with the highest mean probability over the models that saw the utterance."""
    of_key: dict[str, list[Mapping[str, Any]]] = {}
    for prediction in predictions:
        of_key.setdefault(prediction["key"], []).append(prediction)
    mistakes = []
    for key, answers in of_key.items():
        label = answers[0]["label"]
        means = {
            name: float(np.mean([a["probabilities"][name] for a in answers]))
            for name in answers[0]["probabilities"]
        }
        predicted = max(means, key=means.__getitem__)
        wrong = sum(a["predicted"] != label for a in answers)
        if predicted != label:
            mistakes.append(Mistake(key, label, predicted, means[predicted], wrong, len(answers)))
    return sorted(mistakes, key=lambda m: (-m.probability, m.key))[:most]


# --- Values and labels ---------------------------------------------------------------------------


def label_calibration(
    truth: NDArray[np.float64], probability: NDArray[np.float64], bins: int = 10
) -> list[dict[str, float]]:
    """Of one label, by bins of its probability: the mean probability and the share that has the label.

    Args:
        truth: [U] intensities, present above 0; missing ones (NaN) are left out, as are probabilities NaN.
        probability: [U].
        bins: of equal width; empty ones are left out.

    Returns:
        Rows as of `calibration`, so that `calibration_error` takes them: "confidence" is the mean
        probability, "accuracy" the share that has the label, "count" the utterances.
    """
    truth, probability = _known(truth, probability)
    return _by_confidence(probability, truth > 0, bins)


def precision_recall_curve(
    truth: NDArray[np.float64], probability: NDArray[np.float64], most: int = 200
) -> list[dict[str, float]]:
    """Of one label, at falling thresholds: "threshold", "precision" and "recall" of probability >= threshold.

    Args:
        truth: [U] intensities, present above 0; missing ones (NaN) are left out, as are probabilities NaN.
        probability: [U].
        most: points; of more thresholds these are evenly spaced by rank, the first and the last included.

    Returns:
        A row for each threshold; none if no utterance has the label.
    """
    truth, probability = _known(truth, probability)
    present = truth > 0
    if not present.any():
        return []
    hits, answers = hits_by_threshold(present, probability)
    thresholds = np.unique(probability)[::-1]
    rows = np.unique(np.linspace(0, len(hits) - 1, min(most, len(hits))).round().astype(int))
    return [
        {
            "threshold": float(thresholds[row]),
            "precision": float(hits[row] / answers[row]),
            "recall": float(hits[row] / hits[-1]),
        }
        for row in rows
    ]


def value_calibration(
    truth: NDArray[np.float64], predicted: NDArray[np.float64], bins: int = 10
) -> list[dict[str, float]]:
    """Of one dimension, by bins of the prediction: the mean prediction and the mean truth.

    Args:
        truth: [U] true values; missing ones (NaN) are left out, as are predictions NaN.
        predicted: [U].
        bins: of equal size, cut at quantiles of the predictions; equal predictions are in one bin, so that
            there can be fewer.

    Returns:
        Rows with "predicted" and "truth" (means), "deviation" (of the truth within the bin) and "count".
    """
    truth, predicted = _known(truth, predicted)
    if not len(truth):
        return []
    cuts = np.unique(np.quantile(predicted, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(cuts, predicted, side="left")
    return [
        {
            "predicted": float(predicted[place == b].mean()),
            "truth": float(truth[place == b].mean()),
            "deviation": float(truth[place == b].std()),
            "count": int((place == b).sum()),
        }
        for b in np.unique(place)
    ]


def residual_quantiles(
    truth: NDArray[np.float64],
    predicted: NDArray[np.float64],
    levels: Sequence[float] = RESIDUAL_LEVELS,
) -> list[dict[str, float]]:
    """Quantiles of truth - prediction of one dimension: rows with "level" and "residual".

    Args:
        truth: [U] true values; missing ones (NaN) are left out, as are predictions NaN.
        predicted: [U].
        levels: 0.5 is the median.

    Returns:
        A row for each level; none without utterances.
    """
    truth, predicted = _known(truth, predicted)
    if not len(truth):
        return []
    found = np.quantile(truth - predicted, levels)
    return [{"level": level, "residual": float(q)} for level, q in zip(levels, found, strict=True)]


def _known(
    truth: NDArray[np.float64], other: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The utterances that have both values."""
    truth, other = np.asarray(truth, np.float64), np.asarray(other, np.float64)
    both = np.isfinite(truth) & np.isfinite(other)
    return truth[both], other[both]
