"""Bootstrap over utterances of the metrics of regression and of several labels.

As `awtpn.metrics.confidence_intervals` does it for classes: utterances are drawn with replacement, all models
are evaluated on the same draw, and an interval holds the middle 95 % of the draws. A metric depends on a draw
only by how often each utterance is in it, so a block of draws is a matrix of counts [R, U], and the sums of
all metrics are its products with columns of the utterances.

A draw can lack what a metric needs: a label that nobody has, predictions that are all the same. Its metric is
not defined, and is left out of the interval, which tells how many were left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from awtpn.metrics.confidence_intervals import LEVEL, RESAMPLES, Interval, bootstrap_words
from awtpn.metrics.multilabel import THRESHOLD, label_figures
from awtpn.metrics.sentiment import cut_values
from awtpn.metrics.summary import HEADLINES, sentiment_metrics

Floats = NDArray[np.float64]
# Counts of draws that are in memory at a time; the figures of a label need a few times more.
BLOCK_CELLS = 1 << 21
# A variance that is smaller beside the mean square is rounding: all values of the draw are the same.
ROUNDING = 1e-12


def bootstrap_values(
    truth: Floats,
    predicted: Sequence[Floats],
    ranges: Sequence[Sequence[float] | None] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Percentile intervals of the metrics of a regression, averaged over models.

    Args:
        truth: [U, K] true values, NaN where missing.
        predicted: per model [U, K] predicted values, of the same utterances in the same order.
        ranges: of the dimensions, as of `summarize_values`; a sentiment of one dimension has further metrics.

    Returns:
        By metric; those that no draw defines are left out.
    """
    names, replicates = value_replicates(truth, predicted, ranges, resamples, seed)
    return percentiles(names, replicates, len(truth))


