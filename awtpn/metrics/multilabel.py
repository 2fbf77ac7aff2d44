"""Metrics of several labels at once, each present or absent.

A label is present in the truth where its intensity is above 0, and in the prediction where its probability is
above the threshold. Per label, with P utterances that have it, N that lack it, and TP, TN, FP, FN as usual:

- WA, the weighted accuracy of CMU-MOSEI (Tong et al. 2017; Zadeh et al. 2018): (TP N / P + TN) / (2 N). This
  is (TP / P + TN / N) / 2, the mean of both recalls, elsewhere called balanced accuracy.
- F1 of presence: 2 TP / (2 TP + FP + FN); w-F1: mean F1 of presence and absence, weighted by P and N, which
  is what tables of CMU-MOSEI print as F1.
- precision TP / (TP + FP) (0 if nothing is predicted), recall TP / P, accuracy (TP + TN) / (P + N).
- AP, average precision: the sum over thresholds of (R_n - R_n-1) P_n, from the highest down, without
  interpolation (scikit-learn's average_precision_score).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awtpn.metrics.summary import mean_of_all

THRESHOLD = 0.5
# Of each label; the means over labels have the same names, but these: AP -> mAP, recall -> UA.
LABEL_METRICS = ("WA", "F1", "w-F1", "accuracy", "precision", "recall", "AP")


def summarize_labels(
    truth: NDArray[np.float64],
    probability: NDArray[np.float64],
    names: Sequence[str],
    threshold: float = THRESHOLD,
) -> dict[str, Any]:
    """All metrics of several labels, as fractions of 1, as plain data without NaN.

    A label that every or no utterance has says nothing about a model: its metrics are None, and all means are
    over the other labels ("labels" says how many these are). A probability that is NaN makes the metrics of
    its label None, and so the means. UA is the mean recall, mAP the mean AP. The
    subset accuracy is the share of the utterances all of whose known labels are right. The mean accuracy is
    1 - the Hamming loss if no label is missing or left out.

    Args:
        truth: [U, E] intensities, NaN where missing. A missing label leaves the denominators of its label.
        probability: [U, E] that the label is present.
        names: of the E labels.
        threshold: a label is predicted where its probability is above it.
    """
    truth, probability = np.asarray(truth, np.float64), np.asarray(probability, np.float64)
    per_label = {
        name: _summarize_label(truth[:, e], probability[:, e], threshold) for e, name in enumerate(names)
    }
    judged = [row for row in per_label.values() if 0 < row["positives"] < row["utterances"]]
    known = ~np.isnan(truth)
    counted = known.any(1)
    right = (((truth > 0) == (probability > threshold)) | ~known).all(1)[counted]
    usable = right.size and np.isfinite(probability[known]).all()
    means = {name: mean_of_all([row[name] for row in judged]) for name in LABEL_METRICS}
    return {
        "task": "multilabel",
        **{name: means[name] for name in ("WA", "F1", "w-F1")},
        "UA": means["recall"],
        "mAP": means["AP"],
        "subset accuracy": float(right.mean()) if usable else None,
        "accuracy": means["accuracy"],
        "precision": means["precision"],
        "labels": len(judged),
        "threshold": threshold,
        "utterances": int(counted.sum()),
        "per_label": per_label,
    }


def _summarize_label(
    truth: NDArray[np.float64], probability: NDArray[np.float64], threshold: float
) -> dict[str, Any]:
    """The metrics of one label, [U] each; all None without both kinds of utterances, or with a NaN."""
    known = ~np.isnan(truth)
    present, score = truth[known] > 0, probability[known]
    positives, total = int(present.sum()), int(known.sum())
    figures: dict[str, Any] = dict.fromkeys(LABEL_METRICS)
    if 0 < positives < total and np.isfinite(score).all():
        predicted = score > threshold
        tp = int((present & predicted).sum())
        tn = int((~present & ~predicted).sum())
        counts = label_figures(tp, int(predicted.sum()) - tp, positives - tp, tn)
        figures = {name: float(value) for name, value in counts.items()}
        figures["AP"] = average_precision(present, score)
    return figures | {"positives": positives, "utterances": total}


def label_figures(tp: Any, fp: Any, fn: Any, tn: Any) -> dict[str, Any]:
    """The metrics of counts, but AP; numbers, or arrays of one shape. Needs utterances of both kinds."""
    positives, negatives = tp + fn, tn + fp
    # F1 of presence and of absence; their denominators are above 0, as there are utterances of both kinds.
    f1 = 2 * tp / (2 * tp + fp + fn)
    f1_absent = 2 * tn / (2 * tn + fp + fn)
    return {
        "WA": (tp * negatives / positives + tn) / (2 * negatives),
        "F1": f1,
        "w-F1": (positives * f1 + negatives * f1_absent) / (positives + negatives),
        "accuracy": (tp + tn) / (positives + negatives),
        "precision": tp / np.maximum(tp + fp, 1),
        "recall": tp / positives,
    }


def average_precision(present: NDArray[np.bool_], score: NDArray[np.float64]) -> float | None:
    """AP of [U] each; utterances of one score are one threshold. None if no utterance has the label."""
    hits, answers = hits_by_threshold(present, score)
    if not present.any():
        return None
    gained = np.diff(hits, prepend=0)
    return float((gained * (hits / answers)).sum() / hits[-1])


def hits_by_threshold(
    present: NDArray[np.bool_], score: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """At each distinct score, from the highest: how many positives, and utterances, have at least it."""
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True)) if len(order) else order
    return np.cumsum(present[order].astype(np.int64))[last], last + 1
