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
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

TARGET_TYPES = ("classification", "regression", "multilabel")
# `data.target: label` names the classes of a dataset whose own target is another one.
CLASS_TARGET = "label"
# A column of numbers that some utterances lack: float64 in the index, NaN where it is missing.
OPTIONAL = "optional float"
NUMBERS = ("bool", "int", "float", OPTIONAL)
# Kinds of columns whose values can be classes.
NAMES = ("str", "bool", "int")
SHOWN = 20  # names in an error message
# Columns of a declared target: its values take memory for each, and a manifest may come from anywhere.
MOST_COLUMNS = 1_000
# float64 holds smaller integers exactly.
EXACT = 2**53
# Larger values are not measurements, and their differences may overflow.
HUGE = 10**30
# What an option or a file can name: not "valence,activation".
TARGET_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}")


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

    @property
    def num_values(self) -> int:
        """Numbers K that an utterance has as its target; 0 for classes, whose target is a label."""
        return 0 if self.type == "classification" else len(self.columns)


CLASSES = Target()


def target_in_words(target: Target) -> str:
    """Such as "regression of valence (1 to 5), arousal; values may be missing"."""
    if target.is_classes:
        return "the classes"
    columns = ", ".join(
        name if bounds is None else f"{name} ({bounds[0]:g} to {bounds[1]:g})"
        for name, bounds in target.columns.items()
    )
    return f"{target.type} of {columns}{'; values may be missing' if target.missing else ''}"


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


def number_of(given: Any) -> int | float | None:
    """A number as JSON and an index hold it: true is 1, integers beyond 2^53 are floats; None of others."""
    if hasattr(given, "dtype") and getattr(given, "ndim", None) == 0:  # of NumPy
        given = given.item()
    if isinstance(given, int):
        if abs(given) < EXACT:
            return int(given)
        return float(given) if abs(given) <= HUGE else math.inf
    return float(given) if isinstance(given, float) else None


def default_range(target: Target) -> tuple[float, float]:
    """What the values of a column without a known range may be."""
    return 0.0 if target.type == "multilabel" else -float(HUGE), float(HUGE)


def _value(given: Any, name: str, bounds: list[float] | None, target: Target) -> float:
    shown = given
    if given is None:
        if target.missing:
            return math.nan
        raise ValueError(f"has no {name!r}; fill it in, or leave the utterance out (on_bad skip)")
    given = number_of(given)
    if given is None:
        raise ValueError(f"its {name!r} is {shown!r:.60}, not a number")
    if not math.isfinite(given):
        raise ValueError(f"its {name!r} is {given}; write a number, or leave it empty")
    low, high = bounds or default_range(target)
    if not low <= given <= high:
        raise ValueError(f"its {name!r} is {given}, outside of {low:g} to {high:g}")
    return float(given)


# --- Declare -------------------------------------------------------------------------------------


def check_declared(
    target: Target, targets: Mapping[str, Target], classes: Sequence[str]
) -> tuple[Target, dict[str, Target]]:
    """Check the targets that a dataset declares.

    Args:
        target: the dataset's own.
        targets: further ones, by name.
        classes: of the dataset.

    Returns:
        Both, with their ranges as floats.

    Raises:
        ValueError: no such type, no columns, a name or range that is not one, or a dataset without classes
            whose own target is the classes. One line.
    """
    if target.is_classes and not classes:
        raise ValueError("there are no classes, and the target is the classes: there must be one of both")
    for name in targets:
        if not TARGET_NAME.fullmatch(name) or name == CLASS_TARGET:
            raise ValueError(f"targets: {name!r:.60} cannot be a name there")
    own = target if target == CLASSES else _checked(target, "target")
    return own, {name: _checked(further, f"targets.{name}") for name, further in targets.items()}


def _checked(target: Target, at: str) -> Target:
    """A target of numbers that a dataset declares; raises as `check_declared`."""
    if target.type not in TARGET_TYPES:
        raise ValueError(f"{at}: type {target.type!r:.60} must be one of {', '.join(TARGET_TYPES)}")
    if target.type == "classification":
        raise ValueError(
            f"{at}: a classification is of the dataset's classes, without columns; a column of text can be "
            "chosen without being declared"
        )
    if not isinstance(target.columns, dict) or not target.columns:
        raise ValueError(f"{at}: a {target.type} has at least one column, with its range or None: a dict")
    if len(target.columns) > MOST_COLUMNS:
        raise ValueError(f"{at}: it has {len(target.columns)} columns, and at most {MOST_COLUMNS} are read")
    if not isinstance(target.missing, bool):
        raise ValueError(f"{at}: missing is {target.missing!r:.60}, not True or False")
    return replace(target, columns={name: _bounds(name, b, target, at) for name, b in target.columns.items()})


def _bounds(name: str, bounds: Any, target: Target, at: str) -> list[float] | None:
    if not isinstance(name, str) or not 0 < len(name) <= 100 or not name.isprintable() or "," in name:
        raise ValueError(f"{at}: {name!r:.60} cannot be the name of a column there")
    if name == CLASS_TARGET:
        raise ValueError(f"{at}: {name!r} is the field of the classes; rename the column")
    if bounds is None:
        return None
    fits = isinstance(bounds, list | tuple) and len(bounds) == 2
    low, high = map(number_of, bounds) if fits else (None, None)
    if low is None or high is None or not -HUGE <= low < high <= HUGE:
        raise ValueError(f"{at}: {name!r} has the range {bounds!r:.60}, not a least and a larger number")
    if target.type == "multilabel" and low < 0:
        raise ValueError(f"{at}: {name!r} begins at {low:g}; the values of a label are 0 (absent) or above")
    return [float(low), float(high)]


