"""Classification metrics from one confusion matrix, which is counted per rank and summed exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

# What the paper reports (w-ACC, w-F1), as fractions of 1, by the dataset name in the manifest.
PAPER = {
    "iemocap": {"w-ACC": 0.7721, "w-F1": 0.7825},
    "meld": {"w-ACC": 0.7318, "w-F1": 0.7042},
    "mosei": {"w-ACC": 0.6109, "w-F1": 0.6129},
}
SUMMARY = ("w-ACC", "w-F1", "UA", "macro-F1")


def count_confusion(label: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Confusion matrix int64 [C, C], true classes as rows, of `label` and `predicted` [B] (no host sync)."""
    cell = label * classes + predicted
    # Not bincount, which waits for the device to know the size of its result.
    counts = cell.new_zeros(classes * classes).scatter_add_(0, cell, cell.new_ones(cell.shape))
    return counts.view(classes, classes)


def summarize(confusion: NDArray[np.int64], classes: Sequence[str]) -> dict[str, Any]:
    """All metrics of a confusion matrix [C, C] with true classes as rows, as fractions of 1.

    w-ACC is the fraction of utterances that are right (what the published code computes under that name),
    w-F1 the mean F1 weighted by class size, UA the mean recall and macro-F1 the mean F1 of the classes that
    occur. A class that is never predicted has precision 0.
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


def paper_metrics(dataset: str) -> dict[str, float] | None:
    """The paper's metrics for a dataset of this name ("iemocap4", "MELD", ...); None if it has none."""
    return next((metrics for name, metrics in PAPER.items() if name in dataset.lower()), None)


def one_class_note(metrics: Mapping[str, Any]) -> str | None:
    """A note that metrics of a single class say nothing; None if there are more classes."""
    occurring = [name for name, row in metrics["per_class"].items() if row["support"]]
    if len(metrics["labels"]) == 1:
        return "note: the model knows one class only, so every prediction is right: these metrics say nothing"
    if len(occurring) == 1:
        return (
            f"note: all utterances have the class {occurring[0]!r}: the metrics say nothing about the others"
        )
    return None


def auroc(score: NDArray[np.floating[Any]], truth: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative; ties count half."""
    _, group, size = np.unique(score, return_inverse=True, return_counts=True)
    mean_rank = (np.cumsum(size) - (size - 1) / 2)[group]
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    return float((mean_rank[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))
