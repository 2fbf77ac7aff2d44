"""Mean and standard deviation per feature dimension, computed in chunks; and a check of casts to float16.

All sums are float64. Statistics are merged pairwise (Chan et al.), which stays exact if a feature's mean is
much larger than its standard deviation; a plain sum of squares would lose all digits then.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Largest error of a cast that is accepted, as a share of the dimension's standard deviation.
CAST_TOLERANCE = 0.01
# Errors below this share of the mean are float64's own rounding, and not the cast's.
ROUNDING = 1e-14


@dataclass(frozen=True)
class Statistics:
    """Number of time steps, mean [D], and sum of squared deviations from the mean [D], in float64."""

    count: int
    mean: np.ndarray
    squared_deviations: np.ndarray

    @property
    def std(self) -> np.ndarray:
        """Population standard deviation [D]; zeros if there are no time steps."""
        return np.sqrt(self.squared_deviations / max(self.count, 1))


@dataclass(frozen=True)
class Sums:
    """Number of time steps, sum [D] and sum of squares [D], in float64, to be added over ranks."""

    count: int
    sum: np.ndarray
    sum_of_squares: np.ndarray


def statistics_of(values: np.ndarray) -> Statistics:
    """Statistics of `values` [T, D]."""
    values = values.astype(np.float64, copy=False)
    if len(values) == 0:
        return Statistics(0, np.zeros(values.shape[1]), np.zeros(values.shape[1]))
    mean = values.mean(axis=0)
    deviation = values - mean
    # einsum makes no array of squares, which would take most of the time.
    return Statistics(len(values), mean, np.einsum("td,td->d", deviation, deviation))


def no_statistics(count: int, dim: int = 0) -> Statistics:
    """Those of `count` time steps of which nothing but their number is known, or of none."""
    return Statistics(count, np.zeros(dim), np.zeros(dim))


def merge(a: Statistics | None, b: Statistics) -> Statistics:
    """Statistics of the time steps of `a` and `b` together; None means no time steps."""
    if a is None or a.count == 0:
        return b
    if b.count == 0:
        return a
    count = a.count + b.count
    delta = b.mean - a.mean
    mean = a.mean + delta * (b.count / count)
    between = delta**2 * (a.count * b.count / count)
    return Statistics(count, mean, a.squared_deviations + b.squared_deviations + between)


def sums_of(values: np.ndarray) -> Sums:
    """Sums of `values` [T, D]."""
    values = values.astype(np.float64, copy=False)
    return Sums(len(values), values.sum(axis=0), np.square(values).sum(axis=0))


def add(a: Sums, b: Sums) -> Sums:
    """Sums of the time steps of `a` and `b` together."""
    return Sums(a.count + b.count, a.sum + b.sum, a.sum_of_squares + b.sum_of_squares)


def sums_from_statistics(count: int, mean: np.ndarray, std: np.ndarray) -> Sums:
    """The sums of `count` time steps with this mean [D] and population standard deviation [D]."""
    return Sums(count, mean * count, (np.square(std) + np.square(mean)) * count)


def lossy_dimension(values: Statistics, error: Statistics, tolerance: float = CAST_TOLERANCE) -> int | None:
    """The dimension with the largest cast error, if it exceeds `tolerance`; else None.

    Args:
        values: statistics of the values before the cast.
        error: statistics of (cast value - value). Only its deviation counts: a constant error shifts all
            values of a dimension by the same amount, and standardization removes it.
        tolerance: largest error, as a share of the standard deviation of the values.
    """
    excess = error.std - tolerance * values.std - ROUNDING * np.abs(values.mean)
    worst = int(np.argmax(excess))
    return worst if excess[worst] > 0 else None
