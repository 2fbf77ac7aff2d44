"""Intervals of values and labels: every draw has the figures of the utterances that are in it."""

from __future__ import annotations

import numpy as np
import pytest

from awtpn.metrics import bootstrap_values as module
from awtpn.metrics.bootstrap_values import (
    bootstrap_labels,
    bootstrap_values,
    draws,
    label_replicates,
    value_replicates,
)
from awtpn.metrics.multilabel import summarize_labels
from awtpn.metrics.regression import summarize_values
from awtpn.metrics.summary import HEADLINES

Array = np.ndarray
RESAMPLES = 60


def rows_of_draws(utterances: int) -> list[Array]:
    """The utterances of every draw, one by one."""
    return [
        np.repeat(np.arange(utterances), counts.astype(int))
        for block in draws(utterances, RESAMPLES, 0)
        for counts in block
    ]


def some_values(dimensions: int, utterances: int = 40) -> tuple[Array, Array]:
    rng = np.random.default_rng(dimensions)
    truth = rng.uniform(-3, 3, (utterances, dimensions)).round(1)
    return truth, 0.6 * truth + rng.normal(0.3, 1, truth.shape)


def some_labels(utterances: int = 40) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    truth = (rng.random((utterances, 3)) < [0.5, 0.3, 0.03]) * 1.0
    truth[0, 2] = 1  # so rare that some draws lack it
    return truth, np.clip(0.3 * truth + rng.random(truth.shape) * 0.7, 0, 1).round(1)


def test_a_draw_has_as_many_utterances_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(draws(50, 9, 0)))
    assert (whole.sum(1) == 50).all()
    monkeypatch.setattr(module, "BLOCK_CELLS", 100)
    assert [len(block) for block in draws(50, 9, 0)] == [2, 2, 2, 2, 1]
    assert (np.concatenate(list(draws(50, 9, 0))) == whole).all()
    assert not (np.concatenate(list(draws(50, 9, 1))) == whole).all()


@pytest.mark.parametrize("bounds", [[-3, 3], [-1, 1], None])
def test_a_draw_has_the_figures_of_its_utterances(bounds: list[float] | None) -> None:
    truth, predicted = some_values(1)
    truth[:9] = np.nan
    # Values around 1e6: variances by differences of squares would lose most of their digits.
    ranges, far = [bounds], 0.0 if bounds else 1e6
    names, found = value_replicates(truth + far, [predicted + far], ranges, RESAMPLES)
    assert names[:3] == HEADLINES["regression"]
    assert len(names) == {-3: 10, -1: 7, None: 3}[bounds and bounds[0]]
    for rows, replicate in zip(rows_of_draws(40), found, strict=True):
        expected = summarize_values(truth[rows] + far, predicted[rows] + far, ["a"], ranges)
        assert replicate.tolist() == pytest.approx([expected[name] for name in names], abs=1e-9)


def test_several_dimensions_are_averaged_as_in_the_figures() -> None:
    truth, predicted = some_values(3)
    truth[np.random.default_rng(0).random(truth.shape) < 0.2] = np.nan
    truth[2:, 2] = np.nan  # two utterances are left: many draws have one of them, or none
    names, found = value_replicates(truth, [predicted], None, RESAMPLES)
    undefined = 0
    for rows, replicate in zip(rows_of_draws(40), found, strict=True):
        expected = summarize_values(truth[rows], predicted[rows], list("abc"))
        wanted = [np.nan if expected[name] is None else expected[name] for name in names]
        assert replicate.tolist() == pytest.approx(wanted, abs=1e-9, nan_ok=True)
        undefined += expected["Corr"] is None
    assert 0 < undefined < RESAMPLES
    how = bootstrap_values(truth, [predicted], None, RESAMPLES)["Corr"].how
    assert how.endswith(f"40 utterances, 60 resamples, seeded, {undefined} left out: not defined in them")


def test_labels_of_a_draw_have_the_figures_of_its_utterances() -> None:
    truth, probability = some_labels()
    truth[5:12, 0] = np.nan
    truth[10:20, 1] = np.nan
    names, found = label_replicates(truth, [probability], 0.4, RESAMPLES)
    assert names == HEADLINES["multilabel"]
    lacking = 0
    for rows, replicate in zip(rows_of_draws(40), found, strict=True):
        expected = summarize_labels(truth[rows], probability[rows], list("abc"), 0.4)
        assert replicate.tolist() == pytest.approx([expected[name] for name in names], abs=1e-12)
        lacking += expected["labels"] < 3
    assert lacking, "some draws lack the rare label"


def test_models_are_averaged_on_the_same_draw() -> None:
    truth, predicted = some_values(1)
    alone = bootstrap_values(truth, [predicted])
    assert bootstrap_values(truth, [predicted, predicted]) == alone
    # Errors of the two models add up to 2 everywhere, so their mean is 1 in every draw.
    error = np.random.default_rng(0).uniform(0, 2, truth.shape)
    both = bootstrap_values(truth, [truth + error, truth + 2 - error])["MAE"]
    assert (both.low, both.high) == pytest.approx((1, 1))
    labels, probability = some_labels()
    assert bootstrap_labels(labels, [probability] * 2) == bootstrap_labels(labels, [probability])


def test_the_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    error = np.random.default_rng(0).exponential(size=(400, 1))
    interval = bootstrap_values(np.zeros((400, 1)), [error])["MAE"]
    half = 1.96 * error.std() / 20
    assert (interval.low, interval.high) == pytest.approx(
        (error.mean() - half, error.mean() + half), abs=0.02
    )


def test_what_no_draw_defines_has_no_interval() -> None:
    truth, predicted = some_values(1)
    constant = bootstrap_values(truth, [np.full_like(truth, 0.1)], [[-3, 3]])
    assert set(constant) == {"MAE", "Acc-2", "F1-2", "Acc-2-has0", "F1-2-has0", "Acc-3", "Acc-5", "Acc-7"}
    predicted[3] = np.nan
    # Draws without the bad prediction are no evidence of a good model.
    assert bootstrap_values(truth, [predicted], [[-3, 3]]) == {}
    labels, probability = some_labels()
    nobody = bootstrap_labels(np.zeros((40, 2)), [probability[:, :2]])
    assert set(nobody) == {"subset accuracy"}
    probability[3] = np.nan
    assert bootstrap_labels(labels, [probability]) == {}


def test_no_utterances_are_refused() -> None:
    for function in (bootstrap_values, bootstrap_labels):
        with pytest.raises(ValueError, match="no utterances"):
            function(np.zeros((0, 1)), [np.zeros((0, 1))])
