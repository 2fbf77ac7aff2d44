"""What a comparison found on one dataset: means, intervals, differences, deviation over seeds, cost.

With folds, a model's interval is Student's t over the folds' means over seeds, and the interval of a
difference is that of the corrected test (`statistics`). Without folds both are bootstraps over the test
utterances, of the mean over seeds, and all models are evaluated on the same draws. Where predictions are
lacking, they are intervals over seeds alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awtpn.experiments.comparison.runs import Found
from awtpn.experiments.comparison.statistics import (
    class_replicates,
    corrected_interval,
    mean_interval,
    middle,
    seed_deviation,
)
from awtpn.experiments.scores import (
    Score,
    fold_means,
    improvement,
    mean_of,
    metrics_of_all,
    task_of_scores,
    undefined_counts,
    values_by_fold,
    values_of,
)
from awtpn.metrics.classification import SUMMARY
from awtpn.metrics.confidence_intervals import t_interval
from awtpn.metrics.summary import check_best_by, higher_is_better, mean_of_all
from awtpn.report.answers import replicates

FOLDS, UTTERANCES, SEEDS = "folds", "utterances", "seeds"
SECOND = {
    "classification": "w-ACC",
    "regression": "CCC",
    "multilabel": "WA",
}  # the other metric of the tables


@dataclass(frozen=True)
class Results:
    """All runs of one model on one dataset."""

    found: Sequence[Found]

    @cached_property
    def scores(self) -> list[Score]:
        return [one.score for one in self.found]

    @property
    def has_folds(self) -> bool:
        return self.scores[0].fold is not None

    @property
    def keys(self) -> list[str] | None:
        """The test utterances, if all runs have predictions of the same; None otherwise."""
        answers = [one.answers for one in self.found]
        first = answers[0]
        if first is None or not first.keys or any(a is None or a.keys != first.keys for a in answers):
            return None
        return first.keys

    @cached_property
    def drawn(self) -> tuple[Sequence[str], NDArray[np.float64]] | None:
        """Names of metrics, and bootstrap replicates [R, metrics] of their means over runs."""
        if self.has_folds or self.keys is None:
            return None
        answers = [one.answers for one in self.found if one.answers is not None]
        figures = self.found[0].figures
        if self.scores[0].task != "classification":
            return replicates(answers, figures, seed=0)
        label, *predicted = (
            x[:, 0].astype(np.int64) for x in (answers[0].truth, *(a.given for a in answers))
        )
        return SUMMARY, class_replicates(label, predicted, len(figures["labels"]))

    def replicates_of(self, metric: str) -> NDArray[np.float64] | None:
        """The replicates [R] of a metric; None if there are none, or if it is undefined in a run."""
        if self.drawn is None or mean_of(self.scores, metric) is None:
            return None
        names, values = self.drawn
        return values[:, list(names).index(metric)] if metric in names else None


def summarize_dataset(
    models: Mapping[str, Sequence[Found]], by: str | None, best_by: str | None = None
) -> dict[str, Any]:
    """Everything the tables show of a dataset, as plain JSON.

    Args:
        models: what the runs of each model have found.
        by: metadata column of the folds.
        best_by: `train.best_by`.

    Raises:
        ValueError: the runs are of different tasks.
    """
    results = {name: Results(found) for name, found in models.items()}
    task = task_of_scores(score for of in results.values() for score in of.scores)
    metric = check_best_by(best_by, task)
    shown = list(dict.fromkeys([metric, SECOND[task]]))
    first = next(iter(results.values()))
    return {
        "by": by,
        "task": task,
        "metric": metric,
        "second": shown[-1],
        "folds": len({score.fold for score in first.scores}) if first.has_folds else 0,
        "utterances": count_utterances(first),
        "models": {name: summarize_model(of, metric, shown) for name, of in results.items()},
        "differences": {
            name: {
                other: {key: compare(of, beside, key) for key in shown}
                for other, beside in results.items()
                if other != name
            }
            for name, of in results.items()
        },
    }


def count_utterances(results: Results) -> int:
    """Number of different test utterances."""
    by_fold = {one.score.fold: int(one.figures.get("utterances", 0)) for one in results.found}
    return sum(by_fold.values())


# --- One model -----------------------------------------------------------------------------------


def summarize_model(results: Results, metric: str, shown: Sequence[str]) -> dict[str, Any]:
    """Of one model: metrics of every run, their means and intervals, deviation over seeds, cost, AUROC."""
    scores = results.scores
    names = metrics_of_all(scores)
    undefined = undefined_counts(scores, names)
    over, _ = interval_of(results, metric)
    modalities = [m for m in results.found[0].auroc if all(m in one.auroc for one in results.found)]
    return {
        "runs": [
            {
                "fold": one.score.fold,
                "seed": one.score.seed,
                "figures": one.score.metrics,
                "seconds": one.seconds,
                "weights": one.weights,
                **({"auroc": dict(one.auroc)} if one.auroc else {}),
            }
            for one in results.found
        ],
        "mean": {name: mean_of(scores, name) for name in names},
        "interval": {name: interval_of(results, name)[1] for name in shown},
        "interval_over": over,
        "deviation_over_seeds": seed_deviation(values_by_fold(scores, metric)),
        "seconds": mean_of_all(one.seconds for one in results.found),
        "weights": most_weights(results.found),
        "auroc": {m: auroc_of(results, m) for m in modalities},
        **({"undefined": undefined} if undefined else {}),
    }


def interval_of(results: Results, metric: str) -> tuple[str, list[float] | None]:
    """What an interval of a model's mean is over, and the interval; None if it cannot be known."""
    if results.has_folds:
        return FOLDS, t_interval(fold_means(results.scores, metric))
    if (drawn := results.replicates_of(metric)) is not None:
        return UTTERANCES, middle(drawn)
    return SEEDS, t_interval(values_of(results.scores, metric))


