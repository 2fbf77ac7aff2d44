"""The linear models of the baseline: how one is fitted and its penalty chosen, and the figures of each task.

- classification: logistic regression over the classes
- multilabel: a logistic regression for each label
- regression: a ridge regression for each dimension

Features are standardized by the rows that a model is fitted on. A missing value leaves its row out, for its
label or dimension alone. The penalty is chosen by leaving out groups of the training utterances in turn, or
by validation utterances, which then train nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awtpn.experiments.pooled import Pooled
from awtpn.metrics.classification import summarize
from awtpn.metrics.multilabel import summarize_labels
from awtpn.metrics.regression import summarize_values
from awtpn.model.task import Task

INVERSE_PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # C of the logistic regression
PENALTIES = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)  # alpha of the ridge regression
Splits = list[tuple[NDArray[np.int64], NDArray[np.int64]]]


@dataclass(frozen=True)
class Training:
    """Utterances to fit on.

    Attributes:
        data: the utterances.
        group: [U] a number per utterance; utterances of one group are never on both sides of a split.
        validation: the group that only validates; None: each group in turn, and all are fitted on in the end.
    """

    data: Pooled
    group: NDArray[np.int64]
    validation: int | None = None


def linear_answers(
    task: Task,
    training: Training,
    test: Pooled,
    balanced: bool = False,
    on_fit: Callable[[], object] = lambda: None,
) -> NDArray[Any]:
    """Fit the linear models of a task, and predict: classes [U], values [U, K] or probabilities [U, K].

    Args:
        task: what to learn.
        training: utterances to fit on.
        test: utterances to predict.
        balanced: of several labels, weigh the presence and the absence of each alike.
        on_fit: called after each model.
    """
    data, every = training.data, np.ones(len(training.data), bool)
    if task.type == "classification":
        model = _fitted(_logistic(), data.rows, data.label, every, training, "f1_weighted")
        on_fit()
        classes: NDArray[np.int64] = model.predict(test.rows)
        return classes
    predicted = np.empty(test.values.shape)
    for k in range(len(task.names)):
        values = data.values[:, k]
        known = ~np.isnan(values)
        if task.type == "regression":
            model = _fitted(_ridge(), data.rows, values, known, training, "neg_mean_squared_error")
            predicted[:, k] = model.predict(test.rows)
        else:
            present = (values > 0).astype(np.int64)
            model = _fitted(_logistic(balanced), data.rows, present, known, training, "f1_weighted")
            predicted[:, k] = model.predict_proba(test.rows)[:, 1]
        on_fit()
    return predicted


def figures_of_answers(task: Task, test: Pooled, answers: NDArray[Any]) -> dict[str, Any]:
    """The figures of a split, as `results.json` has them, of what `linear_answers` returned."""
    if task.type == "classification":
        confusion = np.zeros((len(task.names), len(task.names)), np.int64)
        np.add.at(confusion, (test.label, answers), 1)
        return summarize(confusion, task.names)
    if task.type == "regression":
        return summarize_values(test.values, answers, task.names, task.ranges)
    return summarize_labels(test.values, answers, task.names)


def models_of(task: Task) -> int:
    """Number of models that are fitted for a task."""
    return 1 if task.type == "classification" else len(task.names)


def inner_splits(target: NDArray[Any], group: NDArray[np.int64], validation: int | None = None) -> Splits:
    """Rows to fit on and rows to validate on: each group in turn, or the group `validation`.

    A split is omitted if the rows to fit on have a single class or value, or there are none to validate on.

    Args:
        target: [U] classes or values.
        group: [U] see `Training`.
        validation: see `Training`.
    """
    chosen = np.unique(group).tolist() if validation is None else [validation]
    splits = [(np.flatnonzero(group != g), np.flatnonzero(group == g)) for g in chosen]
    return [(fit, val) for fit, val in splits if len(val) and len(np.unique(target[fit])) > 1]


def _fitted(
    penalized: tuple[Any, dict[str, Any]],
    rows: NDArray[np.float64],
    target: NDArray[Any],
    known: NDArray[np.bool_],
    training: Training,
    scoring: str,
) -> Any:
    """A model fitted on the known rows with the best penalty of its grid.

    Without a usable split it has scikit-learn's default penalty.
    """
    from sklearn.model_selection import GridSearchCV

    model, grid = penalized
    x, y, group = rows[known], target[known], training.group[known]
    if splits := inner_splits(y, group, training.validation):
        # Not its own refit: that would also fit on validation utterances, which train no other model.
        search = GridSearchCV(model, grid, cv=splits, scoring=scoring, refit=False).fit(x, y)
        model.set_params(**search.best_params_)
    final = np.ones(len(y), bool) if training.validation is None else group != training.validation
    return model.fit(x[final], y[final])


def _logistic(balanced: bool = False) -> tuple[Any, dict[str, Any]]:
    """A standardized logistic regression, and the penalties to choose from."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    weights = "balanced" if balanced else None
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5_000, class_weight=weights))
    return model, {"logisticregression__C": INVERSE_PENALTIES}


def _ridge() -> tuple[Any, dict[str, Any]]:
    """A standardized ridge regression, and the penalties to choose from."""
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": PENALTIES}
