"""Sections of a report on values: dimensions, sentiment, predicted against true values, and residuals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from awtpn.metrics.calibration import RESIDUAL_LEVELS, residual_quantiles, value_calibration
from awtpn.metrics.regression import INTERVAL_LEVEL
from awtpn.metrics.summary import SENTIMENT, format_metric, mean_of_all, shown
from awtpn.report import value_charts
from awtpn.report.answers import ROUNDING, Answers, by_utterance
from awtpn.report.repetitions import Report
from awtpn.report.sections import Section, Table, drawn_names, drawn_words, over_runs
from awtpn.report.text import span

MOST_RESIDUALS = 10
LEVEL = f"{100 * INTERVAL_LEVEL:.0f} %"
UNKNOWN = "Not known: the runs kept no predictions."

# What the sentiment metrics compare, by the number of metrics that a corpus has: see `metrics.sentiment`.
MOSI = {
    "Acc-2": "above 0 or not; a truth of 0 is left out",
    "F1-2": "the same: F1 of both sides, averaged by size",
    "Acc-2-has0": "below 0 or not; all utterances",
    "F1-2-has0": "the same: F1 of both sides, averaged by size",
    "Acc-3": "cut off at -1 and 1, and rounded",
    "Acc-5": "cut off at -2 and 2, and rounded",
    "Acc-7": "cut off at -3 and 3, and rounded",
}
SIMS = {
    "Acc-2": "up to 0, or above it",
    "F1-2": "the same: F1 of both sides, averaged by size",
    "Acc-3": "cut at -0.1 and 0.1",
    "Acc-5": "cut at -0.7, -0.1, 0.1 and 0.7",
}


def value_sections(report: Report) -> list[Section]:
    """All sections of a regression."""
    classes = sentiment(report)
    return [
        dimensions(report),
        *([classes] if classes else []),
        against_truth(report),
        residuals(report),
        largest_residuals(report),
    ]


def dimensions(report: Report) -> Section:
    """The metrics of each dimension."""
    keys = ("MAE", "Corr", "CCC", "truth_mean", "truth_deviation", "predicted_mean", "predicted_deviation")
    rows = [
        [name, *(format_metric(key, row.get(key)) for key in keys), f"{report.count(name, 'utterances'):,}"]
        for name, row in report.part_means.items()
    ]
    heads = ("true mean", "true deviation", "predicted mean", "predicted deviation", "utterances")
    return Section(
        "Dimensions",
        Table(["", *keys[:3], *heads], rows, range(1, len(keys) + 2)),
        note=f"All but Corr and CCC are in the unit of the values.{over_runs(report)} Missing values are "
        "left out.",
    )


def sentiment(report: Report) -> Section | None:
    """Values cut into classes; None if no dimension has the range of a corpus of sentiment."""
    intervals = report.over_utterances if len(report.names) == 1 else None
    rows, corpora = [], []
    for name, of in report.part_means.items():
        # Only a range of -3 to 3 has the first metric of all that only CMU-MOSI has.
        mosi = all(metric in of for metric in SENTIMENT[-3.0, 3.0])
        if not mosi and not all(metric in of for metric in SENTIMENT[-1.0, 1.0]):
            continue
        corpora.append("CMU-MOSI and CMU-MOSEI (range -3 to 3)" if mosi else "CH-SIMS (range -1 to 1)")
        for metric, what in (MOSI if mosi else SIMS).items():
            row = [name, shown(metric), what, format_metric(metric, of[metric])]
            rows.append([*row, span(intervals, metric)] if len(report.names) == 1 else row)
    if not rows:
        return None
    head = ["", "metric", "what is compared", "%"] + ["95 % over utterances"] * (len(report.names) == 1)
    bins = ", and of ".join(dict.fromkeys(corpora))
    return Section(
        "Cut into classes",
        Table(head, rows, (3, 4)),
        note=f"True and predicted values are cut into the classes of {bins}.{over_runs(report)}",
    )


def against_truth(report: Report) -> Section:
    """Scatter and calibration of each dimension."""
    title = "Predicted against true values"
    if report.answers is None:
        return Section(title, note=UNKNOWN)
    charts, rows = [], []
    for k, name in enumerate(report.names):
        truth, predicted = report.answers.truth[:, k], report.answers.given[:, k]
        bins = value_calibration(truth, predicted)
        if name in drawn_names(report):
            charts.append(value_charts.scatter_svg(truth, predicted, name))
            charts.append(value_charts.value_calibration_svg(bins, name))
        for row in bins:
            cells = [f"{row[key]:.4f}" for key in ("predicted", "truth", "deviation")]
            rows.append([name, *cells, f"{row['count']:,}"])
    head = ["", "mean prediction", "mean true value", "its deviation", "predictions"]
    return Section(
        title,
        charts=charts,
        data=Table(head, rows, (1, 2, 3, 4)),
        note="Means in bins of the prediction with the same number of predictions each. Of a model that is "
        f"well calibrated both are equal.{_all_runs(report)}",
        legend="First chart of a dimension: each prediction is a point. Second: each circle is a bin, and "
        "its line the standard deviation of the true values in it. On the dashed line both are "
        f"equal.{drawn_words(report, 'dimensions')}",
    )


def residuals(report: Report) -> Section:
    """Distribution of truth - prediction, the interval and its coverage, and the largest residuals."""
    answers = report.answers
    rows, charts = [], []
    for k, name in enumerate(report.names):
        half = mean_of_all(run.interval_of(name) for run in report.runs)
        width = format_metric("interval", half)
        if answers is None:
            rows.append([name, *["not known"] * len(RESIDUAL_LEVELS), width, "not known"])
            continue
        quantiles = residual_quantiles(answers.truth[:, k], answers.given[:, k])
        cells = [f"{row['residual']:.4f}" for row in quantiles] or ["undefined"] * len(RESIDUAL_LEVELS)
        covered = coverage(report, k)
        rows.append([name, *cells, width, "undefined" if covered is None else f"{100 * covered:.1f}"])
        if name in drawn_names(report):
            charts.append(value_charts.residuals_svg(answers.residual[:, k], half, name))
    quantile_names = ["median" if level == 0.5 else f"{100 * level:.0f} %" for level in RESIDUAL_LEVELS]
    head = ["", *quantile_names, f"{LEVEL} interval, +-", "measured coverage, %"]
    return Section(
        "Residuals",
        Table(head, rows, range(1, len(head))),
        charts=charts,
        note=f"Quantiles of truth - prediction, and its {LEVEL} interval. "
        f"{interval_words(report)}{_all_runs(report)}",
        legend=f"The band is the interval.{drawn_words(report, 'dimensions')}",
    )


def interval_words(report: Report) -> str:
    """Where the interval comes from, and so what its coverage means."""
    if all(run.has_own_interval for run in report.runs):
        return (
            f"The interval holds {LEVEL} of the validation utterances (split conformal prediction); the "
            "coverage is the share of the test utterances whose residual is in it."
        )
    return (
        f"The interval was measured on the same utterances, so its coverage is about {LEVEL} whatever the "
        "model: only validation utterances beside those of the test could tell it."
    )


def coverage(report: Report, k: int) -> float | None:
    """Share of the residuals of dimension k that are in their run's interval; None if it is not defined."""
    inside: list[NDArray[np.bool_]] = []
    for run in report.runs:
        half = run.interval_of(report.names[k])
        if run.answers is None or half is None:
            return None
        residual = run.answers.residual[:, k]
        known = residual[np.isfinite(residual)]
        inside.append(np.abs(known) <= half + 2 * ROUNDING)
    every = np.concatenate(inside)
    return float(every.mean()) if len(every) else None


