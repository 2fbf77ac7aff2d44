"""The runs of a comparison: every dataset with every model, and what each run has found."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from awtpn.config.command_line import parse_command_line
from awtpn.config.schema import differing_keys, dump, in_todays_form
from awtpn.experiments.baseline import Evaluated, evaluate_baseline
from awtpn.experiments.comparison.suite import Dataset, Model, folder_of
from awtpn.experiments.folds import Splits, Trial
from awtpn.experiments.home import Home
from awtpn.experiments.runner import PLACE_KEYS, read_metrics
from awtpn.experiments.scores import Score, score_of
from awtpn.metrics.summary import task_type_of
from awtpn.model.files import WEIGHTS_FILE, model_folder, weight_shapes
from awtpn.report.answers import Answers
from awtpn.run.atomic_write import write_json
from awtpn.run.predictions import predictions_file, read_predictions, truth_and_predictions
from awtpn.run.record import read_status
from shards.safe_io.bounded_json import read_json
from shards.safe_io.json_text import json_text

STATISTICS = (".mean", ".std", ".spread")  # how tensors of a model file end that hold statistics of the data
BASELINE_FILE = "baseline.json"


@dataclass(frozen=True)
class Found:
    """What one run, or the linear baseline of one fold, has found.

    Attributes:
        score: its metrics.
        figures: as `results.json` has them.
        seconds: of training.
        weights: number of them; None if it is not known.
        auroc: by modality, of the weights of time steps as a detector of informative ones; empty if the data
            does not say which are.
        answers: predictions of the test utterances in the order of their keys, classes as numbers [U, 1];
            None if there are none, or if there are folds, where nothing needs them.
    """

    score: Score
    figures: Mapping[str, Any]
    seconds: float | None = None
    weights: int | None = None
    auroc: Mapping[str, float] = field(default_factory=dict)
    answers: Answers | None = None


@dataclass(frozen=True)
class Cell:
    """A model on a dataset.

    Attributes:
        training: arguments of all its runs.
        folder: of its runs.
        trials: none of the linear baseline.
    """

    dataset: Dataset
    model: Model
    splits: Splits
    training: Sequence[str]
    folder: Path
    trials: Sequence[Trial]


def make_cell(
    dataset: Dataset, model: Model, splits: Splits, common: Sequence[str], seeds: Sequence[int], folder: Path
) -> Cell:
    """A model on a dataset.

    Args:
        splits: of the dataset.
        common: arguments of all runs on the dataset, which names the data.
        seeds: `run.seed` of each repetition.
        folder: of the comparison, or of its curves.
    """
    training = [*common, *model.arguments]
    place = folder / folder_of(dataset.name) / folder_of(model.name)
    trials = [] if model.is_linear else splits.trials(training, seeds, place)
    return Cell(dataset, model, splits, training, place, trials)


# --- Runs that were trained ----------------------------------------------------------------------


def read_cell(cell: Cell, home: Home) -> list[Found]:
    """What the finished runs of a cell have found; the linear baseline is fitted if it was not."""
    if not cell.model.is_linear:
        return [read_run(trial) for trial in cell.trials]
    file = cell.folder / BASELINE_FILE
    home.fetch(file)
    found = read_linear(cell)
    home.send([file])
    return found


def read_run(trial: Trial) -> Found:
    """What a finished run has found.

    Raises:
        ValueError: it has no metrics of test utterances.
    """
    run_dir = trial.job.run_dir
    figures = read_metrics(run_dir)
    seconds = read_status(run_dir).get("seconds")
    model = model_folder(run_dir)
    shapes = {} if model is None else weight_shapes(model / WEIGHTS_FILE)
    fold = trial.fold.test if trial.fold else None
    return Found(
        score_of(fold, trial.seed, figures),
        figures,
        float(seconds) if isinstance(seconds, int | float) else None,
        sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(STATISTICS)) or None,
        {m: float(x) for m, x in (figures.get("reliability_auroc") or {}).items() if x is not None},
        None if trial.fold else read_answers(predictions_file(run_dir, "test"), figures),
    )


def read_answers(file: Path, figures: Mapping[str, Any]) -> Answers | None:
    """The predictions in a file; None if there is none, or if they are of another task.

    Args:
        file: of `awtpn.run.predictions`.
        figures: of the same utterances.
    """
    if not file.is_file():
        return None
    lines = sorted(read_predictions(file), key=lambda line: str(line["key"]))
    keys = [str(line["key"]) for line in lines]
    task = task_type_of(figures)
    if task == "classification":
        index = {name: number for number, name in enumerate(figures["labels"])}
        if any(line["label"] not in index or line["predicted"] not in index for line in lines):
            return None
        classes = [[index[line["label"]], index[line["predicted"]]] for line in lines]
        columns = np.array(classes, np.float64).reshape(-1, 2)
        return Answers(keys, columns[:, :1], columns[:, 1:])
    names = list(figures["per_dimension" if task == "regression" else "per_label"])
    found = truth_and_predictions(lines, task, names)
    return None if found is None else Answers(keys, *found)


# --- The linear baseline -------------------------------------------------------------------------


def read_linear(cell: Cell) -> list[Found]:
    """The linear baseline of every fold; it is fitted once for all processes that share the folder.

    Raises:
        ValueError: it was fitted with other settings.
    """
    cell.folder.mkdir(parents=True, exist_ok=True)
    file = cell.folder / BASELINE_FILE
    config = parse_command_line([*cell.training])[0]
    settings = json.loads(json_text(dump(config)))
    with FileLock(file.with_name(f".{BASELINE_FILE}.lock")):
        if not file.is_file():
            start = time.perf_counter()
            found = evaluate_baseline(config, cell.splits)
            seconds = (time.perf_counter() - start) / len(found)
            rows = [_linear_row(one, seconds) for one in found]
            write_json(file, {"settings": settings, "runs": rows})
    stored = read_json(file)
    before = in_todays_form(stored["settings"])
    if changed := [key for key in differing_keys(before, settings) if key not in PLACE_KEYS]:
        raise ValueError(f"{file} was made with another {', '.join(changed)}: give another --dir")
    return [
        Found(
            score_of(row["fold"], None, row["figures"]),
            row["figures"],
            row["seconds"],
            row["weights"],
            {},
            _linear_answers(row["answers"]),
        )
        for row in stored["runs"]
    ]


def _linear_row(found: Evaluated, seconds: float) -> dict[str, Any]:
    answers = None
    if found.fold is None:
        order = np.argsort(np.array(found.test.keys))
        of_classes = found.task.type == "classification"
        truth = found.test.label[:, None] if of_classes else found.test.values
        given = found.answers[:, None] if of_classes else found.answers
        answers = {
            "keys": [found.test.keys[i] for i in order],
            "truth": _with_null(truth[order]),
            "given": _with_null(given[order]),
        }
    return {
        "fold": found.fold,
        "figures": found.figures,
        "seconds": seconds,
        "weights": found.weights,
        "answers": answers,
    }


def _with_null(rows: NDArray[Any]) -> list[list[float | None]]:
    return [[None if math.isnan(x) else x for x in row] for row in rows.tolist()]


def _linear_answers(row: Mapping[str, Any] | None) -> Answers | None:
    if row is None:
        return None
    truth, given = (np.array(row[key], np.float64) for key in ("truth", "given"))  # null becomes NaN
    return Answers(row["keys"], truth, given)
