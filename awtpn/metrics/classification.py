"""Classification quality from one confusion matrix, which is counted per rank and summed exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.safe_io.printable import join_lines, table_lines

# What the paper reports (w-ACC, w-F1), as fractions of 1, by the dataset name in the manifest.
PAPER = {
    "iemocap": {"w-ACC": 0.7721, "w-F1": 0.7825},
    "meld": {"w-ACC": 0.7318, "w-F1": 0.7042},
    "mosei": {"w-ACC": 0.6109, "w-F1": 0.6129},
}
SUMMARY = ("w-ACC", "w-F1", "UA", "macro-F1")


def count_confusion(label: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Confusion counts int64 [C, C], true classes as rows, of `label` and `predicted` [B] (no host sync)."""
    cell = label * classes + predicted
    # Not bincount, which asks the device for the largest cell to size its result.
    counts = cell.new_zeros(classes * classes).scatter_add_(0, cell, torch.ones_like(cell))
    return counts.view(classes, classes)


def summarise(confusion: NDArray[np.int64], classes: Sequence[str]) -> dict[str, Any]:
    """All figures of a confusion matrix [C, C] with true classes as rows, as fractions of 1.

    w-ACC is the fraction of utterances that are right (what the published code computes under that name),
    w-F1 the F1 averaged by class size, UA the mean recall and macro-F1 the mean F1 of the classes that occur.
    A class that is never predicted has precision 0.
    """
    right = np.diag(confusion).astype(np.float64)
    support = confusion.sum(1)
    recall = right / np.maximum(support, 1)
    precision = right / np.maximum(confusion.sum(0), 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).tiny)
    total = max(int(support.sum()), 1)
    occurs = support > 0
    return {
        "w-ACC": float(right.sum() / total),
        "w-F1": float((f1 * support).sum() / total),
        "UA": float(recall[occurs].mean()) if occurs.any() else 0.0,
        "macro-F1": float(f1[occurs].mean()) if occurs.any() else 0.0,
        "utterances": int(support.sum()),
        "per_class": {
            name: {
                "precision": float(precision[c]),
                "recall": float(recall[c]),
                "f1": float(f1[c]),
                "support": int(support[c]),
            }
            for c, name in enumerate(classes)
        },
        "confusion_matrix": confusion.tolist(),
        "labels": list(classes),
    }


def paper_figures(dataset: str) -> dict[str, float] | None:
    """The paper's figures for a dataset of this name ("iemocap4", "MELD", ...), where it has some."""
    return next((figures for name, figures in PAPER.items() if name in dataset.lower()), None)


def format_table(figures: dict[str, Any], dataset: str = "") -> str:
    """The figures as a table for people, in per cent, beside the paper's where the dataset has some."""
    paper = paper_figures(dataset)
    overall = [["", "ours", "paper" if paper else ""]]
    for name in SUMMARY:
        published = f"{100 * paper[name]:.2f}" if paper and name in paper else ""
        overall.append([name, f"{100 * figures[name]:.2f}", published])
    classes = [["class", "precision", "recall", "F1", "utterances"]]
    for name, row in figures["per_class"].items():
        cells = [f"{100 * row[key]:.2f}" for key in ("precision", "recall", "f1")]
        classes.append([name, *cells, str(row["support"])])
    lines = [*table_lines(overall, "lr"), "", *table_lines(classes, "lr")]
    if note := one_class_note(figures):
        lines += ["", note]
    return join_lines(lines)


def one_class_note(figures: dict[str, Any]) -> str | None:
    """What figures of one class alone do not tell; None where there are more."""
    occurring = [name for name, row in figures["per_class"].items() if row["support"]]
    if len(figures["labels"]) == 1:
        return "note: the model knows one class only, so every answer is right: these figures tell nothing"
    if len(occurring) == 1:
        return f"note: all utterances are of the class {occurring[0]!r}: nothing is told of the others"
    return None


def auroc(score: NDArray[np.floating[Any]], truth: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: the chance that a true item scores above a false one, ties counting half."""
    _, group, size = np.unique(score, return_inverse=True, return_counts=True)
    mean_rank = (np.cumsum(size) - (size - 1) / 2)[group]
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    return float((mean_rank[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))
