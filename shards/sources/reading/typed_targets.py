"""Targets other than classes, from columns of a file: values, labels that hold together, and sets of labels.

Columns are named as `NAME` or `NAME=LOW:HIGH`, with the least and largest value that utterances may have:

    valence=1:5,arousal=1:5     regression: two values
    happy,sad                   multilabel: 0 or 1, true or false, or intensities, of which 0 means absent
    emotions=0:3                multilabel, one column of sets: "happy;sad", or "happy:2;sad:0.5"

A set names the labels that hold, with intensities or without; "none" is the empty set, unless it is a label.
In JSON sets are also lists and objects. An empty cell, null, NaN and "nan" are missing values.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards.format.labels import MISSING, found_classes, given_classes, label_name
from shards.format.targets import CLASS_TARGET, HUGE, Target, values_of
from shards.safe_io.printable import get_logger

logger = get_logger(__name__)

BOUNDS = re.compile(r"([^:]+):([^:]+)")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
DECIMAL_COMMA = re.compile(r"([+-]?\d+),(\d+)")
TRUTH = {"true": 1, "false": 0}
EMPTY_SET = "none"

Bounds = list[float] | None


@dataclass(frozen=True)
class TypedTarget:
    """A target, and its values of U utterances.

    Attributes:
        target: its type, columns and ranges.
        metas: per utterance the metadata that hold its values, None where one is missing.
        causes: by position of an utterance, why its values are bad.
    """

    target: Target
    metas: list[dict[str, Any]]
    causes: dict[int, str]

    def meta_of(self, place: int) -> dict[str, Any]:
        """The metadata of the utterance at a position.

        Raises:
            ValueError: its values are bad.
        """
        if place in self.causes:
            raise ValueError(self.causes[place])
        return self.metas[place]


def column_bounds(words: Sequence[str] | None, target: str, at: str) -> dict[str, Bounds]:
    """The columns that `--target_columns` names, and their ranges; None where none is given.

    Args:
        words: `NAME` or `NAME=LOW:HIGH`.
        target: "classification", "regression" or "multilabel".
        at: the file, for error messages.

    Raises:
        ValueError: there are none though the target needs them, or they do not belong to it; a range is none.
    """
    if target == "classification":
        if words:
            raise ValueError(
                f"{at}: --target_columns {','.join(words)}: say what they hold, --target regression or "
                "--target multilabel; classes are in 'label'"
            )
        return {}
    if not words:
        raise ValueError(
            f"{at}: --target {target} needs --target_columns: NAME or NAME=LOW:HIGH, with commas between them"
        )
    found: dict[str, Bounds] = {}
    for word in words:
        name, bounds = _named(word, target, at)
        if name in found:
            raise ValueError(f"{at}: --target_columns names {name!r} twice; leave one out")
        if name == CLASS_TARGET:
            raise ValueError(
                f"{at}: --target_columns {name}: 'label' is the class; rename the column, e.g. to 'score'"
            )
        found[name] = bounds
    return found


def _named(word: str, target: str, at: str) -> tuple[str, Bounds]:
    name, sign, text = word.rpartition("=")
    if not sign:
        name, text = word, ""
    name, bounds = name.strip(), BOUNDS.fullmatch(text)
    if not name or (sign and bounds is None):
        raise ValueError(f"{at}: --target_columns {word!r}: write NAME or NAME=LOW:HIGH, e.g. valence=1:5")
    if bounds is None:
        return name, None
    try:
        low, high = float(bounds[1]), float(bounds[2])
    except ValueError:
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"{at}: --target_columns {word!r}: LOW and HIGH must be numbers, LOW below HIGH")
    if target == "multilabel" and low != 0:
        raise ValueError(
            f"{at}: --target_columns {word!r}: LOW must be 0, which means that a label is absent"
        )
    return name, [low, high]


def typed_target(
    kind: str,
    given: Mapping[str, Sequence[Any]],
    bounds: Mapping[str, Bounds],
    at: str,
    labels: Sequence[str] | None = None,
) -> TypedTarget:
    """The target that columns hold.

    Labels without a range are within 0..1 if all values are 0 or 1, else within 0 and the largest intensity
    of all of them. The range of other values is then not known.

    Args:
        kind: "regression" or "multilabel".
        given: values of the U utterances by column, of any kind; the only column of a multilabel may hold
            sets.
        bounds: range by column.
        at: the file, for error messages.
        labels: the labels of the only column, which holds sets; default those that occur, sorted.

    Raises:
        ValueError: no utterance has a value, or labels of sets are alike.
    """
    column, how = next(iter(given)), ""
    if kind == "multilabel" and len(given) == 1 and (labels or _holds_sets(given[column])):
        metas, causes, names = _sets(given[column], column, labels, at)
        bounds = dict.fromkeys(names, bounds[column])
        how = f" ({EMPTY_SET!r}, if no label holds)"
    else:
        metas, causes = _numbers(given, kind)
        names = list(given)
    known = [meta for meta in metas if any(value is not None for value in meta.values())]
    if not known:
        columns = ", ".join(map(repr, given))
        if causes:
            raise ValueError(f"{at}: no utterance has good values of {columns}: {causes[min(causes)]}")
        raise ValueError(f"{at}: no utterance has a value of {columns}")
    if kind == "multilabel":
        metas, bounds = _labels(metas, names, bounds)
    target = Target(
        kind,
        {name: bounds[name] for name in names},
        missing=any(value is None for meta in known for value in meta.values()),
    )
    if CLASS_TARGET in names:
        raise ValueError(f"{at}: a label of {column!r} is called 'label', which means the class; rename it")
    for i, meta in enumerate(metas):
        if i not in causes and (cause := _cause(meta, target, list(given), how)):
            causes[i] = cause
    _log_missing(known, names, len(metas), at)
    return TypedTarget(target, metas, causes)


def _numbers(
    given: Mapping[str, Sequence[Any]], kind: str
) -> tuple[list[dict[str, float | None]], dict[int, str]]:
    """Numbers of columns: per utterance, and why those of some cannot be read, by position."""
    metas: list[dict[str, float | None]] = []
    causes: dict[int, str] = {}
    for i, values in enumerate(zip(*given.values(), strict=True)):
        try:
            metas.append({n: number_of(v, n, kind) for n, v in zip(given, values, strict=True)})
        except ValueError as error:
            metas.append(dict.fromkeys(given))
            causes[i] = str(error)
    return metas, causes


def number_of(value: Any, name: str, kind: str = "regression") -> float | None:
    """A cell as a number; None where it is missing. Infinity is one, which `values_of` refuses.

    Args:
        value: a number, or text of one.
        name: of its column.
        kind: of a "multilabel" true and false are 1 and 0, too.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        text = value.strip()
        if not text or text in MISSING:
            return None
        if kind == "multilabel" and text.casefold() in TRUTH:
            return float(TRUTH[text.casefold()])
        if NUMBER.fullmatch(text):
            return float(text)
        if comma := DECIMAL_COMMA.fullmatch(text):
            raise ValueError(f"its {name!r} is {text!r:.60}, not a number; write {comma[1]}.{comma[2]}")
        raise ValueError(f"its {name!r} is {text!r:.60}, not a number; write one, or leave it empty")
    if value is None or value != value:
        return None
    if isinstance(value, bool) and kind != "multilabel":
        raise ValueError(f"its {name!r} is {value!r}, not a number; write one, or leave it empty")
    if not isinstance(value, int | float):
        raise ValueError(f"its {name!r} is {value!r:.60}, not a number; write one, or leave it empty")
    try:
        return float(value)
    except OverflowError:  # an integer of more than 308 digits
        return math.inf


