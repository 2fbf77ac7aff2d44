"""Figures against scikit-learn's, and the learning rate."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score, roc_auc_score

from awtpn.learning.optimizer import learning_rate
from awtpn.learning.settings import OptimConfig
from awtpn.metrics.classification import auroc, count_confusion, paper_metrics, summarize
from awtpn.metrics.tables import format_table

NAMES = ["a", "b", "c", "d"]


def figures(label: np.ndarray, predicted: np.ndarray) -> dict[str, object]:
    confusion = count_confusion(torch.from_numpy(label), torch.from_numpy(predicted), len(NAMES)).numpy()
    assert (confusion == confusion_matrix(label, predicted, labels=range(len(NAMES)))).all()
    return summarize(confusion, NAMES)


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Class 3 is never predicted; with odd seeds class 2 never occurs either.
    label = rng.choice(4, 200, p=[0.5, 0.3, 0.0, 0.2] if seed % 2 else [0.4, 0.3, 0.1, 0.2])
    predicted = np.where(rng.random(200) < 0.5, np.minimum(label, 2), rng.integers(0, 3, 200))
    occurring = np.unique(label).tolist()
    ours = figures(label, predicted)
    assert ours["w-ACC"] == pytest.approx(accuracy_score(label, predicted))
    assert ours["w-F1"] == pytest.approx(f1_score(label, predicted, average="weighted", zero_division=0))
    recalls = recall_score(label, predicted, labels=occurring, average=None, zero_division=0)
    assert ours["UA"] == pytest.approx(recalls.mean())
    of_classes = f1_score(label, predicted, labels=occurring, average="macro", zero_division=0)
    assert ours["macro-F1"] == pytest.approx(of_classes)
    assert ours["utterances"] == 200
    assert ours["per_class"]["d"]["precision"] == ours["per_class"]["d"]["f1"] == 0  # type: ignore[index]


def test_nothing_to_judge_is_zero_and_still_json() -> None:
    empty = summarize(np.zeros((4, 4), np.int64), NAMES)
    assert [empty[k] for k in ("w-ACC", "w-F1", "UA", "macro-F1", "utterances")] == [0, 0, 0, 0, 0]
    json.dumps(empty, allow_nan=False)


def test_the_confusion_matrix_has_true_classes_as_rows() -> None:
    ours = figures(np.array([0, 0, 3]), np.array([1, 1, 3]))
    assert ours["confusion_matrix"] == [[0, 2, 0, 0], [0] * 4, [0] * 4, [0, 0, 0, 1]]


def test_the_table_shows_the_paper_beside_ours_where_it_has_figures() -> None:
    ours = figures(np.array([0, 1, 2, 3]), np.array([0, 1, 2, 2]))
    with_paper = format_table(ours, "iemocap4")
    assert "77.21" in with_paper
    assert "75.00" in with_paper
    assert "paper" not in format_table(ours, "demo")
    assert paper_metrics("MELD-packed") == {"w-ACC": 0.7318, "w-F1": 0.7042}
    for name in NAMES:
        assert f"\n{name} " in with_paper


def test_auroc_is_that_of_scikit_learn_also_with_ties() -> None:
    rng = np.random.default_rng(0)
    for decimals in (8, 1, 0):
        score, truth = rng.random(500).round(decimals), rng.random(500) < 0.3
        assert auroc(score, truth) == pytest.approx(roc_auc_score(truth, score))
    assert auroc(np.ones(10), np.arange(10) < 3) == 0.5
    assert np.isnan(auroc(np.ones(3), np.ones(3, bool)))


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    config = OptimConfig(lr=0.1, schedule="cosine", warmup_steps=4)
    rates = [learning_rate(config, step, 24) for step in range(25)]
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert all(x > y for x, y in pairwise(rates[4:]))
    assert rates[14] == pytest.approx(0.05), "half-way down half-way through"
    assert rates[24] == pytest.approx(0)
    flat = OptimConfig(lr=0.1, schedule="constant", warmup_steps=0)
    assert {learning_rate(flat, step, 24) for step in range(25)} == {0.1}
    # More warm-up than steps: still rising at the end, and no division by zero.
    assert learning_rate(OptimConfig(lr=1.0, warmup_steps=99), 4, 5) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("key", "value"), [("lr", 0.0), ("weight_decay", -1.0), ("grad_clip", -1.0), ("warmup_steps", -1)]
)
def test_impossible_settings_are_refused_by_name(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"optim.{key}"):
        OptimConfig(**{key: value}).validate()  # type: ignore[arg-type]


def test_figures_of_one_class_say_what_they_do_not_tell() -> None:
    one = format_table(summarize(np.array([[5]]), ["sad"]))
    assert "note: the model knows one class only" in one
    confusion = np.zeros((4, 4), np.int64)
    confusion[1, :2] = 2, 7
    assert "note: all utterances have the class 'b'" in format_table(summarize(confusion, NAMES))
    assert "note" not in format_table(summarize(np.eye(4, dtype=np.int64), NAMES))