def most_weights(found: Sequence[Found]) -> int | None:
    """Number of weights; of folds that differ in it, the most."""
    return max((one.weights for one in found if one.weights is not None), default=None)


def auroc_of(results: Results, modality: str) -> dict[str, Any]:
    """AUROC of a modality's step weights: the mean, and its t-interval over folds or else over seeds."""
    scores = [Score(one.score.fold, one.score.seed, {modality: one.auroc[modality]}) for one in results.found]
    values = fold_means(scores, modality) if results.has_folds else values_of(scores, modality)
    return {"mean": float(np.mean(values)), "interval": t_interval(values)}


# --- Two models ----------------------------------------------------------------------------------


def compare(one: Results, other: Results, metric: str) -> dict[str, Any]:
    """How much better a model is than another one by a metric, with a 95 % interval; above 0: better.

    None where a metric is undefined in a run, or an interval cannot be known.
    """
    difference = improvement(metric, mean_of(one.scores, metric), mean_of(other.scores, metric))
    over, interval = FOLDS if one.has_folds else SEEDS, None
    if difference is not None and one.has_folds:
        interval = corrected_interval(paired(one, other, metric, lambda score: score.fold))
    elif difference is not None:
        drawn, beside = one.replicates_of(metric), other.replicates_of(metric)
        if drawn is not None and beside is not None and one.keys == other.keys:
            sign = 1 if higher_is_better(metric) else -1
            over, interval = UTTERANCES, middle(sign * (drawn - beside))
        else:
            interval = t_interval(paired(one, other, metric, lambda score: score.seed))
    return {"difference": difference, "interval": interval, "over": over}


def paired(one: Results, other: Results, metric: str, place: Callable[[Score], Any]) -> list[float]:
    """Differences of the means at each place (fold or seed) that both have; the baseline has no seeds."""
    means = [
        {
            key: float(np.mean(values_of([s for s in results.scores if place(s) == key], metric)))
            for key in dict.fromkeys(place(score) for score in results.scores)
        }
        for results in (one, other)
    ]
    ours, theirs = means
    beside = {key: theirs.get(key, theirs.get(None)) for key in ours}
    found = [improvement(metric, ours[key], beside[key]) for key in ours]
    return [value for value in found if value is not None]


def over_datasets(datasets: Mapping[str, Mapping[str, Any]], headline: str) -> dict[str, Any] | None:
    """The mean over datasets of the metric of each model, and of the headline's differences.

    None if there is a single dataset, or if datasets have different metrics, which have no common mean.

    Args:
        datasets: of `summarize_dataset`.
        headline: the model that the others are compared with.
    """
    metrics = {found["metric"] for found in datasets.values()}
    if len(metrics) != 1 or len(datasets) < 2:
        return None
    [metric] = metrics
    models = next(iter(datasets.values()))["models"]
    second = next(iter(datasets.values()))["second"]
    rows: dict[str, Any] = {"metric": metric, "mean": {}, "difference": {}}
    for name in models:
        rows["mean"][name] = {
            key: mean_of_all(found["models"][name]["mean"].get(key) for found in datasets.values())
            for key in dict.fromkeys([metric, second])
        }
        if name != headline:
            found = [of["differences"][headline][name][metric] for of in datasets.values()]
            given = [of["difference"] for of in found]
            known = [value for value in given if value is not None]
            within = [of["interval"] for of in found if of["interval"] is not None]
            complete = len(known) == len(given)
            rows["difference"][name] = {
                "difference": mean_of_all(given),
                "interval": t_interval(known) if complete else None,
                "interval_of_these": mean_interval(known, within) if len(within) == len(given) else None,
            }
    return rows