# --- Several labels at once ----------------------------------------------------------------------


def _holds_sets(values: Sequence[Any]) -> bool:
    """Whether a column holds sets of labels, and not whether one label is present."""
    numbers = False
    for value in values:
        if isinstance(value, list | tuple | dict) or (isinstance(value, str) and set(value) & set(";:")):
            return True
        with contextlib.suppress(ValueError):
            numbers = numbers or number_of(value, "", "multilabel") is not None
    return not numbers


def _sets(
    values: Sequence[Any], column: str, labels: Sequence[str] | None, at: str
) -> tuple[list[dict[str, float | None]], dict[int, str], list[str]]:
    """Intensities of the labels per utterance, causes of bad ones by position, and the labels."""
    found: list[dict[str, float] | None] = []
    causes: dict[int, str] = {}
    given = given_classes(labels) if labels else []
    for i, value in enumerate(values):
        try:
            found.append(_set_of(value, column, given))
        except ValueError as error:
            found.append(None)
            causes[i] = str(error)
    if not given and not any(found):
        reason = f": {causes[min(causes)]}" if causes else ""
        raise ValueError(f"{at}: no utterance has a label in {column!r}{reason}")
    names = given or found_classes((name for of in found if of for name in of), f"{at}: {column}")
    if commas := [name for name in names if "," in name]:
        raise ValueError(f"{at}: {column!r} has the label {commas[0]!r:.60}; write ';' between labels")
    return (
        [{n: None if of is None else of.get(n, 0.0) for n in names} for of in found],
        causes,
        names,
    )


