"""Grid search on validation utterances; test utterances have no influence on the choice.

In cross-validation each fold chooses for itself on its training groups (nested cross-validation): each of
them is left out in turn, every point of the grid is trained on the others, and the best mean w-F1 wins. With
the data's own splits, the split "val" decides.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from awtpn.config.command_line import parse_command_line
from awtpn.experiments.folds import FOLD_KEYS, OWN_KEYS, Fold, Splits, Trial, leave_one_out
from awtpn.experiments.run_names import folder_name
from awtpn.experiments.runner import read_metrics
from awtpn.run.atomic_write import write_json
from shards.safe_io.printable import join_lines
from shards.storage.credentials import has_secrets

SWEEP_FILE = "sweep.json"
METRIC = "w-F1"

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
        Per outer fold its test value (None without folds), and `point`, `arguments` and `validation`.

    Raises:
        ValueError: a point is invalid, or there are too few folds to leave one more out.
    """
    for point in points:
        parse_command_line([*training, *arguments_of(point)])
    trials = {
        (fold.test if fold else None, number): inner_trials(splits, fold, training, point, seeds, folder)
        for fold in splits.each
        for number, point in enumerate(points)
    }
    train([trial.job for some in trials.values() for trial in some], what="sweep")
    role = "test" if splits.by else "val"  # an inner fold's test utterances are the outer one's validation
    scores = {
        place: float(np.mean([read_metrics(trial.job.run_dir, role)[METRIC] for trial in some]))
        for place, some in trials.items()
    }
    chosen: Chosen = []
    table = []
    for test in dict.fromkeys(test for test, _ in trials):
        best = max(range(len(points)), key=lambda number: scores[test, number])  # the first of equals
        validation = scores[test, best]
        chosen.append(
            (test, {"point": points[best], "arguments": arguments_of(points[best]), "validation": validation})
        )
        rows = [{"point": point, METRIC: scores[test, number]} for number, point in enumerate(points)]
        table.append({"fold": test, "chosen": points[best], "validation": rows})
    write_json(folder / SWEEP_FILE, {"by": splits.by, "seeds": list(seeds), "folds": table})
    print(format_choice(splits.by, chosen))
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


def format_choice(by: str | None, chosen: Chosen) -> str:
    lines = [""]
    for test, choice in chosen:
        point = " ".join(f"{key}={value}" for key, value in choice["point"].items())
        where = f"{by} {test}, chosen on its training groups" if by else "chosen on the split val"
        lines.append(f"{where}: {point} ({METRIC} there {100 * choice['validation']:.2f})")
    return join_lines(lines)
