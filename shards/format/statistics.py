"""Streaming moments per feature dimension, and the guard that they give to a cast.

All sums are float64. Statistics are merged pairwise (Chan et al.), which stays exact where a feature's mean
is large beside its spread and a plain sum of squares would cancel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# A cast that disturbs a dimension by more than this share of its spread would ruin the feature.
CAST_TOLERANCE = 0.01
# Below this share of a dimension's mean, float64's own rounding is all that is left.
ROUNDING = 1e-14


@dataclass(frozen=True)
class Statistics:
    """Number of steps, mean [D], and sum of squared deviations from the mean [D], in float64."""

    count: int
    mean: np.ndarray
    deviation: np.ndarray

    @property
    def std(self) -> np.ndarray:
        """Population standard deviation [D]; zeros where there were no steps."""
        return np.sqrt(self.deviation / max(self.count, 1))


@dataclass(frozen=True)
class Sums:
    """Number of steps, sum [D] and sum of squares [D], in float64: what ranks add up."""

    count: int
    sum: np.ndarray
    sum_of_squares: np.ndarray


def statistics_of(values: np.ndarray) -> Statistics:
    """Statistics of `values` [T, D]."""
    values = values.astype(np.float64, copy=False)
    if len(values) == 0:
        return Statistics(0, np.zeros(values.shape[1]), np.zeros(values.shape[1]))
    mean = values.mean(axis=0)
    apart = values - mean
    # Without an array of squares, which would take most of the time.
    return Statistics(len(values), mean, np.einsum("td,td->d", apart, apart))


def merge(a: Statistics | None, b: Statistics) -> Statistics:
    """Statistics of the steps of `a` and `b` together; None stands for no steps."""
    if a is None or a.count == 0:
        return b
    if b.count == 0:
        return a
    count = a.count + b.count
    delta = b.mean - a.mean
    mean = a.mean + delta * (b.count / count)
    return Statistics(count, mean, a.deviation + b.deviation + delta**2 * (a.count * b.count / count))


def sums_of(values: np.ndarray) -> Sums:
    """Sums of `values` [T, D]."""
    values = values.astype(np.float64, copy=False)
    return Sums(len(values), values.sum(axis=0), np.square(values).sum(axis=0))


def add(a: Sums, b: Sums) -> Sums:
    """Sums of the steps of `a` and `b` together."""
    return Sums(a.count + b.count, a.sum + b.sum, a.sum_of_squares + b.sum_of_squares)


def sums_from_statistics(count: int, mean: np.ndarray, std: np.ndarray) -> Sums:
    """The sums that steps with this mean [D] and population standard deviation [D] have."""
    return Sums(count, mean * count, (np.square(std) + np.square(mean)) * count)


def lossy_dimension(values: Statistics, error: Statistics, tolerance: float = CAST_TOLERANCE) -> int | None:
    """The dimension that a cast disturbs most, if it does so beyond `tolerance` of its spread.

    Args:
        values: moments of the values before the cast.
        error: moments of (cast value - value). A constant error moves a feature without blurring it, and
            standardisation takes it out again: the spread of the error is what counts.
        tolerance: share of the spread.
    """
    excess = error.std - tolerance * values.std - ROUNDING * np.abs(values.mean)
    worst = int(np.argmax(excess))
    return worst if excess[worst] > 0 else None
