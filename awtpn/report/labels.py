"""Sections of a report on several labels: the labels, their curves, and the surest mistakes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from awtpn.metrics.calibration import calibration_error, label_calibration, precision_recall_curve
from awtpn.metrics.summary import format_metric, shown
from awtpn.report import charts, value_charts
from awtpn.report.answers import Answers, by_utterance, threshold_of
from awtpn.report.repetitions import Report
from awtpn.report.sections import Section, Table, drawn_names, drawn_words, over_runs
from awtpn.report.text import percent

MOST_MISTAKES = 10
UNKNOWN = "Not known: the runs kept no predictions."


def label_sections(report: Report) -> list[Section]:
    """All sections of several labels."""
    return [labels(report), curves(report), mistakes(report)]


def labels(report: Report) -> Section:
    """The metrics of each label."""
    keys = ("WA", "F1", "w-F1", "precision", "recall", "AP")
    rows = [
        [
            name,
            *(format_metric(key, row.get(key)) for key in keys),
            f"{report.count(name, 'positives'):,}",
            f"{report.count(name, 'utterances'):,}",
        ]
        for name, row in report.part_means.items()
    ]
    return Section(
        "Labels",
        Table(["", *map(shown, keys), "positives", "utterances"], rows, range(1, len(keys) + 3)),
        note=f"In per cent.{over_runs(report)} WA: mean of the recalls of presence and of absence. "
        "Utterances that lack a label's value are left out of its row. A label that all or none of the "
        "utterances have has no metrics, and is left out of the means.",
    )


def curves(report: Report) -> Section:
    """Precision-recall curve and reliability of each label."""
    title = "Curves of the labels"
    if report.answers is None:
        return Section(title, note=UNKNOWN)
    threshold = threshold_of(report.runs[0].metrics)
    drawn, rows = [], []
    for e, name in enumerate(report.names):
        truth, probability = report.answers.truth[:, e], report.answers.given[:, e]
        known = np.isfinite(truth) & np.isfinite(probability)
        truth, probability = truth[known], probability[known]
        bins = label_calibration(truth, probability)
        if name in drawn_names(report):
            curve = precision_recall_curve(truth, probability)
            share = float((truth > 0).mean()) if len(truth) else 0.0
            chosen = at_threshold(truth, probability, threshold)
            drawn.append(value_charts.precision_recall_svg(curve, chosen, share, name))
            drawn.append(charts.calibration_svg(bins, name, "probability", "share that has it"))
        if not len(truth):
            rows.append([name, *["undefined"] * 3, "0"])
            continue
        figures = (float(probability.mean()), float((truth > 0).mean()), calibration_error(bins))
        rows.append([name, *map(percent, figures), f"{len(truth):,}"])
    head = ["", "mean probability, %", "share that has it, %", "calibration error, %", "predictions"]
    together = f" Predictions of all {len(report.runs)} runs together." if len(report.runs) > 1 else ""
    return Section(
        title,
        Table(head, rows, (1, 2, 3, 4)),
        charts=drawn,
        note="The calibration error is the mean difference between probability and share, in ten bins of "
        f"the probability.{together}",
        legend="First chart of a label: precision over recall; the circle is the threshold "
        f"{threshold:g}, and the dashed line the precision of chance. Second: the share of utterances that "
        "has the label, over its probability; "
        f"a circle is a bin, its area the bin's share of the predictions.{drawn_words(report, 'labels')}",
    )


def at_threshold(
    truth: NDArray[np.float64], probability: NDArray[np.float64], threshold: float
) -> tuple[float, float, float] | None:
    """Recall, precision and the threshold; None if no utterance has the label or none is predicted."""
    present, predicted = truth > 0, probability > threshold
    if not present.any() or not predicted.any():
        return None
    right = float((present & predicted).sum())
    return right / int(present.sum()), right / int(predicted.sum()), threshold


def mistakes(report: Report) -> Section:
    """The wrong labels of which the models are surest."""
    title = "Most confident mistakes"
    if report.answers is None:
        return Section(title, note=UNKNOWN)
    rows = [
        [key, report.names[e], words_of(truth), percent(probability), f"{wrong} of {models}"]
        for key, e, truth, probability, wrong, models in surest(
            report.answers, threshold_of(report.runs[0].metrics)
        )
    ]
    if not rows:
        return Section(title, note="All predictions are correct.")
    return Section(
        title,
        Table(["utterance", "label", "truth", "probability, %", "models wrong"], rows, (3, 4), (0,)),
        note="By the mean probability over all models that were tested on the utterance.",
    )


def surest(
    answers: Answers, threshold: float, most: int = MOST_MISTAKES
) -> list[tuple[str, int, float, float, int, int]]:
    """Key, label, intensity, mean probability, and how many of how many models are wrong, surest first."""
    found = []
    for key, truth, given in by_utterance(answers):
        means = given.mean(0)
        wrong = (given > threshold) != (truth > 0)
        for e in np.flatnonzero(~np.isnan(truth) & ((means > threshold) != (truth > 0)) & np.isfinite(means)):
            counts = (int(wrong[:, e].sum()), len(given))
            found.append((key, int(e), float(truth[e]), float(means[e]), *counts))
    # The farther from the truth, the surer.
    return sorted(found, key=lambda m: (-abs(m[3] - (m[2] > 0)), m[0], m[1]))[:most]


def words_of(intensity: float) -> str:
    """ "absent", "present", or "present (1.33)"."""
    if intensity <= 0:
        return "absent"
    return "present" if intensity == 1 else f"present ({intensity:.2f})"
