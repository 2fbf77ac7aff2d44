"""Metrics of values: beside scipy, scikit-learn, published examples, and MMSA's definitions of sentiment."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error

from awtpn.metrics.regression import (
    concordance,
    mean_and_deviation,
    pearson,
    prediction_interval,
    summarize_values,
)
from awtpn.metrics.regression import mean_absolute_error as our_error
from awtpn.metrics.sentiment import summarize_sentiment
from awtpn.metrics.tables import format_table

Array = np.ndarray


def values(*numbers: float) -> Array:
    return np.array(numbers, np.float64)


def noisy(utterances: int = 300, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(-3, 3, utterances)
    return truth, 0.6 * truth + rng.normal(0.3, 1, utterances)


# --- Published with their inputs -----------------------------------------------------------------


def test_the_examples_of_scikit_learn_and_scipy() -> None:
    assert our_error(values(3, -0.5, 2, 7), values(2.5, 0, 2, 8)) == 0.5
    several = summarize_values(
        np.array([[0.5, 1], [-1, 1], [7, -6]]), np.array([[0, 2], [-1, 2], [8, -5]]), ["a", "b"]
    )
    assert several["MAE"] == 0.75
    assert [several["per_dimension"][name]["MAE"] for name in "ab"] == [0.5, 1.0]
    assert pearson(values(1, 2, 3, 4, 5, 6, 7), values(10, 9, 2.5, 6, 4, 3, 2)) == pytest.approx(
        -0.828503883588428, abs=1e-15
    )


def test_the_examples_of_keras_and_torchmetrics() -> None:
    truths, predictions = [[0, 1, 0.5], [1, 1, 0.2]], [[0.1, 0.9, 0.5], [1, 0.9, 0.2]]
    found = [concordance(values(*t), values(*p)) for t, p in zip(truths, predictions, strict=True)]
    assert found == pytest.approx([0.97560976, 0.98765432], abs=1e-8), "keras divides by n, as Lin does"

    truth, predicted = values(3, -0.5, 2, 7), values(2.5, 0, 2, 8)
    assert pearson(truth, predicted) == pytest.approx(0.9849, abs=5e-5)
    # torchmetrics divides the moments by n - 1: 0.9777. Only the offset of the means counts less there.
    deviations = np.var(truth) + np.var(predicted)
    offset = (truth.mean() - predicted.mean()) ** 2
    ours = concordance(truth, predicted)
    assert ours is not None
    assert ours * (deviations + offset) / (deviations + offset * 3 / 4) == pytest.approx(0.9777, abs=5e-5)


# --- Independent formulas ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_other_libraries(seed: int) -> None:
    truth, predicted = noisy(seed=seed)
    figures = summarize_values(truth[:, None], predicted[:, None], ["valence"], [[1, 5]])
    assert figures["MAE"] == pytest.approx(mean_absolute_error(truth, predicted), abs=1e-12)
    assert figures["Corr"] == pytest.approx(pearsonr(truth, predicted).statistic, abs=1e-12)
    cov = np.cov(truth, predicted, bias=True)
    by_hand = 2 * cov[0, 1] / (cov[0, 0] + cov[1, 1] + (truth.mean() - predicted.mean()) ** 2)
    assert figures["CCC"] == pytest.approx(by_hand, abs=1e-12)
    row = figures["per_dimension"]["valence"]
    assert row["truth_mean"] == pytest.approx(truth.mean())
    assert row["predicted_deviation"] == pytest.approx(predicted.std())
    assert row["utterances"] == figures["utterances"] == 300
    assert "Acc-2" not in figures, "only the ranges of the sentiment corpora have it"


def test_a_missing_value_leaves_the_denominator_of_its_dimension() -> None:
    truth, predicted = np.stack(noisy(), 1), np.stack(noisy(seed=1), 1)
    truth[:100, 0] = np.nan
    truth[90:120, 1] = np.nan
    figures = summarize_values(truth, predicted, ["a", "b"])
    for k, name in enumerate("ab"):
        known = ~np.isnan(truth[:, k])
        alone = summarize_values(truth[known, k : k + 1], predicted[known, k : k + 1], [name])
        assert figures["per_dimension"][name] == alone["per_dimension"][name]
    assert figures["utterances"] == 290, "ten have no value at all"
    assert figures["MAE"] == pytest.approx(
        sum(figures["per_dimension"][name]["MAE"] for name in "ab") / 2, abs=1e-15
    )


# --- What is not defined -------------------------------------------------------------------------


def test_without_variance_a_figure_is_none_and_never_nan() -> None:
    truth, predicted = noisy(50)
    both = np.stack([truth, truth], 1), np.stack([predicted, np.full(50, 0.1)], 1)
    figures = summarize_values(*both, ["a", "constant"], [[-3, 3]] * 2)
    row = figures["per_dimension"]["constant"]
    assert (row["Corr"], row["CCC"]) == (None, None)
    assert row["MAE"] > 0
    assert row["predicted_deviation"] == 0
    assert (figures["Corr"], figures["CCC"]) == (None, None), (
        "not the mean of the others: that would be better"
    )
    json.dumps(figures, allow_nan=False)
    assert "note: Corr, CCC not defined" in format_table(figures)


def test_a_dimension_without_values_is_left_out() -> None:
    truth, predicted = (np.stack([column] * 2, 1) for column in noisy(50))
    whole = summarize_values(truth[:, :1], predicted[:, :1], ["a"])
    truth[:, 1] = np.nan
    figures = summarize_values(truth, predicted, ["a", "nobody"], [None, [-3, 3]])
    assert {name: figures[name] for name in ("MAE", "Corr", "CCC")} == {
        name: whole[name] for name in ("MAE", "Corr", "CCC")
    }
    row = figures["per_dimension"]["nobody"]
    assert {value for key, value in row.items() if key != "utterances"} == {None}
    assert "Acc-7" in row
    nothing = summarize_values(np.full((3, 1), np.nan), np.zeros((3, 1)), ["a"])
    assert [nothing[name] for name in ("MAE", "Corr", "CCC", "utterances")] == [None, None, None, 0]
    json.dumps([figures, nothing], allow_nan=False)
    assert summarize_values(np.zeros((0, 1)), np.zeros((0, 1)), ["a"], [[-3, 3]])["Acc-2"] is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_prediction_that_is_no_number_makes_figures_none(bad: float) -> None:
    truth, predicted = (np.stack([column] * 2, 1) for column in noisy(50))
    predicted[7, 1] = bad
    figures = summarize_values(truth, predicted, ["a", "b"], [[-3, 3]] * 2)
    assert figures["MAE"] is None
    assert {figures["per_dimension"]["b"][name] for name in ("MAE", "Corr", "CCC", "Acc-7", "interval")} == {
        None
    }
    truth[7, 1] = np.nan
    assert summarize_values(truth, predicted, ["a", "b"])["MAE"] is not None, "nobody asks for it there"


# --- Properties ----------------------------------------------------------------------------------

floats = st.floats(-5, 5, allow_nan=False, width=32)
pairs = arrays(np.float64, st.tuples(st.integers(2, 30), st.just(2)), elements=floats)


@settings(max_examples=50, deadline=None)
@given(pairs, st.randoms(use_true_random=False))
def test_the_order_of_utterances_changes_no_bit(both: Array, random: object) -> None:
    order = list(range(len(both)))
    random.shuffle(order)  # type: ignore[attr-defined]
    there = summarize_values(both[:, :1], both[:, 1:], ["a"], [[-3, 3]])
    again = summarize_values(both[order, :1], both[order, 1:], ["a"], [[-3, 3]])
    assert there == again


@settings(max_examples=50, deadline=None)
@given(pairs)
def test_figures_stay_within_their_bounds(both: Array) -> None:
    truth, predicted = both.T
    corr, ccc = pearson(truth, predicted), concordance(truth, predicted)
    constant = len(np.unique(truth)) == 1 or len(np.unique(predicted)) == 1
    assert (corr is None) == (ccc is None) == constant
    if corr is not None and ccc is not None:
        assert -1 <= corr <= 1
        assert abs(ccc) <= abs(corr) + 1e-12, "agreement is never more than correlation"


@pytest.mark.parametrize("shift", [1e9, -1e9])
def test_a_large_mean_keeps_the_correlation(shift: float) -> None:
    truth, predicted = noisy()
    moved = pearson(truth + shift, predicted + shift)
    assert moved == pytest.approx(pearson(truth, predicted), abs=1e-6), "values of 1e9 have 7 digits left"
    assert concordance(truth + shift, predicted + shift) == pytest.approx(
        concordance(truth, predicted), abs=1e-6
    )


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_tiny_and_huge_values_neither_vanish_nor_overflow(scale: float) -> None:
    truth, predicted = noisy()
    assert pearson(truth * scale, predicted * scale) == pytest.approx(pearson(truth, predicted))
    assert concordance(truth * scale, predicted * scale) == pytest.approx(concordance(truth, predicted))
    mean, deviation = mean_and_deviation(truth * scale)
    assert (mean, deviation) == pytest.approx((truth.mean() * scale, truth.std() * scale))


# --- Prediction intervals ------------------------------------------------------------------------


def test_the_interval_is_the_conformal_rank() -> None:
    truth = np.arange(1.0, 20.0)  # n = 19 residuals 1 .. 19: rank ceil(20 * 0.9) = 18
    assert prediction_interval(truth, np.zeros(19)) == 18
    assert prediction_interval(truth[:9], np.zeros(9)) == 9, "the fewest for 90 %: rank 9 of 9"
    assert prediction_interval(truth[:8], np.zeros(8)) is None
    assert prediction_interval(truth, np.zeros(19), level=0.5) == 10
    assert prediction_interval(np.append(truth, np.nan), np.zeros(20)) == 18, "a missing truth is left out"
    assert prediction_interval(truth, np.full(19, np.nan)) is None


def test_the_interval_holds_what_it_promises() -> None:
    """Of a new utterance, over many draws of 19 utterances: 18 / 20, by exchangeability."""
    rng = np.random.default_rng(0)
    held = []
    for _ in range(4_000):
        errors = rng.exponential(size=20)
        half = prediction_interval(errors[:19], np.zeros(19))
        assert half is not None
        held.append(errors[19] <= half)
    assert np.mean(held) == pytest.approx(0.9, abs=0.02)


# --- Sentiment -----------------------------------------------------------------------------------


def mosi_as_mmsa_defines_it(truth: Array, predicted: Array) -> dict[str, float]:
    """Utterance by utterance, in words of its definition."""
    found = {}
    for name, most in [("Acc-7", 3), ("Acc-5", 2), ("Acc-3", 1)]:
        pairs = [
            (round(min(max(t, -most), most)), round(min(max(p, -most), most)))
            for t, p in zip(truth.tolist(), predicted.tolist(), strict=True)
        ]
        found[name] = sum(t == p for t, p in pairs) / len(pairs)
    there = truth != 0
    positive = truth[there] > 0, predicted[there] > 0
    found["Acc-2"], found["F1-2"] = accuracy_score(*positive), f1_score(*positive, average="weighted")
    non_negative = truth >= 0, predicted >= 0
    found["Acc-2-has0"] = accuracy_score(*non_negative)
    found["F1-2-has0"] = f1_score(*non_negative, average="weighted")
    return found


def sims_as_mmsa_defines_it(truth: Array, predicted: Array) -> dict[str, float]:
    """By its lists of class ends, each class without its lower end and with its upper one."""
    found = {}
    ends = {2: [-1.01, 0.0, 1.01], 3: [-1.01, -0.1, 0.1, 1.01], 5: [-1.01, -0.7, -0.1, 0.1, 0.7, 1.01]}
    for classes, limits in ends.items():
        cut = [
            [
                next(i for i in range(classes) if limits[i] < min(max(v, -1), 1) <= limits[i + 1])
                for v in column
            ]
            for column in (truth.tolist(), predicted.tolist())
        ]
        found[f"Acc-{classes}"] = accuracy_score(*cut)
        if classes == 2:
            found["F1-2"] = f1_score(*cut, average="weighted")
    return found


@pytest.mark.parametrize("seed", range(5))
def test_sentiment_of_mosi_is_that_of_mmsa(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Halves are frequent, in truth and prediction: they round to the even neighbor.
    truth = rng.integers(-6, 7, 200) / 2
    predicted = np.where(rng.random(200) < 0.5, rng.integers(-8, 9, 200) / 2, rng.normal(0, 2, 200))
    figures = summarize_values(truth[:, None], predicted[:, None], ["sentiment"], [[-3, 3]])
    expected = mosi_as_mmsa_defines_it(truth, predicted)
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    row = figures["per_dimension"]["sentiment"]
    assert {name: row[name] for name in expected} == {name: figures[name] for name in expected}


@pytest.mark.parametrize("seed", range(5))
def test_sentiment_of_ch_sims_is_that_of_mmsa(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(-10, 11, 200) / 10
    predicted = np.where(rng.random(200) < 0.5, rng.integers(-13, 14, 200) / 10, rng.normal(0, 0.6, 200))
    figures = summarize_values(truth[:, None], predicted[:, None], ["sentiment"], [[-1.0, 1.0]])
    expected = sims_as_mmsa_defines_it(truth, predicted)
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert not {"Acc-7", "Acc-2-has0"} & figures.keys()


def test_the_ends_of_classes() -> None:
    def rounded(truth: float, predicted: float) -> dict[str, float | None]:
        return summarize_sentiment(values(truth), values(predicted), [-3, 3])

    # To the even neighbor: 0.5 -> 0, 1.5 -> 2, 2.5 -> 2. Clipped first: 2.6 is 2 of Acc-5, and 3 of Acc-7.
    assert rounded(0.5, 0.0)["Acc-7"] == rounded(1.5, 2.5)["Acc-7"] == 1
    assert rounded(2.6, 2.0)["Acc-5"] == 1
    assert rounded(2.6, 2.0)["Acc-7"] == 0
    assert rounded(9.0, 3.0)["Acc-7"] == 1
    # A truth of 0: not counted without zeros, non-negative with them.
    assert rounded(0.0, 1.0)["Acc-2"] is None
    assert rounded(-0.0, 1.0)["Acc-2-has0"] == 1

    for end in (-0.7, -0.1, 0.1, 0.7):
        beside = values(end, end + 1e-3)
        assert summarize_sentiment(beside, values(end - 1e-3, end + 2e-3), [-1, 1])["Acc-5"] == 1
        # As float32 0.1 is a little more than as float64; it is the same label.
        as_stored = np.float32(end).astype(np.float64) * np.ones(1)
        assert summarize_sentiment(values(end), as_stored, [-1, 1])["Acc-5"] == 1
    assert summarize_sentiment(values(-1, 1, 0), values(-9, 9, -0.5), [-1, 1]) == pytest.approx(
        {"Acc-2": 1, "F1-2": 1, "Acc-3": 2 / 3, "Acc-5": 2 / 3}
    )


def test_classes_that_nobody_predicts_have_f1_zero() -> None:
    truth, predicted = values(1, 1, -1), values(1, 1, 1)
    expected = f1_score(truth > 0, predicted > 0, average="weighted")
    assert summarize_sentiment(truth, predicted, [-3, 3])["F1-2"] == pytest.approx(expected)
    assert math.isclose(expected, 2 / 3 * 0.8)


def test_the_table_has_a_row_per_dimension() -> None:
    truth, predicted = noisy()
    one = format_table(summarize_values(truth[:, None], predicted[:, None], ["sentiment"], [[-3, 3]]))
    assert "\nAcc-7, %" in one
    assert "\nCorr" in one
    assert "\nsentiment " in one
    assert "note" not in one
    few = format_table(summarize_values(truth[:5, None], predicted[:5, None], ["valence"]))
    assert "undefined" in few, "five utterances have no interval"
    assert "Acc" not in few
