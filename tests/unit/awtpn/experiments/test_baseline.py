"""The baseline of each task: the linear models against their formulas, penalties, missing values, splits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments_support import pack_values
from numpy.typing import NDArray

from awtpn.config.command_line import parse_command_line
from awtpn.config.schema import Config
from awtpn.experiments import baseline
from awtpn.experiments.crossvalidation import print_baseline
from awtpn.experiments.folds import leave_one_out
from awtpn.experiments.linear_models import (
    INVERSE_PENALTIES,
    PENALTIES,
    Training,
    figures_of_answers,
    inner_splits,
    linear_answers,
)
from awtpn.experiments.pooled import Pooled, open_utterances, pool_utterances
from awtpn.metrics.multilabel import summarize_labels
from awtpn.metrics.regression import summarize_values
from awtpn.model.task import Task

pytest.importorskip("sklearn")

VALUES = Task("regression", ["valence", "arousal"], [[-3, 3], [0, 10]], levels=7)
LABELS = Task("multilabel", ["a", "b"])


def linear_figures(task: Task, training: Training, test: Pooled, balanced: bool = False) -> dict[str, Any]:
    """Fit, predict and evaluate."""
    return figures_of_answers(task, test, linear_answers(task, training, test, balanced))


def pooled(seed: int, utterances: int, task: Task, missing: float = 0.0) -> Pooled:
    """Rows of 5 features in very different units, and values that depend on them linearly, with noise."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(utterances, 5)) * [1, 10, 100, 0.1, 1] + [0, 5, 0, 0, 1]
    weights = np.array([[1, 0.1, 0.0, 3, 0], [0, 0.1, 0.01, 0, -1]]).T
    values = rows @ weights + rng.normal(size=(utterances, 2)) * 0.5
    if task.type == "multilabel":
        values = np.where(values > np.median(values, axis=0), 2.0, 0.0)
    values[rng.random(values.shape) < missing] = np.nan
    return Pooled(rows, np.zeros(utterances, np.int64), values)


def ridge(x: NDArray[Any], y: NDArray[Any], alpha: float, of: NDArray[Any]) -> NDArray[Any]:
    """w = (X'X + alpha I)^-1 X'y of standardized X and centered y, applied to `of`."""
    mean, deviation, offset = x.mean(0), x.std(0), y.mean()
    z = (x - mean) / deviation
    w = np.linalg.solve(z.T @ z + alpha * np.eye(z.shape[1]), z.T @ (y - offset))
    predicted: NDArray[Any] = (of - mean) / deviation @ w + offset
    return predicted


@pytest.mark.parametrize("validation", [None, 1])
def test_ridge_regression_is_its_formula_with_the_best_penalty(validation: int | None) -> None:
    train, test = pooled(0, 60, VALUES, missing=0.3), pooled(1, 40, VALUES, missing=0.2)
    group = np.arange(60) % 3
    predicted = np.empty(test.values.shape)
    for k in range(2):
        known = ~np.isnan(train.values[:, k])
        x, y, g = train.rows[known], train.values[known, k], group[known]
        errors = []
        for alpha in PENALTIES:
            of_groups = [
                np.mean((ridge(x[g != left], y[g != left], alpha, x[g == left]) - y[g == left]) ** 2)
                for left in ([0, 1, 2] if validation is None else [validation])
            ]
            errors.append(np.mean(of_groups))
        best = PENALTIES[int(np.argmin(errors))]
        final = np.ones(len(y), bool) if validation is None else g != validation
        predicted[:, k] = ridge(x[final], y[final], best, test.rows)
    expected = summarize_values(test.values, predicted, VALUES.names, VALUES.ranges)
    figures = linear_figures(VALUES, Training(train, group, validation), test)
    for name in VALUES.names:
        found = figures["per_dimension"][name]
        assert found == pytest.approx(expected["per_dimension"][name], rel=1e-9), name
    assert figures["MAE"] == pytest.approx(expected["MAE"], rel=1e-9)
    assert figures["Corr"] > 0.8
    assert figures["per_dimension"]["valence"]["utterances"] == (~np.isnan(test.values[:, 0])).sum()


def test_a_missing_value_leaves_its_utterance_out_for_its_own_dimension_alone() -> None:
    train, test = pooled(0, 60, VALUES), pooled(1, 40, VALUES)
    group = np.arange(60) % 3
    whole = linear_figures(VALUES, Training(train, group), test)
    values = train.values.copy()
    values[:20, 0] = np.nan
    some = linear_figures(VALUES, Training(replace(train, values=values), group), test)
    assert some["per_dimension"]["arousal"] == whole["per_dimension"]["arousal"]
    fewer = Pooled(train.rows[20:], train.label[20:], train.values[20:])
    alone = linear_figures(VALUES, Training(fewer, group[20:]), test)
    assert some["per_dimension"]["valence"] == alone["per_dimension"]["valence"]