def bootstrap_labels(
    truth: Floats,
    probability: Sequence[Floats],
    threshold: float = THRESHOLD,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Percentile intervals of the metrics of several labels, averaged over models.

    Args:
        truth: [U, E] intensities, NaN where missing.
        probability: per model [U, E], of the same utterances in the same order.
        threshold: of presence.

    Returns:
        By metric; those that no draw defines are left out.
    """
    names, replicates = label_replicates(truth, probability, threshold, resamples, seed)
    return percentiles(names, replicates, len(truth))


def percentiles(names: Sequence[str], replicates: Floats, utterances: int) -> dict[str, Interval]:
    """The middle 95 % of the defined replicates [R, len(names)] (NaN: not defined), by metric."""
    found = {}
    for i, name in enumerate(names):
        defined = replicates[~np.isnan(replicates[:, i]), i]
        if not len(defined):
            continue
        how = bootstrap_words(utterances, len(replicates))
        if len(defined) < len(replicates):
            how += f", {len(replicates) - len(defined):,} left out: not defined in them"
        low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        found[name] = Interval(float(low), float(high), how)
    return found


def draws(utterances: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each utterance is in each resample: blocks [R, U], of `resamples` rows together."""
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK_CELLS // max(utterances, 1))
    for first in range(0, resamples, block):
        size = min(block, resamples - first)
        rows = rng.integers(0, utterances, (size, utterances)) + np.arange(size)[:, None] * utterances
        counts = np.bincount(rows.ravel(), minlength=size * utterances)
        yield counts.reshape(size, utterances).astype(np.float64)


def mean_replicates(
    utterances: int, resamples: int, seed: int, models: Sequence[Callable[[Floats], Floats]]
) -> Floats:
    """The mean over models of their figures of every draw: [resamples, metrics]."""
    with np.errstate(divide="ignore", invalid="ignore"):  # what is not defined is NaN on purpose
        return np.concatenate(
            [
                np.mean([figures(counts) for figures in models], axis=0)
                for counts in draws(utterances, resamples, seed)
            ]
        )


def _mean_over(figures: Floats, counted: NDArray[np.bool_]) -> Floats:
    """Mean over the last axis of what is counted, NaN if nothing is, or one of it is NaN."""
    return np.where(counted, figures, 0).sum(-1) / counted.sum(-1)


# --- Regression ----------------------------------------------------------------------------------


def value_replicates(
    truth: Floats,
    predicted: Sequence[Floats],
    ranges: Sequence[Sequence[float] | None] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[tuple[str, ...], Floats]:
    """Names of the metrics, and their values in every draw [resamples, metrics], NaN where not defined.

    The definitions are those of `awtpn.metrics.regression.summarize_values`.
    """
    if not len(truth):
        raise ValueError("there are no utterances to draw from")
    dimensions = truth.shape[1]
    bounds = ranges[0] if ranges and dimensions == 1 else None
    models = []
    for values in predicted:
        columns = [_value_columns(truth[:, k], values[:, k]) for k in range(dimensions)]
        models.append(_value_figures(columns, _sentiment_columns(truth[:, 0], values[:, 0], bounds)))
    names = (*HEADLINES["regression"], *sentiment_metrics(bounds))
    return names, mean_replicates(len(truth), resamples, seed, models)


def _value_columns(truth: Floats, predicted: Floats) -> tuple[Floats, float]:
    """What is summed over a draw: [U, 7]; and the difference of the means that were subtracted."""
    known = ~np.isnan(truth)
    if not np.isfinite(predicted[known]).all() or not known.any():
        return known[:, None] * np.array([1.0] + [np.nan] * 6), 0.0
    means = truth[known].mean(), predicted[known].mean()
    # Centred once, so that the variances of the draws lose no digits to a large mean.
    x, y = np.where(known, truth - means[0], 0), np.where(known, predicted - means[1], 0)
    error = np.where(known, np.abs(truth - predicted), 0)
    return np.stack([known, error, x, y, x * x, y * y, x * y], axis=1).astype(np.float64), means[0] - means[1]


def _value_figures(
    columns: Sequence[tuple[Floats, float]], sentiment: Sequence[tuple[Floats, str]]
) -> Callable[[Floats], Floats]:
    """A function of counts [R, U] that gives the metrics of one model [R, metrics]."""

    tables = [table for table, _ in (*columns, *sentiment)]
    whole, borders = np.column_stack(tables), np.cumsum([table.shape[1] for table in tables])[:-1]

    def figures(counts: Floats) -> Floats:
        sums = np.split(counts @ whole, borders, axis=1)  # one product takes less time than one per table
        of_dimensions, utterances = [], []
        for of_table, (_, offset) in zip(sums, columns, strict=False):
            n, error, x, y, xx, yy, xy = of_table.T
            total = np.maximum(n, 1)
            x, y, xx, yy, xy = (part / total for part in (x, y, xx, yy, xy))
            var_x, var_y, cov = xx - x * x, yy - y * y, xy - x * y
            varies = (var_x > ROUNDING * xx) & (var_y > ROUNDING * yy)
            corr = np.where(varies, np.clip(cov / np.sqrt(var_x * var_y), -1, 1), np.nan)
            ccc = np.where(varies, 2 * cov / (var_x + var_y + (x - y + offset) ** 2), np.nan)
            of_dimensions.append(np.stack([error / n, corr, ccc], axis=1))
            utterances.append(n > 0)
        means = _mean_over(np.stack(of_dimensions, -1), np.stack(utterances, -1)[:, None])
        shares = zip(sums[len(columns) :], sentiment, strict=True)
        further = [_share(of_table, kind) for of_table, (_, kind) in shares]
        return np.column_stack([means, *further])

    return figures


def _sentiment_columns(
    truth: Floats, predicted: Floats, bounds: Sequence[float] | None
) -> list[tuple[Floats, str]]:
    """For each sentiment metric what is summed over a draw, and whether it is an accuracy or an F1."""
    finite = np.isfinite(predicted[~np.isnan(truth)]).all()
    found = []
    for name, cut in cut_values(truth, predicted, bounds).items():
        counted = np.where(cut.counted, 1.0 if finite else np.nan, 0.0)
        right = cut.truth == cut.predicted
        found.append((np.stack([counted * right, counted], axis=1), "Acc"))
        if name.startswith("2"):
            masks = [right & (cut.truth == 1), right & (cut.truth == 0), cut.truth == 1, cut.predicted == 1]
            found.append((np.stack([counted * m for m in masks] + [counted], axis=1), "F1"))
    return found


def _share(sums: Floats, kind: str) -> Floats:
    """An accuracy from its sums [R, 2], or a weighted F1 of two classes from its sums [R, 5]."""
    if kind == "Acc":
        return sums[:, 0] / sums[:, 1]
    tp, tn, positives, answers, n = sums.T
    present = 2 * tp / np.maximum(positives + answers, 1)
    absent = 2 * tn / np.maximum(2 * n - positives - answers, 1)
    return (positives * present + (n - positives) * absent) / n


# --- Several labels ------------------------------------------------------------------------------


def label_replicates(
    truth: Floats,
    probability: Sequence[Floats],
    threshold: float = THRESHOLD,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[tuple[str, ...], Floats]:
    """Names of the metrics, and their values in every draw [resamples, metrics], NaN where not defined.

    The definitions are those of `awtpn.metrics.multilabel.summarize_labels`. A draw has the mean over those
    labels that it has utterances of both kinds of.
    """
    if not len(truth):
        raise ValueError("there are no utterances to draw from")
    models = [_label_figures(truth, values, threshold) for values in probability]
    return HEADLINES["multilabel"], mean_replicates(len(truth), resamples, seed, models)


def _label_figures(truth: Floats, probability: Floats, threshold: float) -> Callable[[Floats], Floats]:
    """A function of counts [R, U] that gives the metrics of one model [R, metrics]."""
    known = ~np.isnan(truth)
    present, predicted = truth > 0, probability > threshold
    # A probability that is NaN makes every figure that depends on it NaN.
    weight = np.where(known, np.where(np.isfinite(probability), 1.0, np.nan), 0.0)
    cells = [present & predicted, ~present & predicted, present & ~predicted, ~present & ~predicted]
    columns = [*(weight * c for c in cells), known & present, known & ~present]  # [U, E] each
    whole = np.where(known.any(1), np.where(np.isnan(weight).any(1), np.nan, 1.0), 0.0)
    right = whole * ((present == predicted) | ~known).all(1)
    table = np.column_stack([*columns, right, whole])
    ranked = [_Ranking.of(present[:, e], probability[:, e], known[:, e]) for e in range(truth.shape[1])]

    def figures(counts: Floats) -> Floats:
        sums = counts @ table
        *of_labels, positives, negatives = np.split(sums[:, :-2], len(columns), axis=1)  # [R, E] each
        row = label_figures(*of_labels)
        # NumPy adds up integers of 32 bits ten times faster than floats.
        times = counts.astype(np.int32)
        precision = np.stack([ranking.average_precision(times) for ranking in ranked], axis=1)
        row["AP"] = np.where(np.isnan(of_labels[0]), np.nan, precision)
        labels = np.stack([row[name] for name in ("WA", "F1", "w-F1", "recall", "AP")], axis=1)
        means = _mean_over(labels, ((positives > 0) & (negatives > 0))[:, None])
        return np.column_stack([means, sums[:, -2] / sums[:, -1]])

    return figures


@dataclass(frozen=True)
class _Ranking:
    """The utterances of a label by falling score, for the average precision of many draws.

    Attributes:
        order: [V] the utterances that are known, by falling score, up to the last one that has the label.
        ends: [G] of each score that some utterance with the label has, the last place in `order`.
        hits: [P] those of `order` that have the label.
        hits_ends: [G] of each such score, the last place in `hits`.
    """

    order: NDArray[np.int64]
    ends: NDArray[np.int64]
    hits: NDArray[np.int64]
    hits_ends: NDArray[np.int64]

    @classmethod
    def of(cls, present: NDArray[np.bool_], score: Floats, known: NDArray[np.bool_]) -> _Ranking:
        order = np.flatnonzero(known)
        order = order[np.argsort(-score[order], kind="stable")]
        hits = order[present[order]]
        scores = np.unique(-score[hits])
        ends, hits_ends = (np.searchsorted(-score[o], scores, "right") - 1 for o in (order, hits))
        return cls(order[: ends[-1] + 1] if len(ends) else order[:0], ends, hits, hits_ends)

    def average_precision(self, counts: NDArray[np.int32]) -> Floats:
        """AP of every draw, [R, U] counts -> [R]: the mean over positives of the precision at their score."""
        if not len(self.hits):
            return np.full(len(counts), np.nan)
        answers, hits = (
            counts.take(order, 1).cumsum(1, dtype=np.int32).take(ends, 1)
            for order, ends in [(self.order, self.ends), (self.hits, self.hits_ends)]
        )
        gained = np.diff(hits, axis=1, prepend=0)
        return (gained * (hits / np.maximum(answers, 1))).sum(1) / hits[:, -1]
