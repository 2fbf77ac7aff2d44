"""Metrics of predicted values: MAE, correlation, concordance, and those of sentiment.

All sums are float64, of centred values, and exact (`math.fsum`): the figures depend neither on the order of
the utterances, and so not on the number of ranks, nor on a large mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awtpn.metrics.sentiment import summarize_sentiment
from awtpn.metrics.summary import HEADLINES, mean_of_all, sentiment_metrics

INTERVAL_LEVEL = 0.9  # of the prediction interval in the figures


def summarize_values(
    truth: NDArray[np.float64],
    predicted: NDArray[np.float64],
    names: Sequence[str],
    ranges: Sequence[Sequence[float] | None] | None = None,
) -> dict[str, Any]:
    """All metrics of predicted values, as plain data without NaN.

    MAE, Corr and CCC of the split are the means over dimensions. A dimension that no utterance has a value of
    is left out of them. A dimension with values for which a metric is not defined makes its mean None: else a
    model would look better by predicting a constant in its worst dimension.

    Args:
        truth: [U, K] true values, NaN where missing. A missing value leaves the denominator of its dimension.
        predicted: [U, K] predicted values, in the unit of the truth.
        names: of the K dimensions.
        ranges: least and largest value of each dimension, None where not known. -3 to 3 and -1 to 1 add the
            metrics of `awtpn.metrics.sentiment`; a single dimension has these at the top level, too.
    """
    truth, predicted = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    bounds = ranges or [None] * len(names)
    per_dimension = {
        name: _summarize_dimension(truth[:, k], predicted[:, k], bounds[k]) for k, name in enumerate(names)
    }
    with_values = [row for row in per_dimension.values() if row["utterances"]]
    figures: dict[str, Any] = {"task": "regression"}
    for name in HEADLINES["regression"]:
        figures[name] = mean_of_all([row[name] for row in with_values])
    if len(names) == 1:
        row = per_dimension[names[0]]
        figures |= {name: row[name] for name in sentiment_metrics(bounds[0])}
    figures["utterances"] = int((~np.isnan(truth)).any(1).sum())
    return figures | {"per_dimension": per_dimension}


def _summarize_dimension(
    truth: NDArray[np.float64], predicted: NDArray[np.float64], bounds: Sequence[float] | None
) -> dict[str, Any]:
    """The metrics of one dimension, [U] each; all None if there is no true value, or a prediction is NaN."""
    known = ~np.isnan(truth)
    real, guess = truth[known], predicted[known]
    figures: dict[str, Any] = {"MAE": mean_absolute_error(real, guess)}
    figures |= {"Corr": pearson(real, guess), "CCC": concordance(real, guess)}
    if np.isfinite(guess).all():
        figures |= summarize_sentiment(real, guess, bounds)
    else:
        figures |= dict.fromkeys(sentiment_metrics(bounds))
    for name, values in [("truth", real), ("predicted", guess)]:
        figures[f"{name}_mean"], figures[f"{name}_deviation"] = mean_and_deviation(values)
    figures["interval"] = prediction_interval(real, guess, INTERVAL_LEVEL)
    return figures | {"utterances": int(known.sum())}


def mean_absolute_error(truth: NDArray[np.float64], predicted: NDArray[np.float64]) -> float | None:
    """MAE = mean |truth - predicted| of [U] each; None without utterances or with a NaN."""
    if not _usable(truth, predicted):
        return None
    return math.fsum(np.abs(truth - predicted).tolist()) / len(truth)


def pearson(truth: NDArray[np.float64], predicted: NDArray[np.float64]) -> float | None:
    """Pearson's correlation of [U] each; None if one of them is constant.

    r = sum(x y) / sqrt(sum(x^2) sum(y^2)), with x and y centred.
    """
    if not _usable(truth, predicted) or _constant(truth) or _constant(predicted):
        return None
    x, y = (_scaled(_centred(values)) for values in (truth, predicted))
    r = _dot(x, y) / math.sqrt(_dot(x, x) * _dot(y, y))
    return max(-1.0, min(1.0, r))


def concordance(truth: NDArray[np.float64], predicted: NDArray[np.float64]) -> float | None:
    """Lin's concordance correlation coefficient of [U] each; None if one of them is constant.

    CCC = 2 cov(x, y) / (var(x) + var(y) + (mean(x) - mean(y))^2), with population moments (divided by U), as
    in Lin (1989). Constant predictions would have CCC 0; they have none, as they have no correlation.
    """
    if not _usable(truth, predicted) or _constant(truth) or _constant(predicted):
        return None
    x, y = _centred(truth), _centred(predicted)
    offset = _mean(truth) - _mean(predicted)
    # One scale for all three, so that no square overflows or vanishes; it cancels.
    scale = max(float(np.abs(x).max()), float(np.abs(y).max()), abs(offset))
    x, y, offset = x / scale, y / scale, offset / scale
    return 2 * _dot(x, y) / (_dot(x, x) + _dot(y, y) + len(x) * offset**2)


def mean_and_deviation(values: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Mean and population standard deviation of [U]; None without values or with a NaN."""
    if not _usable(values, values):
        return None, None
    if _constant(values):
        return float(values[0]), 0.0
    x = _centred(values)
    scale = float(np.abs(x).max())
    return _mean(values), scale * math.sqrt(_dot(x / scale, x / scale) / len(x))


def prediction_interval(
    truth: NDArray[np.float64], predicted: NDArray[np.float64], level: float = INTERVAL_LEVEL
) -> float | None:
    """Half of the width of an interval around predictions that holds a new truth with probability `level`.

    Split conformal prediction (Vovk et al. 2005; Lei et al. 2018): of the n residuals |truth - predicted| it
    is the ceil((n + 1) level)-th smallest. If the utterances are exchangeable with a new one, and the model
    was not trained on them, then predicted +- half-width holds the new truth with at least this probability.

    Args:
        truth: [U] true values; missing ones (NaN) are left out.
        predicted: [U] predictions.
        level: between 0 and 1.

    Returns:
        None if a prediction is NaN, or there are too few utterances: the rank would be above n. For 90 % it
        takes 9.
    """
    known = ~np.isnan(truth)
    residual = np.sort(np.abs(truth[known] - predicted[known]))
    # The small number: 10 * 0.9 must not become 10 by a rounding error above 9.
    rank = math.ceil((len(residual) + 1) * level - 1e-9)
    if not 1 <= rank <= len(residual) or not np.isfinite(residual).all():
        return None
    return float(residual[rank - 1])


def _usable(truth: NDArray[np.float64], predicted: NDArray[np.float64]) -> bool:
    return len(truth) > 0 and bool(np.isfinite(truth).all() and np.isfinite(predicted).all())


def _constant(values: NDArray[np.float64]) -> bool:
    # Not by the variance, which rounding makes a little more than 0.
    return bool((values == values[0]).all())


def _mean(values: NDArray[np.float64]) -> float:
    return math.fsum(values.tolist()) / len(values)


def _centred(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values - _mean(values)


def _scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values / np.abs(values).max()


def _dot(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    return math.fsum((x * y).tolist())
