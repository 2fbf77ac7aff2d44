"""The runs of an experiment: folds by a metadata column, seeds, and each run's arguments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awtpn.config.command_line import parse_command_line
from awtpn.config.schema import Config
from awtpn.experiments.run_names import as_argument, folder_name
from awtpn.experiments.runner import Job, place_job
from awtpn.run.data import check_some_features, nothing_to_learn, stream_source
from shards import FeatureStream
from shards.format.targets import Target, choose_target
from shards.storage.credentials import redact
from shards.storage.store import open_dataset

# Keys that an experiment sets itself for each run.
OWN_KEYS = ("run.dir", "run.local_dir", "run.seed")
FOLD_KEYS = ("data.test", "data.select.train", "data.select.test")
# Keys that all runs of a sweep or an ablation must share: the figures of different targets don't compare.
TARGET_KEYS = ("task.type", "data.target")


@dataclass(frozen=True)
class Fold:
    """One value of the column to test on, and the others to train on."""

    test: Any
    train: list[Any]


@dataclass(frozen=True)
class Trial:
    """One training of an experiment: its fold, its seed, and the job."""

    fold: Fold | None
    seed: int
    job: Job


@dataclass(frozen=True)
class Splits:
    """The folds of a column of the split at `url`. Without a column: the data's own splits, and no folds."""

    by: str | None
    url: str | None
    folds: list[Fold]

    @property
    def each(self) -> list[Fold | None]:
        """The folds, or [None] for the data's own splits."""
        return [*self.folds] or [None]

    def trials(
        self, training: Sequence[str], seeds: Sequence[int], folder: Path, former: Path | None = None
    ) -> list[Trial]:
        """Every fold with every seed, each in its own folder within `folder`.

        `former` is the folder that an older version used instead of `folder`, if it was another one.
        """
        return [trial for fold in self.each for trial in self.of_fold(fold, training, seeds, folder, former)]

    def of_fold(
        self,
        fold: Fold | None,
        training: Sequence[str],
        seeds: Sequence[int],
        folder: Path,
        former: Path | None = None,
    ) -> list[Trial]:
        """One fold with every seed."""
        left_out = f"{self.by}-{fold.test}" if fold else ""
        name = folder_name(left_out) + "-" if fold else ""
        trials = []
        for seed in seeds:
            former_name = f"{left_out}-seed-{seed}".replace("/", "_") if fold else f"seed-{seed}"
            arguments = [*training, f"--run.seed={seed}"]
            if fold:
                arguments += [
                    f"--data.train={self.url}",
                    f"--data.test={self.url}",
                    f"--data.select.train={as_argument({self.by: fold.train})}",
                    # In a list, since there a text of digits ("01") stays text on the command line.
                    f"--data.select.test={as_argument({self.by: [fold.test]})}",
                ]
            job = place_job(arguments, folder / f"{name}seed-{seed}", (former or folder) / former_name)
            trials.append(Trial(fold, seed, job))
        return trials


def make_splits(training: Sequence[str], by: str | None) -> Splits:
    """The folds of column `by` of the training split; no folds if it is None.

    Raises:
        ValueError: no such column, fewer than two values in it, or a dataset without features.
        OSError: the store cannot be reached.
    """
    config = parse_command_line([*training])[0]
    # Before the first of many runs. Which modalities each takes, it checks itself: a sweep may choose them.
    check_some_features(config.data, config.encoder)
    if by is None:
        return Splits(None, None, [])
    url, values = column_values(config, by)
    return Splits(by, url, leave_one_out(values))


def check_arguments(training: Sequence[str], seeds: Sequence[int], by: str | None) -> None:
    """Refuse keys that an experiment sets itself, and seeds given twice.

    Raises:
        ValueError: names the argument.
    """
    own_keys = OWN_KEYS + (FOLD_KEYS if by else ())
    for argument in training:
        key = argument.removeprefix("--").partition("=")[0]
        if argument.startswith("--") and any(key == own or key.startswith(f"{own}.") for own in own_keys):
            raise ValueError(
                f"{redact(argument)}: cross-validation sets {key} itself, for every run; leave it out"
            )
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"--seeds {list(seeds)}: a seed is given twice")


