"""Summarize the values of a dataset's targets, for `awtpn shards info`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shards.format.index import ShardIndex
from shards.format.schema import Manifest
from shards.format.targets import Target, target_in_words
from shards.safe_io.printable import table_lines


@dataclass(frozen=True)
class ColumnSummary:
    """The values of a column of a target in a split.

    Attributes:
        known, missing: utterances with a value, and without one.
        least, most, mean: of the values; 0 if there are none.
        present: utterances with a value above 0: those that have the label, in a multilabel target.
    """

    known: int
    missing: int
    least: float
    most: float
    mean: float
    present: int


def targets_of(manifest: Manifest) -> dict[str, Target]:
    """The targets of numbers that a dataset declares, under the names that are shown, each once."""
    own, further = manifest.target, manifest.targets
    names = [name for name, target in further.items() if target == own]
    targets = {} if own.is_classes else {f"target{f', named {names[0]}' if names else ''}": own}
    return targets | {f"further target {name}": of for name, of in further.items() if name not in names}


def summarize(indexes: Sequence[ShardIndex], target: Target) -> dict[str, ColumnSummary]:
    """A summary of each column of a target, over the utterances of these shards."""
    return {name: _summary(np.concatenate([i.columns[name] for i in indexes])) for name in target.columns}


def _summary(values: np.ndarray) -> ColumnSummary:
    values = values.astype(np.float64)
    known = values[~np.isnan(values)]
    present = int(np.count_nonzero(known > 0))
    if not len(known):
        return ColumnSummary(0, len(values), 0.0, 0.0, 0.0, 0)
    least, most, mean = float(known.min()), float(known.max()), float(known.mean())
    return ColumnSummary(len(known), len(values) - len(known), least, most, mean, present)


def target_lines(manifest: Manifest) -> list[str]:
    """What the targets of a dataset are, a line for each."""
    classes = f"one of {len(manifest.classes)} classes"
    lines = [f"target: {classes}"] if manifest.target.is_classes else []
    lines += [f"{shown}: {target_in_words(target)}" for shown, target in targets_of(manifest).items()]
    if manifest.classes and not manifest.target.is_classes:
        lines.append(f"further target label: {classes}")
    return lines


def summary_lines(shown: str, target: Target, summaries: dict[str, ColumnSummary]) -> list[str]:
    """The summary of a target in a split as text, a line per column."""
    rows = []
    for name, found in summaries.items():
        share = found.present / max(found.known, 1)
        rows.append(
            [
                f"    {name}",
                f"{found.least:.4g} to {found.most:.4g}" if found.known else "no value",
                (f"mean {found.mean:.4g}" if target.type == "regression" else f"{share:.1%} present")
                if found.known
                else "",
                f"{found.known:,} utterances",
                f"{found.missing:,} without" if found.missing else "",
            ]
        )
    return [f"  {shown}:", *table_lines(rows, "lrrrr")]