# --- Choose --------------------------------------------------------------------------------------


class _Dataset(Protocol):
    """The fields of a manifest that decide which targets there are."""

    @property
    def classes(self) -> list[str]: ...
    @property
    def columns(self) -> dict[str, str]: ...
    @property
    def target(self) -> Target: ...
    @property
    def targets(self) -> dict[str, Target]: ...


def choose_target(
    manifest: _Dataset, chosen: str | Sequence[str] | None, type: str | None, url: str
) -> Target:
    """What is to be recognized: the dataset's own target, a further one, its classes, or columns.

    Args:
        manifest: of the dataset.
        chosen: `data.target`: None is the dataset's own target; a name in `targets`; "label" is the classes;
            or names of columns, as a list or separated by commas. Where a target and a column have the same
            name, a list means the column. Columns of numbers are a regression,
            unless `type` says otherwise; one column of text is a classification.
        type: `task.type`; None is the target's own type.
        url: of the dataset, for error messages.

    Returns:
        The target. The range of a column is that of a declared target with this column, else not known.

    Raises:
        ValueError: the dataset has no such target, or its columns do not fit the type. One line.
    """
    if type not in (None, *TARGET_TYPES):
        raise ValueError(f"task.type {type!r:.60}: must be one of {', '.join(TARGET_TYPES)}")
    names = [] if chosen is None else _names(manifest, chosen)
    declared = None
    if chosen is None:
        declared = manifest.target
    elif len(names) == 1 and (isinstance(chosen, str) or names[0] not in manifest.columns):
        declared = manifest.targets.get(names[0], CLASSES if names[0] == CLASS_TARGET else None)
    if declared is not None and declared.is_classes:
        if not manifest.classes:
            raise ValueError(f"{url}: has no classes; data.target can be {_choices(manifest)}")
        if type not in (None, "classification"):
            raise ValueError(
                f"{url}: its target is the classes, and task.type is {type}: data.target can be "
                f"{_choices(manifest, type)}"
            )
        return CLASSES
    if declared is not None and type in (None, declared.type):
        return declared
    return _of_columns(manifest, names if declared is None else list(declared.columns), type, url)


def _names(manifest: _Dataset, chosen: str | Sequence[str]) -> list[str]:
    if isinstance(chosen, str):
        whole = chosen in manifest.targets or chosen in manifest.columns
        chosen = [chosen] if whole else [name.strip() for name in chosen.split(",")]
    return list(chosen)


def _of_columns(manifest: _Dataset, names: list[str], type: str | None, url: str) -> Target:
    """The target that these columns are."""
    for name in names:
        if name not in manifest.columns and (len(names) == 1 or name not in _named(manifest)):
            raise ValueError(f"{url}: no column {name!r:.80} for data.target; it can be {_choices(manifest)}")
        if name not in manifest.columns:
            raise ValueError(
                f"{url}: data.target {name!r:.80} is a target of its own, not a column: give it alone"
            )
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{url}: data.target {names!r:.80}: must be distinct columns, at least one")
    kinds = {name: manifest.columns[name] for name in names}
    if type == "classification" or (type is None and list(kinds.values()) == ["str"]):
        if len(names) > 1 or kinds[names[0]] not in NAMES:
            raise ValueError(
                f"{url}: {', '.join(map(repr, names)):.100} cannot be classes; with task.type=classification "
                "data.target is one column of text, whole numbers, or true and false: "
                f"{_choices(manifest, 'classification')}"
            )
        return Target("classification", {names[0]: None})
    if text := [name for name in names if kinds[name] not in NUMBERS]:
        raise ValueError(
            f"{url}: column {text[0]!r:.80} holds text, and a {type or 'regression'} needs numbers: choose "
            "columns of numbers by data.target, or this one alone with task.type=classification"
        )
    target = Target(
        type or "regression",
        {name: _range(manifest, name) for name in names},
        missing=OPTIONAL in kinds.values(),
    )
    for name, bounds in target.columns.items():
        if target.type == "multilabel" and bounds is not None and bounds[0] < 0:
            raise ValueError(
                f"{url}: {name!r:.80} has values from {bounds[0]:g} to {bounds[1]:g}; those of a label are 0 "
                "(absent) or above"
            )
    return target


def _range(manifest: _Dataset, name: str) -> list[float] | None:
    for target in (manifest.target, *manifest.targets.values()):
        if (bounds := target.columns.get(name)) is not None:
            return bounds
    return [0.0, 1.0] if manifest.columns[name] == "bool" else None


def _named(manifest: _Dataset) -> list[str]:
    """The targets that have names of their own: the classes, and the further ones."""
    return [*([CLASS_TARGET] if manifest.classes else []), *manifest.targets]


def _choices(manifest: _Dataset, type: str | None = None) -> str:
    """What `data.target` can be, with this `task.type` if it is given, for error messages."""
    if type is None:
        named = [*_named(manifest), *manifest.columns]
    elif type == "classification":
        fitting = [name for name, kind in manifest.columns.items() if kind in NAMES]
        named = [*([CLASS_TARGET] if manifest.classes else []), *fitting]
    else:
        fitting = [name for name, kind in manifest.columns.items() if kind in NUMBERS]
        named = [*manifest.targets, *fitting]
    named = list(dict.fromkeys(named))
    more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
    return f"{', '.join(map(repr, named[:SHOWN])) or 'none'}{more}"
