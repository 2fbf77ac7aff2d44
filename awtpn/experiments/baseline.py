"""The baseline: linear models on features pooled over time, on the utterances of the runs beside it.

Its penalty is never chosen on test utterances: in a cross-validation by leaving out each training group in
turn; with the data's own splits by the split "val", as runs choose their best checkpoint, or without one by
leaving out fifths of the training utterances. `linear_models` says which model each task has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awtpn.config.schema import Config
from awtpn.experiments.folds import Fold, Splits
from awtpn.experiments.linear_models import Training, figures_of_answers, linear_answers, models_of
from awtpn.experiments.pooled import Pooled, concatenate, open_utterances, pool_utterances
from awtpn.experiments.scores import Score, score_of
from awtpn.model.task import Task
from awtpn.run.data import check_targets, known_values, task_of_data
from shards import FeatureStream
from shards.progress import progress_bar

# In the printed tables and `cross_validation.json`, by task type.
NAMES = {
    "classification": "logistic regression",
    "regression": "ridge regression",
    "multilabel": "logistic regression of each label",
}
SHORT_NAMES = {"classification": "LR", "regression": "ridge", "multilabel": "LR"}
RANDOM_GROUPS = 5
VALIDATION = 1  # the group of validation utterances; training utterances are group 0


@dataclass(frozen=True)
class Evaluated:
    """A baseline that was fitted and evaluated.

    Attributes:
        fold: the value of the column that was left out; None for the data's own splits.
        figures: of the test utterances, as `results.json` has them.
        task: what it learned.
        test: the test utterances.
        answers: of `linear_answers`.
        weights: number of its weights.
    """

    fold: Any
    figures: dict[str, Any]
    task: Task
    test: Pooled
    answers: NDArray[Any]
    weights: int


def check_installed(without: str = "--no-baseline") -> None:
    """Raise ValueError if scikit-learn is not installed; `without` is the option that does without it."""
    if find_spec("sklearn") is None:
        raise ValueError(
            "the baseline needs scikit-learn: pip install 'awtpn-at-scale[baseline]', or leave it out with "
            f"{without}"
        )


def baseline_of_runs(config: Config, splits: Splits) -> list[Score]:
    """The scores of `evaluate_baseline`; arguments and errors as there."""
    return scores_of(evaluate_baseline(config, splits))


def scores_of(found: Sequence[Evaluated]) -> list[Score]:
    """The scores of baselines that were evaluated."""
    return [score_of(one.fold, None, one.figures) for one in found]


def evaluate_baseline(config: Config, splits: Splits) -> list[Evaluated]:
    """The baseline of every fold, or of the data's own splits if there are no folds.

    Args:
        config: of the runs; the baseline takes their data, modalities and target.
        splits: the folds of `make_splits`.

    Raises:
        ValueError: the utterances have no such target, or there are none to test on.
    """
    if splits.by is None:
        return [evaluate_split(config)]
    config = replace(config, data=replace(config.data, train=splits.url or config.data.train))
    return evaluate_folds(config, splits.by, splits.folds)


def evaluate_folds(config: Config, by: str, folds: list[Fold]) -> list[Evaluated]:
    """The baseline of every fold of column `by` of the utterances of `data.train`."""
    streams = {fold.test: _opened(config, "train", {by: fold.test}) for fold in folds}
    everything = _opened(config, "train", {by: [fold.test for fold in folds]})
    task = task_of_data(config.task, everything, known_values(everything))
    pooled = dict(zip(streams, pool_utterances(streams.values()), strict=True))
    found = []
    with progress_bar(NAMES[task.type], "fold", len(folds)) as bar:
        for fold in folds:
            sizes = [len(pooled[value]) for value in fold.train]
            training = Training(
                concatenate([pooled[value] for value in fold.train]), np.repeat(np.arange(len(sizes)), sizes)
            )
            found.append(_evaluate(fold.test, task, training, pooled[fold.test], config))
            bar.update()
    return found


def baseline_of_split(config: Config, role: str = "test") -> dict[str, Any]:
    """The figures of `evaluate_split`, as `results.json` has them."""
    return evaluate_split(config, role).figures


def evaluate_split(config: Config, role: str = "test") -> Evaluated:
    """The baseline of the data's own splits: fit on "train", choose on "val" if there is one, evaluate.

    Args:
        config: of the runs; the baseline takes their data, modalities and target.
        role: the utterances to evaluate on, "test" or "val". With "val" these choose nothing.

    Raises:
        ValueError: the utterances have no such target, all training utterances have the same, or there are
            none to test on.
    """
    train = _opened(config, "train")
    values = known_values(train)
    check_targets(train, values)
    task = task_of_data(config.task, train, values)
    val, test = open_utterances(config, "val", task=task), open_utterances(config, role, task=task)
    if test is None:
        raise ValueError(
            f"{train.url} has no {role} utterances: set data.{role} or data.select.{role}, or cross-validate "
            "by a column with --by"
        )
    others = [test] if val is None or role == "val" else [test, val]
    for other in others:
        if other.classes != train.classes:
            raise ValueError(f"{other.url} has the classes {other.classes}, but {train.url} {train.classes}")
    to_fit, to_test, *to_choose = pool_utterances([train, *others])
    if to_choose:
        group = np.repeat([0, VALIDATION], [len(to_fit), len(to_choose[0])])
        training = Training(concatenate([to_fit, *to_choose]), group, VALIDATION)
    else:
        group = np.random.default_rng(0).permutation(np.arange(len(to_fit)) % RANDOM_GROUPS)
        training = Training(to_fit, group)
    with progress_bar(NAMES[task.type], "model", models_of(task)) as bar:
        return _evaluate(None, task, training, to_test, config, bar.update)


def _evaluate(
    fold: Any,
    task: Task,
    training: Training,
    test: Pooled,
    config: Config,
    on_fit: Callable[[], object] = lambda: None,
) -> Evaluated:
    balanced = config.loss.class_weights == "balanced"
    answers = linear_answers(task, training, test, balanced, on_fit)
    weights = len(task.names) * (test.rows.shape[1] + 1)  # a coefficient for each column, and an offset
    return Evaluated(fold, figures_of_answers(task, test, answers), task, test, answers, weights)


def _opened(config: Config, role: str, select: dict[str, Any] | None = None) -> FeatureStream:
    stream = open_utterances(config, role, select)
    assert stream is not None
    return stream