@pytest.mark.parametrize("balanced", [False, True])
def test_labels_are_scikit_learns_logistic_regressions(balanced: bool) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.preprocessing import StandardScaler

    train, test = pooled(0, 60, LABELS, missing=0.3), pooled(1, 40, LABELS, missing=0.2)
    train.values[:30, 1] = np.where(train.values[:30, 1] > 0, 0.0, train.values[:30, 1])  # now it is rare
    group = np.repeat([0, 1], [40, 20])
    probability = np.empty(test.values.shape)
    weights = "balanced" if balanced else None
    for k in range(2):
        known = ~np.isnan(train.values[:, k])
        x, y, g = train.rows[known], train.values[known, k] > 0, group[known]
        fit = {}
        for c in INVERSE_PENALTIES:
            scaler = StandardScaler().fit(x[g == 0])
            model = LogisticRegression(C=c, max_iter=5_000, class_weight=weights)
            model.fit(scaler.transform(x[g == 0]), y[g == 0])
            answers = model.predict(scaler.transform(x[g == 1]))
            score = f1_score(y[g == 1], answers, average="weighted")
            fit[c] = score, model.predict_proba(scaler.transform(test.rows))[:, 1]
        best = max(INVERSE_PENALTIES, key=lambda c: fit[c][0])  # the first of equals
        probability[:, k] = fit[best][1]
    expected = summarize_labels(test.values, probability, LABELS.names)
    figures = linear_figures(LABELS, Training(train, group, 1), test, balanced)
    assert figures["per_label"]["a"] == pytest.approx(expected["per_label"]["a"])
    assert figures["per_label"]["b"] == pytest.approx(expected["per_label"]["b"])
    assert figures["mAP"] == pytest.approx(expected["mAP"])
    assert figures["per_label"]["a"]["WA"] > 0.6


def test_a_split_without_anything_to_learn_or_to_validate_on_is_left_out() -> None:
    target, group = np.array([1.0, 1.0, 2.0, 3.0]), np.array([0, 0, 1, 2])
    assert [fit.tolist() for fit, _ in inner_splits(target, group)] == [[2, 3], [0, 1, 3], [0, 1, 2]]
    assert inner_splits(target[:3], group[:3]) == inner_splits(target[:3], group[:3], validation=7) == []
    [(fit, val)] = inner_splits(target, group, validation=2)
    assert (fit.tolist(), val.tolist()) == ([0, 1, 2], [3])


# --- Of data -------------------------------------------------------------------------------------


def config_of(url: str, *more: str) -> Config:
    return parse_command_line([f"--data.train={url}", *more])[0]


def test_own_splits_choose_on_validation_utterances_and_do_not_train_on_them(tmp_path: Path) -> None:
    url = pack_values(tmp_path / "data", splits=True)
    config = config_of(url, "--data.target=valence,arousal")
    figures = baseline.baseline_of_split(config)
    parts = [open_utterances(config, role) for role in ("train", "val", "test")]
    train, val, test = pool_utterances([part for part in parts if part])
    assert np.isnan(train.values).any(), "some are missing"
    both = Pooled(
        *(np.concatenate([getattr(p, n) for p in (train, val)]) for n in ("rows", "label", "values"))
    )
    ranges = [[float(np.nanmin(v)), float(np.nanmax(v))] for v in train.values.T]
    task = Task("regression", ["valence", "arousal"], ranges, 7)
    group = np.repeat([0, 1], [len(train), len(val)])
    assert figures == linear_figures(task, Training(both, group, 1), test)
    assert figures["Corr"] > 0.9
    assert figures["utterances"] == len(test) == 16
    of_val = baseline.baseline_of_split(config, "val")
    assert of_val["utterances"] == len(val)
    assert of_val["MAE"] != figures["MAE"]


def test_every_fold_has_the_figures_of_its_own_utterances(tmp_path: Path) -> None:
    url = pack_values(tmp_path / "data", classes=False)
    config = config_of(url)
    scores = baseline.scores_of(baseline.evaluate_folds(config, "fold", leave_one_out([0, 1, 2])))
    assert [score.task for score in scores] == ["regression"] * 3
    assert all(score.metrics["Corr"] > 0.9 for score in scores)


def test_the_baseline_is_printed_without_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = pack_values(tmp_path / "data", splits=True)
    print_baseline([f"--data.train={url}", "--data.target=valence"], None)
    text = capsys.readouterr().out
    assert "ridge regression, test: " in text
    assert "MAE" in text
    print_baseline([f"--data.train={url}#train", "--data.target=a", "--task.type=multilabel"], "fold")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "logistic regression of each label"
    assert lines[2].split() == ["fold", "WA", "F1", "w-F1", "UA", "mAP", "subset", "accuracy"]
    assert [line.split()[0] for line in lines[3:]] == ["0", "1", "2", "mean"]
    assert all(float(line.split()[5]) > 90 for line in lines[3:])
    with pytest.raises(ValueError, match=r"has no test utterances: set data\.test .*--by"):
        print_baseline([f"--data.train={pack_values(tmp_path / 'all')}"], None)
