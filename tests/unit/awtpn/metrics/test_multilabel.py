"""Metrics of several labels: beside scikit-learn, its published examples, and MOSEI's formula."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    hamming_loss,
    precision_score,
    recall_score,
)

from awtpn.metrics.multilabel import average_precision, summarize_labels
from awtpn.metrics.tables import format_table

NAMES = ["happy", "sad", "angry"]
MEANS = {"WA": "WA", "F1": "F1", "w-F1": "w-F1", "UA": "recall", "mAP": "AP", "accuracy": "accuracy"}


def drawn(seed: int, utterances: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = (rng.random((utterances, 3)) < [0.5, 0.2, 0.05]) * rng.integers(1, 4, (utterances, 3)) / 3
    # Few decimals: ties, also exactly at the threshold, which is not above it.
    return truth, np.clip(0.3 * (truth > 0) + rng.random((utterances, 3)) * 0.7, 0, 1).round(2)


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_scikit_learn(seed: int) -> None:
    truth, probability = drawn(seed)
    figures = summarize_labels(truth, probability, NAMES)
    for e, name in enumerate(NAMES):
        present, predicted, row = truth[:, e] > 0, probability[:, e] > 0.5, figures["per_label"][name]
        tp, tn = (present & predicted).sum(), (~present & ~predicted).sum()
        p, n = present.sum(), (~present).sum()
        expected = {
            "WA": balanced_accuracy_score(present, predicted),
            "F1": f1_score(present, predicted),
            "w-F1": f1_score(present, predicted, average="weighted"),
            "accuracy": accuracy_score(present, predicted),
            "precision": precision_score(present, predicted, zero_division=0),
            "recall": recall_score(present, predicted),
            "AP": average_precision_score(present, probability[:, e]),
            "positives": p,
            "utterances": 200,
        }
        assert row == pytest.approx(expected, abs=1e-12)
        assert row["WA"] == pytest.approx((tp * (n / p) + tn) / (2 * n)), "MOSEI's own formula"
    for name, of_label in MEANS.items():
        assert figures[name] == pytest.approx(np.mean([r[of_label] for r in figures["per_label"].values()]))
    sets = truth > 0, probability > 0.5
    assert figures["subset accuracy"] == pytest.approx(accuracy_score(*sets))
    assert figures["accuracy"] == pytest.approx(1 - hamming_loss(*sets))
    assert (figures["labels"], figures["utterances"]) == (3, 200)


def test_the_examples_of_scikit_learn() -> None:
    assert average_precision(np.array([0, 0, 1, 1]) > 0, np.array([0.1, 0.4, 0.35, 0.8])) == pytest.approx(
        0.83, abs=5e-3
    )
    truth, answers = np.array([[0, 0, 0], [1, 1, 1], [0, 1, 1]]), np.array([[0, 0, 0], [1, 1, 1], [1, 1, 0]])
    figures = summarize_labels(truth, answers, NAMES)
    found = [figures["per_label"][name]["F1"] for name in NAMES]
    assert found == pytest.approx([0.66666667, 1.0, 0.66666667], abs=1e-8)
    one = np.array([[0], [1], [0], [0], [1], [0]]), np.array([[0], [1], [0], [0], [0], [1]])
    assert summarize_labels(*one, ["cat"])["WA"] == 0.625
    assert summarize_labels(np.array([[0, 1], [1, 1]]), np.ones((2, 2)), ["a", "b"])["subset accuracy"] == 0.5


def test_a_missing_label_leaves_the_denominators() -> None:
    truth, probability = drawn(0)
    truth[:50, 0] = np.nan
    truth[40:60] = np.nan
    figures = summarize_labels(truth, probability, NAMES)
    alone = summarize_labels(truth[60:, :1], probability[60:, :1], NAMES[:1])
    assert figures["per_label"]["happy"] == alone["per_label"]["happy"]
    assert figures["per_label"]["happy"]["utterances"] == 140
    assert figures["utterances"] == 180
    right = [
        all(np.isnan(t) or (t > 0) == (p > 0.5) for t, p in zip(*rows, strict=True))
        for rows in zip(truth, probability, strict=True)
        if not np.isnan(rows[0]).all()
    ]
    assert figures["subset accuracy"] == pytest.approx(np.mean(right))


@pytest.mark.parametrize("intensity", [0.0, 1.0])
def test_a_label_that_nobody_or_everybody_has_is_left_out_of_the_means(intensity: float) -> None:
    truth, probability = drawn(0)
    truth[:, 2] = intensity
    figures = summarize_labels(truth, probability, NAMES)
    two = summarize_labels(truth[:, :2], probability[:, :2], NAMES[:2])
    assert {name: figures[name] for name in MEANS} == {name: two[name] for name in MEANS}
    assert figures["labels"] == 2
    assert figures["per_label"]["angry"]["AP"] is None
    assert figures["per_label"]["angry"]["positives"] == 200 * intensity
    assert "note: 1 label left out of the means" in format_table(figures)
    none = summarize_labels(truth[:, 2:], probability[:, 2:], NAMES[2:])
    assert [none[name] for name in MEANS] == [None] * 6
    assert none["subset accuracy"] is not None
    json.dumps([figures, none], allow_nan=False)


def test_nothing_to_judge_is_none() -> None:
    for empty in (np.zeros((0, 3)), np.full((4, 3), np.nan)):
        figures = summarize_labels(empty, np.zeros_like(empty), NAMES)
        assert [figures[name] for name in (*MEANS, "subset accuracy")] == [None] * 7
        assert figures["utterances"] == 0
        json.dumps(figures, allow_nan=False)
        assert "undefined" in format_table(figures)


def test_a_probability_that_is_no_number_makes_figures_none() -> None:
    truth, probability = drawn(0)
    probability[3, 1] = np.nan
    figures = summarize_labels(truth, probability, NAMES)
    assert figures["per_label"]["sad"]["F1"] is None
    assert figures["per_label"]["happy"]["F1"] is not None
    assert [figures[name] for name in (*MEANS, "subset accuracy")] == [None] * 7
    truth[3, 1] = np.nan
    assert summarize_labels(truth, probability, NAMES)["F1"] is not None, "nobody asks for it there"


def test_the_order_of_utterances_changes_no_bit() -> None:
    truth, probability = drawn(1)
    order = np.random.default_rng(0).permutation(200)
    assert summarize_labels(truth[order], probability[order], NAMES) == summarize_labels(
        truth, probability, NAMES
    )


def test_another_threshold() -> None:
    truth, probability = drawn(2)
    low = summarize_labels(truth, probability, NAMES, threshold=0.2)
    assert low["UA"] > summarize_labels(truth, probability, NAMES)["UA"]
    assert low["threshold"] == 0.2
    assert low["mAP"] == summarize_labels(truth, probability, NAMES)["mAP"], "it has all thresholds"


def test_the_table_has_a_row_per_label() -> None:
    table = format_table(summarize_labels(*drawn(0), NAMES))
    assert "\nWA, % " in table
    assert "\nsubset accuracy, %" in table
    for name in NAMES:
        assert f"\n{name} " in table
    assert "note" not in table
