"""Results of finished runs, read from their folders and averaged.

Runs of one report are repetitions of one experiment: one run, several seeds, or folds times seeds. What a run
folder does not record is None, and the pages say so.
"""

from __future__ import annotations

import hashlib
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awtpn.config.schema import flatten
from awtpn.learning.settings import TERMS
from awtpn.metrics.classification import SUMMARY, paper_metrics, summarize
from awtpn.metrics.confidence_intervals import (
    Interval,
    bootstrap_replicates,
    bootstrap_words,
    cells_of,
    percentiles,
    t_interval,
)
from awtpn.model.files import CARD_FILE, model_folder
from awtpn.model.settings import NEW_KEYS
from awtpn.run.predictions import confusion_of, predictions_file, read_predictions
from awtpn.run.record import CONFIG_FILE, STATUS_FILE, read_settings, read_status
from awtpn.run.results import RESULTS_FILE, read_results
from shards.safe_io.bounded_json import parse_json, read_json
from shards.storage.credentials import redact

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # steps, values
# What may differ between repetitions of one experiment: seeds, and which utterances train and test.
REPETITION_KEYS = ("run.", "data.cache", "data.streams", "data.select.")


@dataclass(frozen=True)
class RunRecord:
    """One finished run, as its folder records it."""

    dir: Path
    config: dict[str, Any]
    status: dict[str, Any]
    results: dict[str, Any]
    model: dict[str, Any]  # the best checkpoint's card: dataset, provenance, classes, dims

    @property
    def role(self) -> str:
        """The split that is reported: "test", or "val" if there were no test utterances."""
        return "test" if "test" in self.results else "val"

    @property
    def metrics(self) -> dict[str, Any]:
        """As `metrics.classification.summarize` returns them."""
        found: dict[str, Any] = self.results[self.role]
        return found

    @property
    def seed(self) -> int:
        return int(self.config["run"]["seed"])

    @property
    def fold(self) -> str:
        """The utterances held out for the test, such as "fold 0"; empty without a selection."""
        select = self.config["data"]["select"]["test"] or {}
        values = {key: value if isinstance(value, list) else [value] for key, value in select.items()}
        return ", ".join(f"{key} {' '.join(map(str, value))}" for key, value in values.items())

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        return np.array(self.metrics["confusion_matrix"], np.int64)

    @cached_property
    def predictions(self) -> list[dict[str, Any]] | None:
        """The model's predictions; None if the run kept none, or if they don't match its confusion matrix."""
        file = predictions_file(self.dir, self.role)
        if not file.is_file():
            return None
        found = read_predictions(file)
        if not np.array_equal(confusion_of(found, self.metrics["labels"]), self.confusion):
            print(
                f"warning: {file} is left out: it does not match the metrics in results.json. Write it again "
                f"with awtpn evaluate {shlex.quote(str(self.dir))} --split {self.role} "
                f"--predictions {shlex.quote(str(file))}",
                file=sys.stderr,
            )
            return None
        return found

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return [
            parse_json(line, f"{self.dir / 'metrics.jsonl'}, line {number}")
            for number, line in enumerate((self.dir / "metrics.jsonl").read_text().splitlines(), 1)
        ]

    @property
    def skipped_steps(self) -> tuple[int, int]:
        """Number of optimizer steps that were skipped because they were not finite, and of all steps."""
        return sum(bool(line.get("skipped")) for line in self.lines), len(self.lines)

    @property
    def fingerprints(self) -> tuple[str, str]:
        """Fingerprint of the last step's utterances, and a digest of all steps' fingerprints."""
        words = [line["fingerprint"] for line in self.lines]
        return words[-1], hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]

    def curve(self, name: str) -> Curve:
        """A value of metrics.jsonl over the steps, without steps at which it was not finite."""
        points = [(line["step"], line[name]) for line in self.lines if line[name] is not None]
        return np.array([p[0] for p in points], float), np.array([p[1] for p in points], float)

    def epoch_mean(self, name: str, epoch: int) -> float:
        """Mean of a value of metrics.jsonl over an epoch's steps; NaN if none is finite.

        Args:
            name: of the value.
            epoch: counted among the epochs that the run has; -1 is the last.
        """
        epochs = sorted({line["epoch"] for line in self.lines})
        found = [line[name] for line in self.lines if line["epoch"] == epochs[epoch]]
        finite = [value for value in found if value is not None]
        return float(np.mean(finite)) if finite else math.nan

    @property
    def validations(self) -> list[tuple[int, float]]:
        """(step, w-F1) of each validation, from TensorBoard."""
        return validations(self.dir)