def task_type_of_data(config: Config) -> str:
    """The type of the task that runs of this configuration have: `task.type`, or that of the data's target.

    Raises:
        ValueError: the data has no such target.
        OSError: the store cannot be reached.
    """
    if config.task.type is not None:
        return config.task.type
    source = stream_source(config.data, "train")
    assert source is not None
    store, manifest, _ = open_dataset(source["url"], source["cache_dir"], source["storage_options"])
    return choose_target(manifest, config.data.target, None, store.url).type


def column_values(config: Config, by: str) -> tuple[str, list[Any]]:
    """The split that is cross-validated, as URL#split, and the values of a metadata column in it.

    Utterances without any known value of the target are in no fold.

    Raises:
        ValueError: the utterances have no such column, some lack a value of it, it has values that are NaN or
            infinite, or a fold would train on a single class, or on equal values.
    """
    source = stream_source(config.data, "train")
    assert source is not None
    stream = FeatureStream(**source | {"select": None}, task=config.task.type)
    if by not in stream.manifest.columns:
        has = sorted(stream.manifest.columns) or "no columns of metadata"
        raise ValueError(f"{stream.url}: no column {by!r} to fold by; it has {has}")
    if by in stream.target.columns:
        raise ValueError(f"{stream.url}: column {by!r} is the target: cross-validate by another column")
    of_class = next(iter(stream.target.columns), "label")
    classes: dict[Any, set[str]] = {}
    rows: dict[Any, list[int]] = {}
    for row, (key, meta) in enumerate(stream.metadata()):
        if (value := meta.get(by)) is None:
            raise ValueError(
                f"{stream.url}: utterance {key!r:.80} has no {by!r} to fold by: cross-validate by another "
                "column, or pack the dataset with this one filled in"
            )
        rows.setdefault(value, []).append(row)
        if stream.target.type == "classification":
            classes.setdefault(value, set()).add(str(meta[of_class]))
    if any(isinstance(value, float) and not math.isfinite(value) for value in rows):
        raise ValueError(
            f"{stream.url}: column {by!r} has values that are NaN or infinite, which cannot be selected; "
            "correct them and pack the dataset again"
        )
    if classes:
        check_classes(classes, by)
    else:
        check_values(stream.target_values(), rows, stream.target, by)
    return f"{source['url'].partition('#')[0]}#{stream.split}", sorted(rows)


def check_classes(classes: Mapping[Any, set[str]], by: str) -> None:
    """Refuse a fold whose training utterances all have one class, before anything is trained.

    Args:
        classes: the classes of the utterances, by the column's values.
        by: the column.

    Raises:
        ValueError: names the value that is left out.
    """
    for value in classes if len(classes) > 1 else ():
        others = set[str]().union(*(found for other, found in classes.items() if other != value))
        if len(others) < 2:
            raise ValueError(
                f"without {by} {value!r} all utterances are of the class {next(iter(others))!r}, so there is "
                "nothing to learn: cross-validate by another column"
            )


def check_values(
    values: NDArray[np.float64], rows: Mapping[Any, Sequence[int]], target: Target, by: str
) -> None:
    """Refuse a fold that has nothing to learn of a label or dimension, before anything is trained.

    Args:
        values: [U, K] of the utterances, NaN where missing.
        rows: the utterances of each value of the column; each has a known value.
        target: its columns are the K labels or dimensions.
        by: the column.

    Raises:
        ValueError: names the value that is left out, and the label or dimension.
    """
    labels = target.type == "multilabel"
    for value, left_out in rows.items() if len(rows) > 1 else ():
        for name, of_column in zip(target.columns, np.delete(values, left_out, axis=0).T, strict=True):
            if held := nothing_to_learn(of_column, name, labels):
                raise ValueError(
                    f"without {by} {value!r} all utterances have {held}, so there is nothing to learn: leave "
                    "it out of data.target, or cross-validate by another column"
                )


def leave_one_out(values: Sequence[Any]) -> list[Fold]:
    """A fold for each value: test on it, train on all others.

    Raises:
        ValueError: there are fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"cross-validation needs at least two folds, but the column has only {list(values)}")
    return [Fold(value, [other for other in values if other != value]) for value in values]
