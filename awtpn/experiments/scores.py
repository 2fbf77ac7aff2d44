"""The metrics of many runs: those that all runs have, their means, and how they are written in tables.

Which metrics there are depends on the task; `awtpn.metrics.summary` names them. A metric may be undefined
(None) in a run, such as the correlation of constant predictions. Then the mean over the runs is undefined,
too: without this run it would be better than the runs are. `undefined_note` says in how many runs it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from awtpn.metrics.summary import (
    DEFAULT_BEST,
    headlines_of,
    higher_is_better,
    mean_of_all,
    shown,
    task_type_of,
)
from shards.safe_io.printable import plural

# Columns of the printed tables, those that a run has of them.
TABLE = {
    "classification": ("w-F1", "w-ACC"),
    "regression": ("MAE", "Corr", "CCC", "Acc-2"),
    "multilabel": ("F1", "WA", "mAP"),
}


@dataclass(frozen=True)
class Score:
    """Test metrics of one run: those of all its utterances, None where undefined.

    `fold` is None if the data's own test split is used; `seed` is None for the baseline.
    """

    fold: Any
    seed: int | None
    metrics: dict[str, float | None]
    task: str = "classification"


def score_of(fold: Any, seed: int | None, figures: Mapping[str, Any]) -> Score:
    """The score in the figures of a split, as `results.json` has them."""
    return Score(fold, seed, {name: figures[name] for name in headlines_of(figures)}, task_type_of(figures))


def task_of_scores(scores: Iterable[Score]) -> str:
    """The task of the runs.

    Raises:
        ValueError: they are of different tasks.
    """
    tasks = sorted({score.task for score in scores})
    if len(tasks) != 1:
        raise ValueError(
            f"the runs are of different tasks, {' and '.join(tasks)}, whose metrics cannot be compared: give "
            "another --dir, or the same task.type and data.target to all"
        )
    return tasks[0]


def metrics_of_all(scores: Sequence[Score]) -> list[str]:
    """The metrics that every run has, in the order of the tables.

    Runs of one regression may differ: a dimension whose range is only known from its training utterances
    can have the range of a corpus of sentiment in one fold, and another range in the next.
    """
    return [name for name in scores[0].metrics if all(name in score.metrics for score in scores)]


def task_record(task: str, metric: str) -> dict[str, Any]:
    """The task and the metric for a file of results; nothing for what they were before there were others."""
    if (task, metric) == ("classification", DEFAULT_BEST["classification"]):
        return {}
    return {"task": task, "metric": metric}


def table_metrics(task: str, metric: str, names: Iterable[str]) -> list[str]:
    """The columns of a printed table: those of TABLE among `names`, and the deciding metric."""
    columns = [name for name in TABLE[task] if name in names]
    return columns if metric in columns else [metric, *columns]


# --- Means ---------------------------------------------------------------------------------------


def values_of(scores: Iterable[Score], name: str) -> list[float]:
    """A metric of every run; none at all if it is undefined in one."""
    values = [score.metrics.get(name) for score in scores]
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else []


def mean_of(scores: Iterable[Score], name: str) -> float | None:
    """The mean of a metric over all runs; None if it is undefined in one."""
    return mean_of_all(score.metrics.get(name) for score in scores)


def values_by_fold(scores: Sequence[Score], metric: str) -> dict[Any, list[float]]:
    """A metric of every seed, by fold in the order of first runs; empty if it is undefined in a run."""
    if not values_of(scores, metric):
        return {}
    folds = dict.fromkeys(score.fold for score in scores)
    return {fold: values_of([s for s in scores if s.fold == fold], metric) for fold in folds}


def fold_means(scores: Sequence[Score], metric: str) -> list[float]:
    """Mean over seeds of each fold, as `values_by_fold`; none if it is undefined in a run."""
    return [float(np.mean(values)) for values in values_by_fold(scores, metric).values()]


def undefined_counts(scores: Sequence[Score], names: Iterable[str]) -> dict[str, int]:
    """In how many runs each metric is undefined; only those metrics that are in any."""
    counts = {name: sum(score.metrics.get(name) is None for score in scores) for name in names}
    return {name: count for name, count in counts.items() if count}


def undefined_note(counts: Mapping[str, int], runs: int) -> str | None:
    """A line on the metrics that are undefined in some of the `runs`; None if none is."""
    if not counts:
        return None
    told = ", ".join(f"{shown(name)} in {count} of {plural(runs, 'run')}" for name, count in counts.items())
    return f"undefined, and so is the mean: {told}"


# --- Comparisons ---------------------------------------------------------------------------------


def improvement(name: str, value: float | None, base: float | None) -> float | None:
    """How much better `value` of a metric is than `base`: below 0 if it is worse, whatever the direction.

    None if one of them is undefined.
    """
    if value is None or base is None:
        return None
    return value - base if higher_is_better(name) else base - value