@dataclass(frozen=True)
class Report:
    """Repetitions of one experiment, and their averages."""

    runs: list[RunRecord]
    summary: dict[str, Any]  # of cross_validation.json; empty where there is none

    @property
    def role(self) -> str:
        return self.runs[0].role

    @property
    def classes(self) -> list[str]:
        found: list[str] = self.runs[0].metrics["labels"]
        return found

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
    def means(self) -> dict[str, float]:
        """Mean over runs of each metric of SUMMARY."""
        return {name: float(np.mean([run.metrics[name] for run in self.runs])) for name in SUMMARY}

    @cached_property
    def over_utterances(self) -> dict[str, Interval] | None:
        """Intervals of the means over utterances; None if several seeds have no common predictions."""
        found = [_replicates(runs, number) for number, runs in enumerate(self.folds.values())]
        replicates = [x for x in found if x is not None]
        if len(replicates) < len(found):
            return None
        return percentiles(np.mean(replicates, axis=0), bootstrap_words(self.utterances))

    @cached_property
    def over_trainings(self) -> dict[str, Interval] | None:
        """Intervals of the means over folds or seeds; None for one run."""
        if len(self.folds) > 1:
            groups, how = list(self.folds.values()), f"Student's t over {len(self.folds)} fold means"
        else:
            groups, how = [[run] for run in self.runs], f"Student's t over {len(self.runs)} seeds"
        if len(groups) < 2:
            return None
        found = {}
        for name in SUMMARY:
            limits = t_interval([float(np.mean([r.metrics[name] for r in runs])) for runs in groups])
            assert limits is not None
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
        return {term: weights[key] for term, key in TERMS.items() if weights.get(key)}

    @cached_property
    def pooled(self) -> dict[str, Any]:
        """Metrics of the sum of all runs' confusion matrices."""
        return summarize(np.sum([run.confusion for run in self.runs], axis=0), self.classes)

    @property
    def paper(self) -> dict[str, float] | None:
        return paper_metrics(self.dataset)

    @property
    def baseline(self) -> dict[str, float] | None:
        """The means of the logistic regression, if a cross-validation fitted one."""
        regression = self.summary.get("logistic_regression")
        return regression["mean"] if regression else None

    @cached_property
    def predictions(self) -> list[dict[str, Any]] | None:
        """Predictions of all runs; None if a run has none."""
        if any(run.predictions is None for run in self.runs):
            return None
        return [line for run in self.runs for line in run.predictions or []]

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


# --- Reading -------------------------------------------------------------------------------------


def gather(paths: Sequence[Path]) -> Report:
    """Read runs, or folders of runs (as `awtpn cross-validate` makes them).

    Raises:
        ValueError: a folder is no run, a run is not done, or the runs are not of one experiment.
    """
    runs = [read_run(folder) for path in paths for folder in run_folders(path)]
    summary: dict[str, Any] = {}
    if len(paths) == 1 and (file := paths[0] / "cross_validation.json").is_file():
        summary = read_json(file)
    check_one_experiment(runs, {key for choice in summary.get("chosen", []) for key in choice["point"]})
    return Report(runs, summary)


def run_folders(path: Path) -> Iterator[Path]:
    """The folder itself if it is a run, otherwise the runs directly within it, in order of their names.

    Raises:
        ValueError: it is not a run and contains none.
    """
    if (path / CONFIG_FILE).is_file():
        yield path
        return
    found = sorted(file.parent for file in path.glob(f"*/{CONFIG_FILE}"))
    if not found:
        raise ValueError(
            f"{path} is not a run and contains none: there is no {CONFIG_FILE} in it or in a folder within it"
        )
    yield from found


