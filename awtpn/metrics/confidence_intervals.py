"""95 % confidence intervals of metrics.

There are two kinds. The bootstrap over utterances says how much a metric varies with the test set. Student's
t over runs says how much it varies with the training. Its values must be independent: means of folds nearly
are, single runs that share a fold are not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from awtpn.metrics.classification import SUMMARY

LEVEL = 0.95
RESAMPLES = 2_000
# Resampled counts that are in memory at a time.
BLOCK_CELLS = 1 << 24


@dataclass(frozen=True)
class Interval:
    """An interval from `low` to `high`, and in words how it was computed."""

    low: float
    high: float
    how: str


# --- Student's t ---------------------------------------------------------------------------------


def t_interval(values: Sequence[float]) -> list[float] | None:
    """95 % interval of the mean by Student's t: mean -+ t(0.975, n - 1) s / sqrt(n); None for n = 1."""
    if len(values) < 2:
        return None
    mean, half = float(np.mean(values)), t_quantile(len(values) - 1) * standard_error(values)
    return [mean - half, mean + half]


def standard_error(values: Sequence[float]) -> float:
    """s / sqrt(n) of at least two independent values."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


@cache
def t_quantile(freedom: int) -> float:
    """t with P(|T| <= t) = 0.95, where I_x(freedom / 2, 1/2) = 0.05 at x = freedom / (freedom + t^2)."""
    from mpmath import betainc, findroot  # sympy, and so torch, brings it

    def outside(t: float) -> float:
        return betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True) - (1 - LEVEL)

    return float(findroot(outside, (1.9, 12.8), solver="ridder", maxsteps=100))


# --- Bootstrap -----------------------------------------------------------------------------------


def bootstrap(
    label: NDArray[np.int64], predicted: Sequence[NDArray[np.int64]], classes: int, seed: int = 0
) -> dict[str, Interval]:
    """Percentile intervals of the metrics of SUMMARY, averaged over models; see `bootstrap_replicates`."""
    replicates = bootstrap_replicates(label, predicted, classes, seed=seed)
    return percentiles(replicates, bootstrap_words(len(label)))


def bootstrap_replicates(
    label: NDArray[np.int64],
    predicted: Sequence[NDArray[np.int64]],
    classes: int,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> NDArray[np.float64]:
    """The metrics of SUMMARY, averaged over models, of resampled utterances: [resamples, 4].

    Utterances are drawn with replacement, without strata; all models are evaluated on the same draw.

    Args:
        label: [U] true classes.
        predicted: per model [U] predicted classes, of the same utterances in the same order.
        classes: C.
    """
    # Metrics depend only on how often each pattern (label, prediction of every model) is drawn. These counts
    # are multinomial: drawing them equals drawing utterances one by one, and is faster, as patterns are few.
    patterns, counts = np.unique(np.stack([label, *predicted], axis=1), axis=0, return_counts=True)
    one_hot = np.eye(classes * classes)
    cells = [one_hot[patterns[:, 0] * classes + answers] for answers in patterns[:, 1:].T]
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK_CELLS // max(len(patterns), classes * classes))
    found = []
    for first in range(0, resamples, block):
        size = min(block, resamples - first)
        draws = rng.multinomial(len(label), counts / counts.sum(), size=size).astype(np.float64)
        confusions = [(draws @ cell).reshape(size, classes, classes) for cell in cells]
        found.append(np.mean([summaries(confusion) for confusion in confusions], axis=0))
    return np.concatenate(found)


def bootstrap_confusion(confusion: NDArray[np.int64]) -> dict[str, Interval]:
    """`bootstrap` of one model from its confusion matrix [C, C]."""
    label, predicted = cells_of(confusion)
    return bootstrap(label, [predicted], len(confusion))


def cells_of(confusion: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Label and prediction [U] of the utterances that a confusion matrix [C, C] counts, in its order."""
    label, predicted = np.indices(confusion.shape, np.int64).reshape(2, -1).repeat(confusion.ravel(), axis=1)
    return label, predicted


def percentiles(replicates: NDArray[np.float64], how: str) -> dict[str, Interval]:
    """The middle 95 % of replicates [R, 4], by metric."""
    low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {name: Interval(float(low[i]), float(high[i]), how) for i, name in enumerate(SUMMARY)}


def bootstrap_words(utterances: int, resamples: int = RESAMPLES) -> str:
    return f"percentile bootstrap over {utterances:,} utterances, {resamples:,} resamples, seeded"


def summaries(confusions: NDArray[np.float64]) -> NDArray[np.float64]:
    """The metrics of SUMMARY for many confusion matrices at once: [R, C, C] -> [R, 4].

    The definitions are those of `awtpn.metrics.classification.summarize`.
    """
    right = np.diagonal(confusions, axis1=1, axis2=2)
    support, answers = confusions.sum(2), confusions.sum(1)
    total = support.sum(1)
    recall = right / np.maximum(support, 1)
    f1 = 2 * right / np.maximum(support + answers, 1)
    occurs = support > 0
    count = np.maximum(occurs.sum(1), 1)
    columns = {
        "w-ACC": right.sum(1) / np.maximum(total, 1),
        "w-F1": (f1 * support).sum(1) / np.maximum(total, 1),
        "UA": (recall * occurs).sum(1) / count,
        "macro-F1": (f1 * occurs).sum(1) / count,
    }
    return np.stack([columns[name] for name in SUMMARY], axis=1)
