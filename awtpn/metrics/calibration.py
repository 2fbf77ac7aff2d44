"""Calibration of a model's probabilities, and its wrong predictions of highest probability.

Takes predictions as `awtpn.run.predictions` writes them, of one model or of several together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


def calibration(predictions: Sequence[Mapping[str, Any]], bins: int = 10) -> list[dict[str, float]]:
    """Mean confidence, accuracy and count of each bin of the highest probability; empty bins are left out."""
    confidence = np.array([max(p["probabilities"].values()) for p in predictions])
    right = np.array([p["predicted"] == p["label"] for p in predictions])
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
