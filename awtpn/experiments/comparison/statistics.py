"""Statistics of a comparison: differences of two models over folds, utterances and datasets.

Folds of a cross-validation share training data, so their differences are not independent: a plain t-test
finds differences that are not there. The corrected resampled t-test raises the variance of the mean by the
share of test utterances (Nadeau and Bengio, "Inference for the Generalization Error", Machine Learning 52,
2003, equation 9).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awtpn.metrics.bootstrap_values import mean_replicates
from awtpn.metrics.confidence_intervals import LEVEL, RESAMPLES, summaries, t_quantile

Floats = NDArray[np.float64]


def corrected_interval(differences: Sequence[float]) -> list[float] | None:
    """95 % interval of the mean of k paired differences, one per fold; None for k = 1.

    mean -+ t(0.975, k - 1) s sqrt(1 / k + n_test / n_train), where n_test / n_train = 1 / (k - 1) of folds
    of equal size, and s is their deviation (k - 1 degrees of freedom).
    """
    folds = len(differences)
    if folds < 2:
        return None
    mean, deviation = float(np.mean(differences)), float(np.std(differences, ddof=1))
    half = t_quantile(folds - 1) * deviation * math.sqrt(1 / folds + 1 / (folds - 1))
    return [mean - half, mean + half]


def mean_interval(differences: Sequence[float], intervals: Sequence[Sequence[float]]) -> list[float]:
    """95 % interval of the mean of independent differences, from the interval of each.

    It is about these datasets, not about others: half its width is sqrt(sum of h^2) / n, where h are half the
    widths of the n intervals.
    """
    mean, count = float(np.mean(differences)), len(differences)
    half = math.sqrt(sum(((high - low) / 2) ** 2 for low, high in intervals)) / count
    return [mean - half, mean + half]


def seed_deviation(values: Mapping[Any, Sequence[float]]) -> float | None:
    """Deviation over seeds: the square root of the mean over folds of the variance over seeds.

    Args:
        values: of every seed, by fold.

    Returns:
        None if a fold has a single seed, or there are no folds.
    """
    if not values or any(len(of_fold) < 2 for of_fold in values.values()):
        return None
    return math.sqrt(float(np.mean([np.var(of_fold, ddof=1) for of_fold in values.values()])))


def excludes_zero(interval: Sequence[float] | None) -> bool:
    """Whether an interval lies on one side of 0."""
    return interval is not None and (interval[0] > 0 or interval[1] < 0)


def middle(replicates: Floats) -> list[float] | None:
    """The middle 95 % of the defined replicates [R] (NaN: not defined); None if none is defined."""
    defined = replicates[~np.isnan(replicates)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]


def class_replicates(
    label: NDArray[np.int64],
    predicted: Sequence[NDArray[np.int64]],
    classes: int,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Floats:
    """The metrics of SUMMARY, averaged over runs, of resampled utterances: [resamples, 4].

    The draws depend on the number of utterances and the seed alone: two models have the same ones, so the
    difference of their replicates is paired.

    Args:
        label: [U] true classes.
        predicted: per run [U] predicted classes, of the same utterances in the same order.
        classes: C.
    """
    one_hot = np.eye(classes * classes)

    def figures_of(answers: NDArray[np.int64]) -> Callable[[Floats], Floats]:
        cells = one_hot[label * classes + answers]
        return lambda counts: summaries((counts @ cells).reshape(-1, classes, classes))

    return mean_replicates(len(label), resamples, seed, [figures_of(answers) for answers in predicted])
