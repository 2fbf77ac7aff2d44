"""The corrected test, the deviation over seeds and the paired bootstrap give known numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from awtpn.experiments.comparison.statistics import (
    class_replicates,
    corrected_interval,
    excludes_zero,
    mean_interval,
    middle,
    seed_deviation,
)
from awtpn.metrics.classification import SUMMARY
from awtpn.metrics.confidence_intervals import t_interval


def test_the_corrected_interval_of_five_folds() -> None:
    differences = [0.01, 0.02, 0.03, 0.04, 0.05]
    low, high = corrected_interval(differences) or (0, 0)
    # s^2 = 2.5e-4; variance of the mean: (1/5 + 1/4) 2.5e-4 = 1.125e-4; t(0.975, 4) = 2.776445
    half = 2.776445 * math.sqrt(1.125e-4)
    assert (low, high) == pytest.approx((0.03 - half, 0.03 + half), abs=1e-8)
    plain = t_interval(differences) or [0, 0]
    assert (high - low) / (plain[1] - plain[0]) == pytest.approx(math.sqrt(0.45 / 0.2))
    assert excludes_zero([low, high])
    assert not excludes_zero([-0.1, 0.1])
    assert not excludes_zero(None)


def test_one_fold_has_no_interval_and_equal_folds_a_point() -> None:
    assert corrected_interval([0.1]) is None
    assert corrected_interval([0.1, 0.1]) == pytest.approx([0.1, 0.1])


def test_the_interval_of_a_mean_over_datasets_comes_from_theirs() -> None:
    # Half widths 0.3 and 0.4: sqrt(0.09 + 0.16) / 2
    assert mean_interval([0.1, 0.3], [[-0.2, 0.4], [-0.1, 0.7]]) == pytest.approx([0.2 - 0.25, 0.2 + 0.25])


def test_the_deviation_over_seeds_pools_the_folds_variances() -> None:
    # Variances 0.02 and 0; that folds differ does not count.
    assert seed_deviation({"a": [0.5, 0.7], "b": [0.9, 0.9]}) == pytest.approx(math.sqrt(0.01))
    assert seed_deviation({"a": [0.5, 0.7], "b": [0.9]}) is None
    assert seed_deviation({}) is None


def test_models_are_resampled_on_the_same_draws() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 200)
    weak = np.where(rng.random(200) < 0.5, label, (label + 1) % 3)
    strong = np.where(np.arange(200) % 10 == 0, label, weak)  # right wherever weak is, and at some more
    column = SUMMARY.index("w-ACC")
    one, other = (class_replicates(label, [given], 3, resamples=300)[:, column] for given in (strong, weak))
    assert (one - other).min() >= 0, "unpaired draws would sometimes favor the weaker model"
    assert one.mean() == pytest.approx((strong == label).mean(), abs=0.01)
    both = class_replicates(label, [strong, weak], 3, resamples=300)[:, column]
    assert both == pytest.approx((one + other) / 2)


def test_the_middle_leaves_out_what_is_not_defined() -> None:
    values = np.array([*np.linspace(0, 1, 1001), np.nan])
    assert middle(values) == pytest.approx([0.025, 0.975])
    assert middle(np.array([np.nan])) is None