def largest_residuals(report: Report) -> Section:
    """The utterances whose mean prediction over the models is farthest from the truth."""
    title = "Largest residuals"
    if report.answers is None:
        return Section(title, note=UNKNOWN)
    rows = [
        [key, report.names[k], f"{truth:.4f}", f"{predicted:.4f}", f"{truth - predicted:+.4f}"]
        for key, k, truth, predicted in farthest(report.answers)
    ]
    if not rows:
        return Section(title, note="No utterance has a true value.")
    several = "" if len(report.names) == 1 else " Dimensions are compared in deviations of their true values."
    return Section(
        title,
        Table(["utterance", "dimension", "true", "predicted", "truth - prediction"], rows, (2, 3, 4), (0,)),
        note=f"Of the mean prediction over all models that were tested on the utterance.{several}",
    )


def farthest(answers: Answers, most: int = MOST_RESIDUALS) -> list[tuple[str, int, float, float]]:
    """Key, dimension, truth and mean prediction of the largest residuals.

    Residuals of several dimensions are compared in units of the standard deviation of a dimension's truth.
    """
    of_utterances = by_utterance(answers)
    if not of_utterances:
        return []
    truth = np.stack([truth for _, truth, _ in of_utterances])
    predicted = np.stack([given.mean(0) for _, _, given in of_utterances])
    scales = [
        float(column[~np.isnan(column)].std()) if (~np.isnan(column)).any() else 1.0 for column in truth.T
    ]
    sizes = np.abs(truth - predicted) / [scale or 1.0 for scale in scales]
    places = [(u, k) for u, k in np.argwhere(np.isfinite(sizes)).tolist()]
    places.sort(key=lambda place: (-sizes[place], of_utterances[place[0]][0], place[1]))
    return [(of_utterances[u][0], k, float(truth[u, k]), float(predicted[u, k])) for u, k in places[:most]]


def _all_runs(report: Report) -> str:
    return f" Predictions of all {len(report.runs)} runs together." if len(report.runs) > 1 else ""
