"""Classes of a sentiment score from -3 (highly negative) to 3 (highly positive), as in the literature."""

from __future__ import annotations

import math

SETS = {
    "sentiment2": ("negative", "non-negative"),
    "sentiment3": ("negative", "neutral", "positive"),
    "sentiment7": (
        "highly negative",
        "negative",
        "weakly negative",
        "neutral",
        "weakly positive",
        "positive",
        "highly positive",
    ),
}


def class_of(score: float, label_set: str) -> str:
    """The class of a score.

    - sentiment2: negative (< 0) against non-negative (>= 0), the "Acc-2" of Zadeh et al. (2018);
    - sentiment3: the sign: negative, neutral (= 0), positive, as the annotations of MMSA;
    - sentiment7: rounded to the nearest of -3..3, halves to the even one, as `numpy.round` does in "Acc-7".

    Raises:
        ValueError: the score is not a finite number.
    """
    if not math.isfinite(score):
        raise ValueError(f"its sentiment is {score}")
    names = SETS[label_set]
    if label_set == "sentiment2":
        return names[score >= 0]
    if label_set == "sentiment3":
        return names[(score > 0) - (score < 0) + 1]
    return names[round(min(3.0, max(-3.0, score))) + 3]
