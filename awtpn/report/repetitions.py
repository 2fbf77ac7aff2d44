"""Repetitions of one experiment, and their averages: one run, several seeds, or folds times seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from shlex import quote
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awtpn.learning.settings import TERMS, terms_of
from awtpn.metrics.bootstrap_values import percentiles
from awtpn.metrics.classification import SUMMARY, paper_metrics, summarize
from awtpn.metrics.confidence_intervals import Interval, bootstrap_replicates, cells_of, t_interval
from awtpn.metrics.summary import DEFAULT_BEST, headlines_of, mean_of_all
from awtpn.report.answers import Answers, replicates, together
from awtpn.report.run_record import RunRecord
from shards.storage.credentials import redact


@dataclass(frozen=True)
class Report:
    """Repetitions of one experiment, and their averages."""

    runs: list[RunRecord]
    summary: dict[str, Any]  # of cross_validation.json; empty where there is none

    @property
    def role(self) -> str:
        return self.runs[0].role

    @property
    def task_type(self) -> str:
        return self.runs[0].task_type

    @property
    def names(self) -> list[str]:
        """The names of the classes, dimensions or labels."""
        return self.runs[0].names

    @property
    def headlines(self) -> tuple[str, ...]:
        """The metrics of the whole split."""
        return headlines_of(self.runs[0].metrics)

    @property
    def main(self) -> str:
        """The metric that chose the best checkpoints; the task's default if the reported split lacks it."""
        chosen = self.runs[0].config.get("train", {}).get("best_by")
        return chosen if chosen in self.headlines else DEFAULT_BEST[self.task_type]

    @property
    def network(self) -> str:
        """The `model.name` of the runs."""
        return str(self.runs[0].config.get("model", {}).get("name", "awtpn"))

    @property
    def dataset(self) -> str:
        return str(self.runs[0].model.get("dataset", "unnamed data"))

    @cached_property
    def folds(self) -> dict[str, list[RunRecord]]:
        """Runs by the utterances they held out; one entry if all have the same test utterances."""
        folds: dict[str, list[RunRecord]] = {}
        for run in self.runs:
            folds.setdefault(run.fold, []).append(run)
        return folds

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs})

    @property
    def what(self) -> str:
        """The number of runs, folds and seeds, in words."""
        if len(self.runs) == 1:
            return f"one run, seed {self.seeds[0]}"
        seeds = f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}"
        if len(self.folds) == 1:
            return f"{len(self.runs)} runs: {seeds}"
        return f"{len(self.runs)} runs: {len(self.folds)} folds, {seeds}"

    @property
    def draws(self) -> str:
        """What the runs differ in: "folds" or "seeds"."""
        return "folds" if len(self.folds) > 1 else "seeds"

    @property
    def utterances(self) -> int:
        """Number of different test utterances."""
        return sum(runs[0].metrics["utterances"] for runs in self.folds.values())

    @cached_property
    def means(self) -> dict[str, float | None]:
        """Mean over runs of each metric of `headlines`; None if it is not defined in a run."""
        return {name: mean_of_all(run.metrics.get(name) for run in self.runs) for name in self.headlines}

    @cached_property
    def over_utterances(self) -> dict[str, Interval] | None:
        """Intervals of the means over utterances, without metrics that are not defined.

        None if several seeds, or runs of values or labels, have no common predictions.
        """
        found = [_replicates(runs, number) for number, runs in enumerate(self.folds.values())]
        known = [x for x in found if x is not None]
        if len(known) < len(found):
            return None
        intervals = percentiles(known[0][0], np.mean([x for _, x in known], axis=0), self.utterances)
        return {name: interval for name, interval in intervals.items() if self.means[name] is not None}

    @cached_property
    def over_trainings(self) -> dict[str, Interval] | None:
        """Intervals of the means over folds or seeds, None for one run.

        Metrics that are not defined in every run are left out.
        """
        if len(self.folds) > 1:
            groups, how = list(self.folds.values()), f"Student's t over {len(self.folds)} fold means"
        else:
            groups, how = [[run] for run in self.runs], f"Student's t over {len(self.runs)} seeds"
        if len(groups) < 2:
            return None
        found = {}
        for name in self.headlines:
            values = [mean_of_all(run.metrics.get(name) for run in runs) for runs in groups]
            known = [value for value in values if value is not None]
            if len(known) == len(values) and (limits := t_interval(known)):
                found[name] = Interval(limits[0], limits[1], how)
        return found

    @cached_property
    def skipped_steps(self) -> str:
        """Number of skipped steps in words; empty if no step was skipped."""
        found = [run.skipped_steps for run in self.runs]
        skipped, steps = (sum(counts) for counts in zip(*found, strict=True))
        return f"{skipped:,} of {steps:,} were not finite and changed nothing" if skipped else ""

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each loss term that the runs used. Runs of older code may lack a term."""
        weights = self.runs[0].config["loss"]
        return {term: weights[TERMS[term]] for term in terms_of(self.network) if weights.get(TERMS[term])}

    @cached_property
    def pooled(self) -> dict[str, Any]:
        """Of a classification: metrics of the sum of all runs' confusion matrices."""
        return summarize(np.sum([run.confusion for run in self.runs], axis=0), self.names)

    @cached_property
    def part_means(self) -> dict[str, dict[str, float | None]]:
        """Of each dimension or label: the mean over runs of each figure, None if a run does not define it."""
        return {
            name: {
                key: mean_of_all(run.parts[name].get(key) for run in self.runs)
                for key in self.runs[0].parts[name]
            }
            for name in self.names
        }

    def count(self, name: str, key: str) -> int:
        """Of a dimension or label: the sum of a count, such as "utterances", with each fold once."""
        return sum(int(runs[0].parts[name][key]) for runs in self.folds.values())

    @property
    def paper(self) -> dict[str, float] | None:
        """The paper's metrics of AWTPN on this dataset; None if it has none, and for another model."""
        known = self.task_type == "classification" and self.network == "awtpn"
        return paper_metrics(self.dataset) if known else None

    @property
    def baseline(self) -> dict[str, float | None] | None:
        """The means of the baseline, if a cross-validation fitted one."""
        fitted = self._fitted_baseline
        return fitted["mean"] if fitted else None

    @property
    def baseline_name(self) -> str:
        """The name of the baseline."""
        return str((self._fitted_baseline or {}).get("name", "logistic regression"))

    @property
    def _fitted_baseline(self) -> dict[str, Any] | None:
        """Of cross_validation.json: of classes under the one key, of other tasks under the other."""
        return self.summary.get("logistic_regression") or self.summary.get("baseline")

    @cached_property
    def predictions(self) -> list[dict[str, Any]] | None:
        """Predicted classes of all runs; None if a run has none."""
        if any(run.predictions is None for run in self.runs):
            return None
        return [line for run in self.runs for line in run.predictions or []]

    @cached_property
    def answers(self) -> Answers | None:
        """Predicted values, or probabilities of labels, of all runs; None if a run has none."""
        found = [run.answers for run in self.runs if run.answers is not None]
        return together(found) if len(found) == len(self.runs) else None

    @property
    def command(self) -> str:
        """The command that reproduces the runs."""
        if self.summary.get("command"):
            return redact(self.summary["command"])  # earlier versions may have recorded credentials
        return "\n".join(
            f"awtpn train --config {quote(str(run.dir / 'config.yaml'))} "
            f"--run.dir {quote(f'{run.dir}-again')}"
            for run in self.runs
        )