def _set_of(value: Any, column: str, labels: Collection[str]) -> dict[str, float] | None:
    """The labels of a set, and their intensities; None where it is missing.

    Raises:
        ValueError: it is none, a label occurs twice or is not among `labels`, or an intensity is no number.
    """
    if value is None or value != value:
        return None
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list | tuple):
        pairs = [(name, 1) for name in value]
    else:
        text = str(value).strip()
        if (not text or text in MISSING) and text not in labels:
            return None
        pairs = [_label_and_intensity(item, column) for item in text.split(";") if item.strip()]
        if text == EMPTY_SET and EMPTY_SET not in labels:
            pairs = []
    found: dict[str, float] = {}
    for label, given in pairs:
        try:
            name = label_name(label, labels)
        except ValueError as error:
            raise ValueError(f"its {column!r}: {error}") from None
        if labels and name not in labels:
            raise ValueError(f"its {column!r} has {name!r:.60}, which is none of the labels {list(labels)}")
        if name in found:
            raise ValueError(f"its {column!r} names {name!r:.60} twice; leave one out")
        intensity = number_of(given, column, "multilabel")
        if intensity is None:
            raise ValueError(f"its {column!r} has no intensity of {name!r:.60}; write a number")
        found[name] = intensity
    return found


def _label_and_intensity(item: str, column: str) -> tuple[str, float]:
    name, sign, text = item.strip().rpartition(":")
    if not sign:
        return text, 1.0
    if not name.strip() or not NUMBER.fullmatch(text.strip()):
        raise ValueError(f"its {column!r} has {item.strip()!r:.60}; write LABEL or LABEL:INTENSITY")
    return name.strip(), float(text)


def _labels(
    metas: Sequence[Mapping[str, float | None]], names: Sequence[str], bounds: Mapping[str, Bounds]
) -> tuple[list[dict[str, float | None]], dict[str, Bounds]]:
    """Intensities with the labels' ranges; 0 and 1 as integers where there is nothing between or above."""
    # Those of bad utterances, negative or beyond all measurements, say nothing about the range.
    values = [v for meta in metas for v in meta.values() if v is not None and 0 <= v <= HUGE]
    present_or_absent = all(value in (0, 1) for value in values)
    highest = max([1.0, *values])
    return (
        [{n: int(v) if present_or_absent and v in (0, 1) else v for n, v in meta.items()} for meta in metas],
        {name: bounds[name] or [0.0, highest] for name in names},
    )


# --- What is bad, and what is missing ------------------------------------------------------------


def _cause(meta: Mapping[str, Any], target: Target, given: Sequence[str], how: str) -> str | None:
    """Why an utterance's values are bad; None where they are not."""
    if all(value is None for value in meta.values()):
        columns, fill = " and ".join(map(repr, given)), "fill it in" if len(given) == 1 else "fill one in"
        return f"has no target, {columns}; {fill}{how}, or leave the utterance out (on_bad skip)"
    try:
        values_of(meta, target)
    except ValueError as error:
        return str(error)
    return None


def _log_missing(known: Sequence[Mapping[str, Any]], names: Sequence[str], utterances: int, at: str) -> None:
    counts = {name: sum(meta[name] is None for meta in known) for name in names}
    if lacking := {name: count for name, count in counts.items() if count}:
        shown = ", ".join(f"{name} {count}" for name, count in lacking.items())
        logger.warning("%s: of %d utterances some have no value: %s", at, utterances, shown)
