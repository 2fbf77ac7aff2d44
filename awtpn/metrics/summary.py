"""The metrics of each task: their names, how they are shown, which direction is better, and the default.

`results.json` and the logs use the names. A figure is a number, or None where it is not defined: the
correlation of constant predictions, the recall of a label that nobody has. None is worse than every number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: its key in `results.json`, and what `train.best_by` takes.
        shown: its name in tables and reports.
        higher_is_better: False for errors.
        percent: shown in per cent with two decimals, else as it is with four.
    """

    name: str
    shown: str
    higher_is_better: bool = True
    percent: bool = True


def _named(name: str, shown: str = "", higher_is_better: bool = True, percent: bool = True) -> Metric:
    return Metric(name, shown or name, higher_is_better, percent)


METRICS = {
    metric.name: metric
    for metric in [
        # Classification. Elsewhere "weighted accuracy" also means balanced accuracy, or MOSEI's WA.
        _named("w-ACC", "accuracy (w-ACC)"),
        _named("w-F1"),
        _named("UA"),
        _named("macro-F1"),
        # Regression.
        _named("MAE", higher_is_better=False, percent=False),
        _named("Corr", percent=False),
        _named("CCC", percent=False),
        _named("Acc-2"),
        _named("F1-2"),
        _named("Acc-2-has0"),
        _named("F1-2-has0"),
        _named("Acc-3"),
        _named("Acc-5"),
        _named("Acc-7"),
        _named("interval", "90 % interval, +-", higher_is_better=False, percent=False),
        # Several labels.
        _named("WA"),
        _named("F1"),
        _named("mAP"),
        _named("subset accuracy"),
        # Of a validation: the mean negative log-probability of the classes or labels.
        _named("cross-entropy", higher_is_better=False, percent=False),
        # Of one class or label.
        _named("AP"),
        _named("accuracy"),
        _named("precision"),
        _named("recall"),
    ]
}

# Metrics of a whole split that every result of the task has, by task type, in the order of the tables.
HEADLINES = {
    "classification": ("w-ACC", "w-F1", "UA", "macro-F1"),
    "regression": ("MAE", "Corr", "CCC"),
    "multilabel": ("WA", "F1", "w-F1", "UA", "mAP", "subset accuracy"),
}
# What the best checkpoint is chosen by where `train.best_by` is not set.
DEFAULT_BEST = {"classification": "w-F1", "regression": "MAE", "multilabel": "F1"}
# Which of two models with the same best metric is better.
TIE_BREAKS = {"classification": "cross-entropy", "regression": "MAE", "multilabel": "cross-entropy"}

# Further metrics of a regression with one dimension, if it has the range of a corpus of sentiment.
# `awtpn.metrics.sentiment` defines them.
SENTIMENT = {
    (-3.0, 3.0): ("Acc-2", "F1-2", "Acc-2-has0", "F1-2-has0", "Acc-3", "Acc-5", "Acc-7"),
    (-1.0, 1.0): ("Acc-2", "F1-2", "Acc-3", "Acc-5"),
}


def task_type_of(figures: Mapping[str, Any]) -> str:
    """The task whose figures these are; results written before there were other tasks don't say it."""
    return str(figures.get("task", "classification"))


def sentiment_metrics(bounds: Sequence[float] | None) -> tuple[str, ...]:
    """The sentiment metrics of a dimension of this range: those of CMU-MOSI, of CH-SIMS, or none."""
    return () if bounds is None else SENTIMENT.get((float(bounds[0]), float(bounds[1])), ())


def headlines_of(figures: Mapping[str, Any]) -> tuple[str, ...]:
    """The metrics of a whole split that these figures have, in the order of the tables.

    They are `HEADLINES` of the task, and for a sentiment of one dimension its further metrics.
    """
    headlines = HEADLINES[task_type_of(figures)]
    further = SENTIMENT[-3.0, 3.0] if task_type_of(figures) == "regression" else ()
    return (*headlines, *(name for name in further if name in figures))


def best_by_names(task_type: str, ranges: Sequence[Sequence[float] | None] | None = None) -> tuple[str, ...]:
    """The metrics that `train.best_by` may name: those that every validation of the task will have.

    Args:
        task_type: "classification", "regression" or "multilabel".
        ranges: of the dimensions of a regression. None where they are not known yet: then the metrics of a
            sentiment are among the names.
    """
    names = HEADLINES[task_type]
    if task_type != "regression":
        return names
    if ranges is None:
        return (*names, *SENTIMENT[-3.0, 3.0])
    return (*names, *(sentiment_metrics(ranges[0]) if len(ranges) == 1 else ()))


def check_best_by(
    name: str | None, task_type: str, ranges: Sequence[Sequence[float] | None] | None = None
) -> str:
    """The metric that the best checkpoint is chosen by: `name`, or the task's default if it is None.

    Args:
        name: `train.best_by`.
        task_type: "classification", "regression" or "multilabel".
        ranges: see `best_by_names`.

    Raises:
        ValueError: the task has no such metric; lists those that it has.
    """
    if name is None:
        return DEFAULT_BEST[task_type]
    names = best_by_names(task_type, ranges)
    if name not in names:
        default = DEFAULT_BEST[task_type]
        of = " of these values" if ranges is not None and task_type == "regression" else ""
        raise ValueError(
            f"train.best_by is {name!r:.40}, which a {task_type}{of} does not have; "
            f"choose one of {', '.join(names)}, or leave it out for {default}"
        )
    return name


def higher_is_better(name: str) -> bool:
    """Whether more of a metric is better; True of a metric that is not in METRICS."""
    return name not in METRICS or METRICS[name].higher_is_better


def better(name: str, value: float | None, other: float | None) -> bool:
    """Whether `value` of a metric is better than `other`. None is worse than every number."""
    if value is None or other is None:
        return value is not None
    return value > other if higher_is_better(name) else value < other


def shown(name: str) -> str:
    """The name of a metric in tables and reports."""
    return METRICS[name].shown if name in METRICS else name


def format_metric(name: str, value: float | None) -> str:
    """A figure for a table: "77.21" (per cent), "0.8312", or "undefined" for None."""
    if value is None:
        return "undefined"
    return _scaled(name, value)


def format_range(name: str, interval: Sequence[float], sign: str = "") -> str:
    """An interval for a table: "60.12 to 65.40"; `sign` "+" writes the sign of both ends."""
    low, high = (_scaled(name, end, sign) for end in interval)
    return f"{low} to {high}"


def format_change(name: str, value: float | None) -> str:
    """A difference of a metric for a table: "+1.25" (per cent) or "-0.0312"; "undefined" for None."""
    return "undefined" if value is None else _scaled(name, value, "+")


def _scaled(name: str, value: float, sign: str = "") -> str:
    percent = name in METRICS and METRICS[name].percent
    return f"{100 * value:{sign}.2f}" if percent else f"{value:{sign}.4f}"


def mean_of_all(values: Iterable[float | None]) -> float | None:
    """The mean; None if there are no values, or one of them is None."""
    found = list(values)
    defined = [value for value in found if value is not None]
    return float(np.mean(defined)) if defined and len(defined) == len(found) else None