def _replicates(runs: Sequence[RunRecord], number: int) -> tuple[tuple[str, ...], NDArray[np.float64]] | None:
    """Names, and bootstrap replicates [R, metrics], of the mean over runs tested on the same utterances."""
    if runs[0].task_type != "classification":
        return replicates([run.answers for run in runs], runs[0].metrics, seed=number)
    found = _class_replicates(runs, number)
    return None if found is None else (SUMMARY, found)


def _class_replicates(runs: Sequence[RunRecord], number: int) -> NDArray[np.float64] | None:
    """Bootstrap replicates [R, 4] of the mean over runs that were tested on the same utterances."""
    if len(runs) == 1:
        # The metrics are functions of the confusion matrix, so the bootstrap needs nothing else.
        label, predicted = cells_of(runs[0].confusion)
        return bootstrap_replicates(label, [predicted], len(runs[0].confusion), seed=number)
    answers = [{p["key"]: p for p in run.predictions or []} for run in runs]
    if any(a.keys() != answers[0].keys() for a in answers) or not answers[0]:
        return None
    index = {name: i for i, name in enumerate(runs[0].names)}
    keys = list(answers[0])
    label = np.array([index[answers[0][key]["label"]] for key in keys])
    of_models = [np.array([index[a[key]["predicted"]] for key in keys]) for a in answers]
    return bootstrap_replicates(label, of_models, len(index), seed=number)
