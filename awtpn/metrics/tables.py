"""The metrics of a split as tables of text, for the terminal and `results.txt`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from awtpn.metrics.classification import one_class_note, paper_metrics
from awtpn.metrics.regression import INTERVAL_LEVEL
from awtpn.metrics.summary import METRICS, format_metric, headlines_of, shown, task_type_of
from shards.safe_io.printable import join_lines, plural, table_lines


def format_table(figures: Mapping[str, Any], dataset: str = "") -> str:
    """The metrics of a split: those of all of it, then a row per class, dimension or label.

    Args:
        figures: of `summarize`, `summarize_values` or `summarize_labels`.
        dataset: its name; the paper's metrics of classes stand beside ours if it has some for the dataset.
    """
    task_type = task_type_of(figures)
    if task_type == "classification":
        return class_table(figures, dataset)
    return value_table(figures) if task_type == "regression" else label_table(figures)


def class_table(figures: Mapping[str, Any], dataset: str = "") -> str:
    """The metrics of classes in per cent, with the paper's beside them if it has some for the dataset."""
    paper = paper_metrics(dataset)
    overall = [["", "ours, %", "paper, %"] if paper else ["", "%", ""]]
    for name in headlines_of(figures):
        published = format_metric(name, paper[name]) if paper and name in paper else ""
        overall.append([shown(name), format_metric(name, figures[name]), published])
    classes = [["class", "precision", "recall", "F1", "utterances"]]
    for name, row in figures["per_class"].items():
        cells = [format_metric("F1", row[key]) for key in ("precision", "recall", "f1")]
        classes.append([name, *cells, str(row["support"])])
    return _joined(overall, classes, one_class_note(figures))


def value_table(figures: Mapping[str, Any]) -> str:
    """The metrics of values; those of sentiment in per cent, all others in the unit of the values."""
    level = f"{100 * INTERVAL_LEVEL:.0f} % of errors"
    heads = ["dimension", "MAE", "Corr", "CCC", "mean", "predicted mean", level, "utterances"]
    dimensions = [heads]
    for name, row in figures["per_dimension"].items():
        keys = ("MAE", "Corr", "CCC", "truth_mean", "predicted_mean")
        half = row["interval"]
        width = "undefined" if half is None else f"+-{half:.4f}"
        cells = [format_metric(key, row[key]) for key in keys]
        dimensions.append([name, *cells, width, str(row["utterances"])])
    undefined = [name for name in ("MAE", "Corr", "CCC") if figures[name] is None]
    note = None
    if undefined:
        note = (
            f"note: {', '.join(undefined)} not defined: in a dimension the true or the predicted values "
            "are missing, all the same, or not numbers"
        )
    return _joined(_overall(figures), dimensions, note)


def label_table(figures: Mapping[str, Any]) -> str:
    """The metrics of several labels in per cent."""
    keys = ("WA", "F1", "w-F1", "accuracy", "precision", "recall", "AP")
    labels = [["label", *keys, "present", "utterances"]]
    for name, row in figures["per_label"].items():
        cells = [format_metric(key, row[key]) for key in keys]
        labels.append([name, *cells, str(row["positives"]), str(row["utterances"])])
    note, left_out = None, len(figures["per_label"]) - figures["labels"]
    if left_out:
        note = (
            f"note: {plural(left_out, 'label')} left out of the means, since all utterances or none have them"
        )
    return _joined(_overall(figures), labels, note)


def _overall(figures: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the metrics of the whole split; those in per cent say so."""
    rows = [["", "value"]]
    for name in headlines_of(figures):
        unit = ", %" if METRICS[name].percent else ""
        rows.append([f"{shown(name)}{unit}", format_metric(name, figures[name])])
    return rows


def _joined(overall: Sequence[Sequence[str]], rows: Sequence[Sequence[str]], note: str | None) -> str:
    lines = [*table_lines(overall, "lr"), "", *table_lines(rows, "lr")]
    if note:
        lines += ["", note]
    return join_lines(lines)
