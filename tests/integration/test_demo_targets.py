"""The demos with values and with several labels, shortened: each learns what a linear model cannot.

The linear models get every advantage: their penalty is the one that is best on the test utterances.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support import arguments, run

from awtpn.config.settings import DEMOS
from awtpn.metrics.multilabel import summarize_labels
from awtpn.model.network import AWTPN
from shards import FeatureStream, ensure_demo

PENALTIES = 10.0 ** np.arange(0, 5)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def train(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    def train(name: str, epochs: int) -> dict[str, Any]:
        """The test figures of a shortened run; "log" is what it printed, "run" its folder."""
        folder = tmp_path_factory.mktemp(name)
        given = {"data.cache_dir": cache, "run.dir": folder / "run", "train.epochs": epochs}
        words = ["--config", name, *arguments(given | {"train.pictures": "never"})]
        code, log = run([sys.executable, "launch/train.py", *words], folder / "log")
        assert code == 0, log
        results = json.loads((folder / "run" / "results.json").read_text())
        return {**results["test"], "log": log, "run": folder / "run"}

    return train


def pooled(cache: Path, name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation over time of each utterance's features [U, 2 D], and its target [U, K]."""

    def rows() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        url = ensure_demo(cache, DEMOS[name])
        for batch in FeatureStream(url, split=split, global_batch_size=50, shuffle=False).epoch(0):
            for i, target in enumerate(batch.target.numpy()):
                steps = [
                    ragged.values[ragged.offsets[i] : ragged.offsets[i + 1]].float().numpy()
                    for ragged in batch.features.values()
                ]
                yield np.concatenate([f(part, axis=0) for part in steps for f in (np.mean, np.std)]), target

    features, targets = zip(*rows(), strict=True)
    return np.stack(features), np.stack(targets)


def test_values_are_learned_where_ridge_regression_fails(train: Any, cache: Path) -> None:
    test = train("demo-values", epochs=4)
    inputs, truth = pooled(cache, "demo-values", "train")
    of_test, expected = pooled(cache, "demo-values", "test")
    errors, of_mean = [], []
    for k in range(2):
        known, asked = ~np.isnan(truth[:, k]), ~np.isnan(expected[:, k])
        models = [make_pipeline(StandardScaler(), Ridge(penalty)) for penalty in PENALTIES]
        answers = [model.fit(inputs[known], truth[known, k]).predict(of_test[asked]) for model in models]
        errors.append(min(np.abs(answer - expected[asked, k]).mean() for answer in answers))
        of_mean.append(np.abs(truth[known, k].mean() - expected[asked, k]).mean())
    assert test["MAE"] < 0.5 * np.mean(errors), "ridge regression"
    assert np.mean(errors) < np.mean(of_mean), "the baseline learns something, too"
    assert test["CCC"] > 0.85
    counts = [figures["utterances"] for figures in test["per_dimension"].values()]
    assert counts == [400, int((~np.isnan(expected[:, 1])).sum())]
    assert counts[1] < 400, "a missing value leaves the denominator"
    assert_weights_find_the_informative_steps(test)
    assert AWTPN.from_pretrained(test["run"]).task.names == ["valence", "arousal"]


def test_labels_are_learned_where_logistic_regression_fails(train: Any, cache: Path) -> None:
    test = train("demo-labels", epochs=5)
    inputs, truth = pooled(cache, "demo-labels", "train")
    of_test, expected = pooled(cache, "demo-labels", "test")
    names = list(test["per_label"])
    baselines = []
    for weight in (None, "balanced"):
        for penalty in PENALTIES:
            kind = {"C": 1 / penalty, "class_weight": weight, "max_iter": 1000}
            models = [make_pipeline(StandardScaler(), LogisticRegression(**kind)) for _ in names]
            answers = [
                model.fit(inputs, truth[:, k] > 0).predict_proba(of_test)[:, 1]
                for k, model in enumerate(models)
            ]
            baselines.append(summarize_labels(expected, np.stack(answers, 1), names))
    for metric in ("F1", "WA", "mAP", "subset accuracy"):
        best = max(figures[metric] for figures in baselines)
        assert test[metric] > best + 0.2, f"{metric} of logistic regression: {best}"
    assert test["F1"] > 0.8
    assert_weights_find_the_informative_steps(test)
    assert AWTPN.from_pretrained(test["run"]).task.names == names


def assert_weights_find_the_informative_steps(test: dict[str, Any]) -> None:
    for modality in ("audio", "video"):
        assert test["reliability_auroc"][modality] > 0.9
    assert "audio steps: AUROC" in test["log"]