def read_run(folder: Path) -> RunRecord:
    """Read a finished run.

    Raises:
        ValueError: it is not done, or a file is missing or damaged; says which and what to do.
    """
    _check_files(folder, STATUS_FILE)
    status = read_status(folder)
    if status["status"] != "done":
        raise ValueError(
            f"{folder} is not done but {status['status']!r}: to continue it, repeat the command that began it"
        )
    _check_files(folder, RESULTS_FILE, CONFIG_FILE)
    stored = read_results(folder, model_folder(folder))
    if stored.results is None:
        raise ValueError(f"{stored.note}: to evaluate the run again, repeat the command that began it")
    results = stored.results
    if not {"test", "val"} & results.keys():
        raise ValueError(f"{folder} had neither validation nor test utterances: there is nothing to report")
    settings = read_settings(folder) or {}
    if missing := [section for section in ("run", "data", "loss") if section not in settings]:
        raise ValueError(
            f"{folder / CONFIG_FILE} is not the record of a run: it has no settings of {missing[0]}"
        )
    card = folder / "checkpoints" / "best" / CARD_FILE
    return RunRecord(
        dir=folder,
        config=settings,
        status=status,
        results=results,
        model=read_json(card) if card.is_file() else {},
    )


def _check_files(folder: Path, *names: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is not a finished run: it has no {name}")


def check_one_experiment(runs: Sequence[RunRecord], swept: set[str]) -> None:
    """Refuse to average runs that differ in more than their seed and utterances.

    Raises:
        ValueError: names the settings that differ, or a run that is given twice.
    """
    varied = {NEW_KEYS.get(key, key) for key in swept}
    within = (*REPETITION_KEYS, *(f"{key}." for key in varied))
    first = _settings(runs[0])
    for run in runs[1:]:
        own = _settings(run)
        keys = [k for k in {**first, **own} if own.get(k) != first.get(k)]
        if differing := [k for k in keys if not k.startswith(within) and k not in varied]:
            raise ValueError(
                f"{run.dir} and {runs[0].dir} are not repetitions of one experiment: they differ in "
                f"{', '.join(differing)}; write a report of each"
            )
        if (run.role, run.metrics["labels"]) != (runs[0].role, runs[0].metrics["labels"]):
            raise ValueError(
                f"{run.dir} and {runs[0].dir} were not tested on the same split and classes; "
                "write a report of each"
            )
    seen: dict[tuple[str, int], Path] = {}
    for run in runs:
        if other := seen.get((run.fold, run.seed)):
            raise ValueError(f"{run.dir} repeats {other}: the same seed and utterances; leave one out")
        seen[run.fold, run.seed] = run.dir


def _settings(run: RunRecord) -> dict[str, Any]:
    """A run's settings by dotted key; the order of its modalities is one of them."""
    return {"model.modalities": list(run.config.get("model", {}).get("modalities", ()))} | flatten(run.config)


def validations(run_dir: Path) -> list[tuple[int, float]]:
    """(step, w-F1) of a run's validations; empty if it had none."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # All scalars (0 means no limit), and as little as possible of everything else.
    kept = {"scalars": 0, "images": 1, "histograms": 1, "tensors": 1, "compressedHistograms": 1}
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance=kept)
    events.Reload()
    tag = "val/w-F1"
    return [(e.step, e.value) for e in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []


def _replicates(runs: Sequence[RunRecord], number: int) -> NDArray[np.float64] | None:
    """Bootstrap replicates [R, 4] of the mean over runs that were tested on the same utterances."""
    if len(runs) == 1:
        # The metrics are functions of the confusion matrix, so the bootstrap needs nothing else.
        label, predicted = cells_of(runs[0].confusion)
        return bootstrap_replicates(label, [predicted], len(runs[0].confusion), seed=number)
    answers = [{p["key"]: p for p in run.predictions or []} for run in runs]
    if any(a.keys() != answers[0].keys() for a in answers) or not answers[0]:
        return None
    index = {name: i for i, name in enumerate(runs[0].metrics["labels"])}
    keys = list(answers[0])
    label = np.array([index[answers[0][key]["label"]] for key in keys])
    of_models = [np.array([index[a[key]["predicted"]] for key in keys]) for a in answers]
    return bootstrap_replicates(label, of_models, len(index), seed=number)
