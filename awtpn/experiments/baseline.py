"""The baseline: logistic regression on features pooled over time, on the same folds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awtpn.config.settings import DataConfig
from awtpn.experiments.folds import Fold, Score
from awtpn.metrics.classification import SUMMARY, summarize
from awtpn.run.data import stream_source
from shards import FeatureStream
from shards.progress import progress_bar

INVERSE_PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # C of the logistic regression
BATCH = 256  # utterances read at a time


def check_installed() -> None:
    """Raise ValueError if scikit-learn is not installed."""
    if find_spec("sklearn") is None:
        raise ValueError(
            "the baseline needs scikit-learn: pip install 'awtpn-at-scale[baseline]', or leave it out with "
            "--no-baseline"
        )


def logistic_regressions(
    data: DataConfig, modalities: Iterable[str], by: str, folds: Sequence[Fold]
) -> list[Score]:
    """Scikit-learn's logistic regression on mean and std pooled, standardized features, on the same folds.

    It takes the features of all `modalities`, those of the runs that it is compared with.

    Its regularization is chosen on the training folds alone, by leaving each of them out in turn.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    used = list(modalities)
    pooled = {fold.test: pooled_features(data, used, {by: fold.test}) for fold in folds}
    scores = []
    with progress_bar("logistic regression", "fold", len(folds)) as bar:
        for fold in folds:
            model: Any = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5_000))
            x, y = (np.concatenate([pooled[value][i] for value in fold.train]) for i in (0, 1))
            if splits := inner_splits(y, [len(pooled[value][1]) for value in fold.train]):
                grid = {"logisticregression__C": INVERSE_PENALTIES}
                model = GridSearchCV(model, grid, cv=splits, scoring="f1_weighted")
            model.fit(x, y)
            test_x, test_y, classes = pooled[fold.test]
            confusion = np.zeros((len(classes), len(classes)), np.int64)
            np.add.at(confusion, (test_y, model.predict(test_x)), 1)
            metrics = summarize(confusion, classes)
            scores.append(Score(fold.test, None, {name: metrics[name] for name in SUMMARY}))
            bar.update()
    return scores


def inner_splits(
    label: NDArray[np.int64], sizes: Sequence[int]
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows to fit on and rows to validate on, leaving out each group in turn; `sizes` are the groups' sizes.

    A split is omitted if the rows to fit on have a single class.
    """
    group = np.repeat(np.arange(len(sizes)), sizes)
    splits = [(np.flatnonzero(group != g), np.flatnonzero(group == g)) for g in range(len(sizes))]
    return [(fit, validate) for fit, validate in splits if len(np.unique(label[fit])) > 1]


def pooled_features(
    data: DataConfig, modalities: list[str], select: dict[str, Any]
) -> tuple[NDArray[np.float64], NDArray[np.int64], list[str]]:
    """Pooled features [U, 2 * sum of dims], labels [U] and class names of the selected utterances.

    Per modality the mean and the standard deviation over an utterance's time steps; zeros if it is missing.
    """
    source = stream_source(data, "train")
    assert source is not None
    source |= {"select": select, "modalities": modalities}
    stream = FeatureStream(**source, global_batch_size=BATCH, shuffle=False)
    rows, labels = [], []
    for batch in stream.epoch(0):
        pooled = [
            [
                pool(steps.double().numpy())
                for steps in ragged.values.split(ragged.host_offsets.diff().tolist())
            ]
            for ragged in batch.features.values()
        ]
        rows += [np.concatenate(parts) for parts in zip(*pooled, strict=True)]
        labels.append(batch.label.numpy())
    return np.stack(rows), np.concatenate(labels), stream.classes


def pool(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean and standard deviation over time steps: [T, D] -> [2 * D]; zeros for T = 0."""
    if not len(steps):
        return np.zeros(2 * steps.shape[1])
    return np.concatenate([steps.mean(0), steps.std(0)])
