"""The results of a shared model on its card: tables for readers, and figures for the hub, for each task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from awtpn.metrics.classification import SUMMARY, paper_metrics
from awtpn.metrics.confidence_intervals import Interval, bootstrap_confusion
from awtpn.metrics.summary import format_metric, format_range, headlines_of, shown, task_type_of
from shards.safe_io.markdown import inline, table

# Our metrics -> the hub's names for them; the hub knows only a fixed list, which has none for the others.
HUB_METRICS = {
    "classification": {"w-ACC": "accuracy", "w-F1": "f1", "UA": "recall", "macro-F1": "f1"},
    "regression": {
        **{"MAE": "mae", "Corr": "pearsonr"},
        **dict.fromkeys(("Acc-2", "Acc-2-has0", "Acc-3", "Acc-5", "Acc-7"), "accuracy"),
        **dict.fromkeys(("F1-2", "F1-2-has0"), "f1"),
    },
    "multilabel": {"F1": "f1", "w-F1": "f1", "UA": "recall", "subset accuracy": "accuracy"},
}
# What the hub's list of metrics says without results, too.
USUAL_METRICS = {
    "classification": ["accuracy", "f1", "recall"],
    "regression": ["mae", "pearsonr"],
    "multilabel": ["accuracy", "f1", "recall"],
}
UNKNOWN_WEIGHTS = "Nothing records whether they were measured with exactly these weights."
NO_INTERVALS = (
    "They have no intervals, which need the predictions for the single utterances: `awtpn export` computes "
    "them where it finds these in the run's folder."
)
ABOUT_VALUES = (
    "MAE: mean absolute error, in the unit of the values; Corr: Pearson's correlation; CCC: Lin's "
    "concordance correlation"
)
ABOUT_SENTIMENT = (
    "; Acc and F1 as MMSA computes them, in per cent (2: without neutral utterances where the range is -3 to "
    "3, has0: with them)"
)
ABOUT_LABELS = (
    "Per cent. WA: weighted accuracy of CMU-MOSEI, the mean of the recalls of presence and absence; F1: of "
    "presence; w-F1: of presence and absence by their numbers; UA: mean recall; mAP: mean average precision; "
    "subset accuracy: utterances all of whose labels are right. Means over labels; a label is predicted "
    "where its probability is above 0.5."
)


@dataclass(frozen=True)
class Measured:
    """What the predictions for the utterances of the reported split tell beside the figures.

    Attributes:
        intervals: 95 % confidence intervals by metric.
        coverage: by dimension the share of true values that lie within the prediction intervals.
    """

    intervals: Mapping[str, Interval]
    coverage: Mapping[str, float]


def reported(card: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """The split to report ("test", else "val"), and its metrics; (None, {}) without results."""
    found = card.get("results") or {}
    role = next((r for r in ("test", "val") if r in found), None)
    task_type = (card.get("task") or {}).get("type", "classification")
    if role is None or task_type_of(found[role]) != task_type:  # of another task: someone else's card
        return None, {}
    return role, found[role]


def hub_figures(figures: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """(the hub's name, ours, the figure) of each metric that is defined and that the hub has a name for."""
    if not figures:
        return []
    names = HUB_METRICS[task_type_of(figures)]
    return [
        (names[name], name, round(figures[name], 4))
        for name in headlines_of(figures)
        if name in names and figures[name] is not None
    ]


def results(card: Mapping[str, Any], measured: Measured | None = None) -> str:
    """The section on results.

    Args:
        card: its public part.
        measured: of the same results; not used for classes, of which the results hold enough.
    """
    role, figures = reported(card)
    if not role:
        return "This model was exported without results: it has not been evaluated."
    split = (
        "test"
        if role == "test"
        else "validation (which was also used to choose the checkpoint, so the figures are optimistic)"
    )
    dataset = inline(card.get("dataset") or "unnamed data")
    unknown = "" if card["results"].get("checkpoint") else f" {UNKNOWN_WEIGHTS}"
    where = f"On {figures['utterances']:,} {split} utterances of {dataset}"
    task_type = task_type_of(figures)
    if task_type == "classification":
        return _of_classes(card, figures, where, unknown)
    if task_type == "regression":
        return _of_values(card, figures, measured, f"{where}.{unknown}")
    return _of_labels(figures, measured, f"{where}.{unknown}")


def _of_classes(card: Mapping[str, Any], figures: Mapping[str, Any], where: str, unknown: str) -> str:
    intervals = bootstrap_confusion(np.array(figures["confusion_matrix"], np.int64))
    is_awtpn = card["model"].get("name", "awtpn") == "awtpn"  # the paper has figures of no other model
    paper = (paper_metrics(str(card.get("dataset") or "")) if is_awtpn else None) or {}
    head = ["", "this model", "95 % interval"] + ["paper"] * bool(paper)
    rows = []
    for name in SUMMARY:
        cells = [shown(name), f"{100 * figures[name]:.2f}", _span(name, intervals[name])]
        if paper:
            cells.append(f"{100 * paper[name]:.2f}" if name in paper else "not given")
        rows.append(cells)
    of_class = []
    for name, of in figures["per_class"].items():
        numbers = [f"{100 * of[key]:.2f}" for key in ("precision", "recall", "f1")]
        of_class.append([name, *numbers, f"{of['support']:,}"])
    return (
        f"{where}, per cent.{unknown} "
        "w-ACC: utterances that are right; w-F1: F1 averaged by class size; UA: mean recall. Intervals: "
        f"{intervals['w-F1'].how}, without strata; they do not cover other speakers or recordings.\n\n"
        + table(head, rows)
        + "\n\n"
        + table(["class", "precision", "recall", "F1", "utterances"], of_class)
    )


def _of_values(
    card: Mapping[str, Any], figures: Mapping[str, Any], measured: Measured | None, where: str
) -> str:
    ranges = dict(zip(card["task"]["names"], card["task"]["ranges"], strict=True))
    validated = (card["results"].get("val") or {}).get("per_dimension") or {}
    coverage = {} if measured is None else measured.coverage
    head = ["", "range", "MAE", "Corr", "CCC", "90 % prediction interval", "within it", "utterances"]
    rows = []
    for name, (low, high) in ranges.items():
        of = figures["per_dimension"][name]
        half = (validated.get(name) or {}).get("interval")
        rows.append(
            [
                name,
                f"{low:g} to {high:g}",
                *(format_metric(key, of[key]) for key in ("MAE", "Corr", "CCC")),
                "not known" if half is None else f"+-{half:.4f}",
                f"{100 * coverage[name]:.1f} %" if name in coverage else "not measured",
                f"{of['utterances']:,}",
            ]
        )
    several = ". Means over dimensions" if len(rows) > 1 else ""
    sentiment = ABOUT_SENTIMENT if "Acc-2" in figures else ""
    return (
        f"{where} {ABOUT_VALUES}{sentiment}{several}. {_about_intervals(measured)}\n\n"
        + _overall(figures, measured)
        + "\n\nThe half-width of a prediction interval is of the validation utterances (split conformal), "
        "which also chose the checkpoint. Within it: the share of the true values of these utterances.\n\n"
        + table(head, rows)
    )


def _of_labels(figures: Mapping[str, Any], measured: Measured | None, where: str) -> str:
    keys = ("WA", "F1", "precision", "recall", "AP")
    rows = [
        [
            name,
            *(format_metric(key, of[key]) for key in keys),
            f"{of['positives']:,}",
            f"{of['utterances']:,}",
        ]
        for name, of in figures["per_label"].items()
    ]
    return (
        f"{where} {ABOUT_LABELS} {_about_intervals(measured)}\n\n"
        + _overall(figures, measured)
        + "\n\n"
        + table(["label", *keys, "present", "utterances"], rows)
    )


def _overall(figures: Mapping[str, Any], measured: Measured | None) -> str:
    """The metrics of the whole split, with their intervals where they are known."""
    intervals = {} if measured is None else measured.intervals
    names = headlines_of(figures)
    rows = [[shown(name), format_metric(name, figures[name])] for name in names]
    if not intervals:
        return table(["", "this model"], rows)
    for name, row in zip(names, rows, strict=True):
        row.append(_span(name, intervals[name]) if name in intervals else "undefined")
    return table(["", "this model", "95 % interval"], rows)


def _about_intervals(measured: Measured | None) -> str:
    if measured is None or not measured.intervals:
        return NO_INTERVALS
    # The words of the metric of which the fewest resamples are left out stand for all.
    how = min((interval.how for interval in measured.intervals.values()), key=len)
    return f"95 % intervals: {how}; they do not cover other speakers or recordings."


def _span(name: str, interval: Interval) -> str:
    return format_range(name, (interval.low, interval.high))
