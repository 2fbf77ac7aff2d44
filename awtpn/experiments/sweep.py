"""Grid search on validation utterances; test utterances have no influence on the choice.

In cross-validation each fold chooses for itself on its training groups (nested cross-validation): each of
them is left out in turn, every point of the grid is trained on the others, and the best mean wins: of
`train.best_by`, or else of the task's default metric (w-F1, MAE or F1). With the data's own splits, the split
"val" decides.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from awtpn.config.command_line import parse_command_line
from awtpn.experiments.folds import FOLD_KEYS, OWN_KEYS, TARGET_KEYS, Fold, Splits, Trial, leave_one_out
from awtpn.experiments.run_names import folder_name
from awtpn.experiments.runner import read_metrics
from awtpn.experiments.scores import mean_of, score_of, task_of_scores, task_record
from awtpn.metrics.summary import DEFAULT_BEST, better, check_best_by, format_metric, shown
from awtpn.run.atomic_write import write_json
from shards.safe_io.printable import join_lines
from shards.storage.credentials import has_secrets

SWEEP_FILE = "sweep.json"

Point = dict[str, str]  # key -> value, as on a command line
Chosen = list[tuple[Any, dict[str, Any]]]  # per left-out value: arguments and validation figure


def grid(sweep: Sequence[str]) -> list[Point]:
    """["optim.lr=1e-3,3e-3", "model.dropout=0.3,0.5"] -> their four combinations, the last key fastest.

    Commas within brackets do not separate values: `model.modalities=[audio],[audio,video]`.

    Raises:
        ValueError: not of this form, a key given twice, or a key that the experiment sets itself.
    """
    axes: dict[str, list[str]] = {}
    for text in sweep:
        key, mark, values = text.partition("=")
        key = key.removeprefix("--")
        if not mark or not values:
            raise ValueError(f"--sweep {text!r}: write KEY=VALUE,VALUE,..., e.g. optim.lr=1e-3,3e-3")
        if key in axes:
            raise ValueError(f"--sweep {key}: given twice; write all its values after one =")
        if any(key == own or key.startswith(f"{own}.") for own in OWN_KEYS + FOLD_KEYS):
            raise ValueError(f"--sweep {key}: cross-validation sets it itself")
        if key in TARGET_KEYS:
            raise ValueError(
                f"--sweep {key}: figures of different targets cannot be compared; cross-validate each by "
                "itself"
            )
        if has_secrets(f"--{key}={values}"):
            raise ValueError(
                f"--sweep {key}: the values hold credentials, which would be in folder names; give "
                "credentials for all runs, in --data.storage_options"
            )
        axes[key] = re.split(r",(?![^\[{]*[\]}])", values)
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def choose(
    splits: Splits,
    training: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    points: Sequence[Point],
    train: Callable[..., None],
) -> Chosen:
    """Train every point on every inner split, choose the best for each fold, and write all into `folder`.

    Args:
        splits: the outer folds, or none.
        training: arguments of every run.
        seeds: seeds of each point.
        folder: for the runs.
        points: of `grid`.
        train: `train_all` with its `parallel` and `launcher` set.

    Returns:
        Per outer fold its test value (None without folds), and `point`, `arguments` and `validation` (None
        if no point has a defined metric; then the first point is chosen).

    Raises:
        ValueError: a point is invalid, or there are too few folds to leave one more out.
    """
    for point in points:
        parse_command_line([*training, *arguments_of(point)])
    best_by = parse_command_line([*training])[0].train.best_by
    trials = {
        (fold.test if fold else None, number): inner_trials(splits, fold, training, point, seeds, folder)
        for fold in splits.each
        for number, point in enumerate(points)
    }
    train([trial.job for some in trials.values() for trial in some], what="sweep")
    role = "test" if splits.by else "val"  # an inner fold's test utterances are the outer one's validation
    found = {
        place: [score_of(None, trial.seed, read_metrics(trial.job.run_dir, role)) for trial in some]
        for place, some in trials.items()
    }
    task = task_of_scores(score for some in found.values() for score in some)
    metric = check_best_by(best_by, task)
    # Undefined in any run counts as undefined: else a point could win by the folds in which it is constant.
    scores = {place: mean_of(some, metric) for place, some in found.items()}
    chosen: Chosen = []
    table = []
    for test in dict.fromkeys(test for test, _ in trials):
        best = 0
        for number in range(1, len(points)):  # the first of equals
            if better(metric, scores[test, number], scores[test, best]):
                best = number
        validation = scores[test, best]
        chosen.append(
            (test, {"point": points[best], "arguments": arguments_of(points[best]), "validation": validation})
        )
        rows = [{"point": point, metric: scores[test, number]} for number, point in enumerate(points)]
        table.append({"fold": test, "chosen": points[best], "validation": rows})
    record = task_record(task, metric)
    write_json(folder / SWEEP_FILE, {"by": splits.by, "seeds": list(seeds), **record, "folds": table})
    print(format_choice(splits.by, chosen, metric))
    return chosen


def inner_trials(
    splits: Splits,
    fold: Fold | None,
    training: Sequence[str],
    point: Point,
    seeds: Sequence[int],
    folder: Path,
) -> list[Trial]:
    """The runs that evaluate `point` for an outer fold, on its training groups alone.

    Raises:
        ValueError: the fold trains on a single group, so none is left to validate on.
    """
    place, former = folder / name_of(point), folder / former_name_of(point)
    if fold is None:
        return splits.trials([*training, *arguments_of(point)], seeds, place, former)
    if len(fold.train) < 2:
        raise ValueError("a sweep needs at least three folds: one to test, one to validate, one to train on")
    inner = Splits(splits.by, splits.url, leave_one_out(fold.train))
    left_out = f"without-{fold.test}"
    return inner.trials(
        [*training, *arguments_of(point)], seeds, place / folder_name(left_out), former / left_out
    )


def arguments_of(point: Point) -> list[str]:
    return [f"--{key}={value}" for key, value in point.items()]


def name_of(point: Point) -> str:
    """The name of a point's folder, such as "optim.lr=1e-3,model.dropout=0.5"."""
    return folder_name(_as_text(point))


def former_name_of(point: Point) -> str:
    """The folder's name in older versions, in which several points could have the same."""
    return re.sub(r"[^\w.=,+\-\[\]]", "_", _as_text(point))


def _as_text(point: Point) -> str:
    return ",".join(f"{key}={value}" for key, value in point.items())


def format_choice(by: str | None, chosen: Chosen, metric: str = DEFAULT_BEST["classification"]) -> str:
    """A line per fold: the point that it chose, and its validation figure."""
    lines = [""]
    for test, choice in chosen:
        point = " ".join(f"{key}={value}" for key, value in choice["point"].items())
        where = f"{by} {test}, chosen on its training groups" if by else "chosen on the split val"
        figure = f"{metric} there {format_metric(metric, choice['validation'])}"
        if choice["validation"] is None:
            figure = f"the first, since no point has a defined {shown(metric)}"
        lines.append(f"{where}: {point} ({figure})")
    return join_lines(lines)
