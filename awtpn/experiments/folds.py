"""Splits by metadata: which trainings an experiment consists of, and what each is told."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from awtpn.config import DataConfig, parse_command_line
from awtpn.data import stream_source
from awtpn.experiments.runner import Job
from shards import FeatureStream

# What an experiment of many runs decides itself, run by run.
OWN_KEYS = ("run.dir", "run.seed")
FOLD_KEYS = ("data.test", "data.select.train", "data.select.test")


@dataclass(frozen=True)
class Fold:
    """One value of the column, left out, and the others."""

    test: Any
    train: list[Any]


@dataclass(frozen=True)
class Score:
    """Test figures of one run, as fractions of 1.

    `fold` is None where the data's own test split is used, `seed` for the logistic regression.
    """

    fold: Any
    seed: int | None
    figures: dict[str, float]


@dataclass(frozen=True)
class Trial:
    """One training of an experiment: what is left out, the seed, and the job."""

    fold: Fold | None
    seed: int
    job: Job


@dataclass(frozen=True)
class Splits:
    """The folds of a column of the split at `url`; without a column the data's own splits, and no folds."""

    by: str | None
    url: str | None
    folds: list[Fold]

    @property
    def each(self) -> list[Fold | None]:
        """The folds, or the one None that stands for the data's own splits."""
        return [*self.folds] or [None]

    def trials(self, training: Sequence[str], seeds: Sequence[int], folder: Path) -> list[Trial]:
        """Every fold with every seed, each in a folder of its own within `folder`."""
        return [trial for fold in self.each for trial in self.of_fold(fold, training, seeds, folder)]

    def of_fold(
        self, fold: Fold | None, training: Sequence[str], seeds: Sequence[int], folder: Path
    ) -> list[Trial]:
        """One fold with every seed."""
        name = f"{self.by}-{fold.test}-" if fold else ""
        trials = []
        for seed in seeds:
            run_dir = folder / f"{name}seed-{seed}".replace("/", "_")
            arguments = [*training, f"--run.dir={run_dir}", f"--run.seed={seed}"]
            if fold:
                arguments += [
                    f"--data.train={self.url}",
                    f"--data.test={self.url}",
                    f"--data.select.train={json.dumps({self.by: fold.train})}",
                    # In a list, where a text of digits ("01") stays text on the command line.
                    f"--data.select.test={json.dumps({self.by: [fold.test]})}",
                ]
            trials.append(Trial(fold, seed, Job(tuple(arguments), run_dir)))
        return trials


def make_splits(training: Sequence[str], by: str | None) -> Splits:
    """The folds of column `by` of the training split, or none.

    Raises:
        ValueError: no such column, or fewer than two values in it.
    """
    if by is None:
        return Splits(None, None, [])
    url, values = column_values(parse_command_line([*training])[0].data, by)
    return Splits(by, url, leave_one_out(values))


def check_arguments(training: Sequence[str], seeds: Sequence[int], by: str | None) -> None:
    """Refuse what an experiment sets itself, and seeds given twice.

    Raises:
        ValueError: names the argument.
    """
    own_keys = OWN_KEYS + (FOLD_KEYS if by else ())
    for argument in training:
        key = argument.removeprefix("--").partition("=")[0]
        if argument.startswith("--") and any(key == own or key.startswith(f"{own}.") for own in own_keys):
            raise ValueError(f"{argument}: cross-validation sets {key} itself, for every run; leave it out")
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"--seeds {list(seeds)}: a seed is given twice")


def column_values(data: DataConfig, by: str) -> tuple[str, list[Any]]:
    """The split that is cross-validated, as URL#split, and the values of a metadata column in it.

    Raises:
        ValueError: the utterances have no such column, or a fold would train on one class alone.
    """
    source = stream_source(data, "train")
    assert source is not None
    stream = FeatureStream(**source | {"select": None})
    if by not in stream.manifest.columns:
        has = sorted(stream.manifest.columns) or "no columns of metadata"
        raise ValueError(f"{stream.url}: no column {by!r} to fold by; it has {has}")
    classes: dict[Any, set[str]] = {}
    for _, meta in stream.metadata():
        classes.setdefault(meta[by], set()).add(meta["label"])
    check_classes(classes, by)
    values = sorted(classes)
    return f"{source['url'].partition('#')[0]}#{stream.split}", values


def check_classes(classes: Mapping[Any, set[str]], by: str) -> None:
    """Refuse a fold whose training utterances are all of one class, before anything is trained.

    Args:
        classes: those that occur, by the column's values.
        by: the column.

    Raises:
        ValueError: names the value that is left out.
    """
    for value in classes if len(classes) > 1 else ():
        others = set[str]().union(*(found for other, found in classes.items() if other != value))
        if len(others) < 2:
            raise ValueError(
                f"without {by} {value!r} all utterances are of the class {next(iter(others))!r}, and there "
                "is nothing to learn: cross-validate by another column"
            )


def leave_one_out(values: Sequence[Any]) -> list[Fold]:
    """Each value in turn against all others.

    Raises:
        ValueError: fewer than two values leave nothing to train on.
    """
    if len(values) < 2:
        raise ValueError(f"cross-validation needs at least two folds, but the column has only {list(values)}")
    return [Fold(value, [other for other in values if other != value]) for value in values]


def fold_means(scores: Sequence[Score], figure: str) -> list[float]:
    """Mean over seeds of each fold, in the order of the folds' first runs."""
    folds = dict.fromkeys(score.fold for score in scores)
    return [float(np.mean([s.figures[figure] for s in scores if s.fold == fold])) for fold in folds]
