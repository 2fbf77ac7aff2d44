"""What is to be recognized in an utterance: one class, several labels at once, or values.

A dataset has one target of its own (`target` of the manifest), may name others (`targets`), and every column
of numbers or text is one, too (`choose_target`). The values of a target are metadata of the utterance: its
JSON member holds them under the names of the target's columns, and the index holds these columns.

    {"type": "classification", "columns": {}}                      the dataset's classes: the field `label`
    {"type": "regression", "columns": {"sentiment": [-3, 3]}}      one value, in a known range
    {"type": "regression", "columns": {"valence": [1, 5], "activation": [1, 5]}, "missing": true}
    {"type": "multilabel", "columns": {"happy": [0, 3], "sad": [0, 3]}}   intensities; 0 means absent
    {"type": "multilabel", "columns": {"happy": [0, 1], "sad": [0, 1]}}   present (1) or absent (0)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TARGET_TYPES = ("classification", "regression", "multilabel")
# `data.target: label` names the classes of a dataset whose own target is another one.
CLASS_TARGET = "label"


@dataclass(frozen=True)
class Target:
    """A target: its type, and the columns that hold its values.

    Attributes:
        type: "classification": one class; "regression": a value of each column; "multilabel": each column is
            a label, which is present where the value is above 0.
        columns: names of metadata columns in order, each with its least and largest value, or None where
            they are not known. Empty for the dataset's own classes, whose field is `label`.
        missing: utterances may lack values (null); else every utterance has all.
    """

    type: str = "classification"
    columns: dict[str, list[float] | None] = field(default_factory=dict)
    missing: bool = False

    @property
    def is_classes(self) -> bool:
        """Whether it is the dataset's own classes, the field `label`."""
        return self.type == "classification" and not self.columns


CLASSES = Target()


def values_of(meta: Mapping[str, Any], target: Target) -> list[float]:
    """The values of an utterance, one for each column of the target; NaN where it is missing.

    Args:
        meta: metadata of the utterance.
        target: of numbers, not of classes.

    Raises:
        ValueError: a value is missing though none may be, not a finite number, or out of range; a label is
            negative. Names the column.
    """
    return [_value(meta.get(name), name, bounds, target) for name, bounds in target.columns.items()]


def _value(given: Any, name: str, bounds: list[float] | None, target: Target) -> float:
    if given is None:
        if target.missing:
            return math.nan
        raise ValueError(f"has no {name!r}; fill it in, or leave the utterance out")
    if isinstance(given, bool):
        given = int(given)
    if not isinstance(given, int | float):
        raise ValueError(f"its {name!r} is {given!r:.60}, not a number")
    if not math.isfinite(given):
        raise ValueError(f"its {name!r} is {given}; write a number, or leave it empty")
    low, high = bounds or (0.0 if target.type == "multilabel" else -math.inf, math.inf)
    if not low <= given <= high:
        raise ValueError(f"its {name!r} is {given}, outside of {low:g} to {high:g}")
    return float(given)
