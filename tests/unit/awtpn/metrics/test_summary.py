"""The names of the metrics: directions, defaults, and how figures are shown."""

from __future__ import annotations

import pytest

from awtpn.metrics.classification import SUMMARY
from awtpn.metrics.summary import (
    DEFAULT_BEST,
    HEADLINES,
    METRICS,
    best_by_names,
    better,
    check_best_by,
    format_metric,
    headlines_of,
    shown,
    task_type_of,
)


def test_every_metric_that_is_named_is_described() -> None:
    assert HEADLINES["classification"] == SUMMARY, "old results have these keys"
    for task_type, names in HEADLINES.items():
        assert set(best_by_names(task_type)) <= METRICS.keys()
        assert DEFAULT_BEST[task_type] in names
    assert all(name == metric.name for name, metric in METRICS.items())


def test_the_default_and_its_direction() -> None:
    assert [check_best_by(None, t) for t in ("classification", "regression", "multilabel")] == [
        "w-F1",
        "MAE",
        "F1",
    ]
    assert better("MAE", 0.5, 0.6)
    assert not better("MAE", 0.6, 0.5)
    assert better("Corr", 0.6, 0.5)
    assert not better("w-F1", 0.5, 0.5), "as good is not better"


def test_an_undefined_figure_is_worse_than_every_number() -> None:
    for name in ("MAE", "Corr"):
        assert better(name, -1.0, None)
        assert not better(name, None, -1.0)
        assert not better(name, None, None)


def test_a_metric_of_another_task_is_refused_with_the_names_of_this_one() -> None:
    assert check_best_by("CCC", "regression") == "CCC"
    with pytest.raises(ValueError, match=r"train.best_by is 'w-F1', which a regression .*MAE, Corr, CCC"):
        check_best_by("w-F1", "regression")
    with pytest.raises(ValueError, match="WA, F1, w-F1, UA, mAP, subset accuracy, or leave it out for F1"):
        check_best_by("macro-F1", "multilabel")


def test_metrics_of_sentiment_need_its_range() -> None:
    assert check_best_by("Acc-7", "regression") == "Acc-7", "the range is not known yet"
    assert check_best_by("Acc-7", "regression", [[-3, 3]]) == "Acc-7"
    assert check_best_by("Acc-5", "regression", [[-1, 1]]) == "Acc-5"
    for name, ranges in [
        ("Acc-7", [[-1, 1]]),
        ("Acc-2", [[1, 5]]),
        ("Acc-2", [[-3, 3]] * 2),
        ("Acc-2", [None]),
    ]:
        with pytest.raises(ValueError, match=f"{name!r}, which a regression of these values does"):
            check_best_by(name, "regression", ranges)


def test_figures_are_shown_in_per_cent_or_as_they_are() -> None:
    assert format_metric("w-F1", 0.7721) == "77.21"
    assert format_metric("Corr", 0.83124) == "0.8312"
    assert format_metric("cross-entropy", 0.5) == "0.5000"
    assert format_metric("CCC", None) == "undefined"
    assert shown("w-ACC") == "accuracy (w-ACC)"
    assert shown("cross-entropy") == "cross-entropy"


def test_figures_say_their_task_and_their_headlines() -> None:
    assert task_type_of({"w-F1": 1.0}) == "classification"
    assert headlines_of({"w-F1": 1.0}) == SUMMARY
    sentiment = {"task": "regression", "MAE": 1.0, "Corr": None, "CCC": 0.0, "Acc-7": 0.3, "Acc-2": 0.5}
    assert headlines_of(sentiment) == ("MAE", "Corr", "CCC", "Acc-2", "Acc-7")
