"""Intervals: Student's t by its table, the bootstrap beside drawing utterances one by one."""

from __future__ import annotations

import numpy as np
import pytest

from awtpn.metrics.classification import SUMMARY, summarize
from awtpn.metrics.confidence_intervals import (
    bootstrap,
    bootstrap_confusion,
    bootstrap_replicates,
    cells_of,
    summaries,
    t_interval,
    t_quantile,
)


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.706205), (2, 4.302653), (3, 3.182446), (11, 2.200985), (999, 1.962341)]
)
def test_students_quantiles_are_those_of_the_table(freedom: int, expected: float) -> None:
    assert t_quantile(freedom) == pytest.approx(expected, abs=1e-6)


def test_interval_is_students() -> None:
    # Mean 2, deviation 1, n = 3: half width t(0.975, 2) / sqrt(3).
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx([2 - 2.484138, 2 + 2.484138], abs=1e-6)
    assert t_interval([1.0]) is None


def test_many_matrices_at_once_have_the_figures_of_each() -> None:
    confusions = np.random.default_rng(0).integers(0, 20, (50, 4, 4))
    confusions[:10, 2] = 0  # a class that does not occur
    confusions[5:15, :, 1] = 0  # one that nobody answers
    expected = [[summarize(c, list("abcd"))[name] for name in SUMMARY] for c in confusions]
    np.testing.assert_allclose(summaries(confusions.astype(float)), expected, rtol=1e-12)


def test_drawing_patterns_is_drawing_utterances() -> None:
    """The distribution of all four figures is that of the loop that everybody writes."""
    rng = np.random.default_rng(1)
    label = rng.integers(0, 3, 60)
    predicted = np.where(rng.random(60) < 0.6, label, rng.integers(0, 3, 60))
    drawn = []
    for _ in range(4_000):
        rows = rng.integers(0, 60, 60)
        confusion = np.zeros((3, 3), np.int64)
        np.add.at(confusion, (label[rows], predicted[rows]), 1)
        figures = summarize(confusion, list("abc"))
        drawn.append([figures[name] for name in SUMMARY])
    ours = bootstrap_replicates(label, [predicted], 3, resamples=4_000)
    for level in (0.025, 0.5, 0.975):
        np.testing.assert_allclose(np.quantile(ours, level, 0), np.quantile(drawn, level, 0), atol=0.015)


def test_models_are_judged_on_the_same_draw() -> None:
    rng = np.random.default_rng(2)
    label = rng.integers(0, 2, 200)
    right = rng.random(200) < 0.5
    one, other = np.where(right, label, 1 - label), np.where(right, 1 - label, label)
    alone = bootstrap(label, [one], 2)
    assert bootstrap(label, [one, one], 2) == alone, "a model beside itself tells nothing more"
    # Where one is right the other is wrong, so the mean of their accuracies is 1/2 in every draw.
    both = bootstrap(label, [one, other], 2)["w-ACC"]
    assert (both.low, both.high) == pytest.approx((0.5, 0.5))
    assert alone["w-ACC"].high - alone["w-ACC"].low > 0.1


def test_a_confusion_matrix_is_all_that_one_model_needs() -> None:
    confusion = np.array([[30, 10], [5, 15]])
    label, predicted = cells_of(confusion)
    assert bootstrap_confusion(confusion) == bootstrap(label, [predicted], 2)
    interval = bootstrap_confusion(confusion)["w-ACC"]
    # 45 of 60: about 1.96 standard errors of a binomial to either side.
    assert (interval.low, interval.high) == pytest.approx((0.75 - 0.11, 0.75 + 0.11), abs=0.015)
    assert "bootstrap over 60 utterances" in interval.how
