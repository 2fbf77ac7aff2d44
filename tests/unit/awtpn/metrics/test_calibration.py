"""Tables of calibration of values and labels, and precision-recall curves."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import precision_recall_curve as of_scikit_learn

from awtpn.metrics.calibration import (
    calibration_error,
    label_calibration,
    precision_recall_curve,
    residual_quantiles,
    value_calibration,
)
from awtpn.metrics.multilabel import average_precision


def a_label(utterances: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    probability = rng.random(utterances).round(2)
    return (rng.random(utterances) < probability) * 0.5, probability


def test_reliability_of_a_label_is_that_of_scikit_learn() -> None:
    truth, probability = a_label()
    # scikit-learn's bins have their upper ends, ours their lower ones: no value lies on an end.
    probability = np.clip(probability, 0.005, 0.985) + 0.003
    shares, means = calibration_curve(truth > 0, probability, n_bins=10)
    table = label_calibration(truth, probability)
    assert [row["accuracy"] for row in table] == pytest.approx(shares)
    assert [row["confidence"] for row in table] == pytest.approx(means)
    assert sum(row["count"] for row in table) == 300
    assert calibration_error(table) < 0.1, "drawn with these probabilities"
    assert label_calibration(np.append(truth, np.nan), np.append(probability, 0.5)) == table
    assert label_calibration(truth[:0], probability[:0]) == []
    assert label_calibration(np.ones(1), np.ones(1)) == [{"confidence": 1.0, "accuracy": 1.0, "count": 1}]


def test_the_curve_is_that_of_scikit_learn() -> None:
    truth, probability = a_label()
    precision, recall, thresholds = of_scikit_learn(truth > 0, probability)
    curve = precision_recall_curve(truth, probability)
    # scikit-learn goes upwards, and adds a last point of its own.
    assert [row["threshold"] for row in curve] == pytest.approx(thresholds[::-1])
    assert [row["precision"] for row in curve] == pytest.approx(precision[:-1][::-1])
    assert [row["recall"] for row in curve] == pytest.approx(recall[:-1][::-1])
    area = np.sum(np.diff([0] + [r["recall"] for r in curve]) * [r["precision"] for r in curve])
    assert area == pytest.approx(average_precision(truth > 0, probability))
    few = precision_recall_curve(truth, probability, most=20)
    assert (len(few), few[0], few[-1]) == (20, curve[0], curve[-1])
    assert precision_recall_curve(np.zeros(3), np.ones(3)) == []


def test_bins_of_values_have_equal_sizes() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(1, 5, 200)
    predicted = truth / 2 + rng.normal(0, 0.2, 200)
    table = value_calibration(np.append(truth, np.nan), np.append(predicted, 3))
    assert [row["count"] for row in table] == [20] * 10
    order = np.argsort(predicted)
    assert [row["truth"] for row in table] == pytest.approx(truth[order].reshape(10, 20).mean(1))
    assert [row["predicted"] for row in table] == pytest.approx(predicted[order].reshape(10, 20).mean(1))
    assert [row["deviation"] for row in table] == pytest.approx(truth[order].reshape(10, 20).std(1))
    assert value_calibration(truth, np.full(200, 2.0)) == [
        {
            "predicted": 2.0,
            "truth": pytest.approx(truth.mean()),
            "deviation": pytest.approx(truth.std()),
            "count": 200,
        }
    ]
    assert value_calibration(truth[:0], truth[:0]) == []
    json.dumps(table, allow_nan=False)


def test_quantiles_of_residuals() -> None:
    truth = np.arange(101.0)
    found = residual_quantiles(np.append(truth, np.nan), np.append(np.full(101, 50.0), 0))
    assert [(row["level"], row["residual"]) for row in found] == [
        (0.05, pytest.approx(-45)),
        (0.25, -25),
        (0.5, 0),
        (0.75, 25),
        (0.95, pytest.approx(45)),
    ]
    assert residual_quantiles(truth[:0], truth[:0]) == []
